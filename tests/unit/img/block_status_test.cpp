// Where an image below cannot say what it holds, nothing is taken for zeroes or left out: the verbs
// fail and say so. What only refines an answer, such as where a file has holes, may be missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "block/adapters/memory.h"
#include "block/filters/fault.h"
#include "tools/img/commands.h"
#include "unit/img/call.h"
#include "unit/scratch_dir.h"

namespace platter::img {
namespace {

class BlockStatus : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream("base.img") << std::string(1 << 20, 'b');
    std::ofstream("same.img") << std::string(1 << 20, 'b');
    std::ofstream("other.img") << std::string(1 << 20, 'o');
    ASSERT_EQ(
        call(run_create, {"create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", "top.img"}),
        0);
    ASSERT_EQ(call(run_convert, {"convert", "-O", "qcow2", "base.img", "plain.img"}), 0);
  }

  // Options of the file `name` that never says what it holds, as those of the child `child`.
  static std::string silent_file(const std::string& child, const std::string& name) {
    return child + ".driver=blkdebug," + child + ".image.driver=file," + child +
           ".image.filename=" + name + "," + child + ".inject-error.0.event=none," + child +
           ".inject-error.0.iotype=block-status," + child + ".inject-error.0.errno=5";
  }
  static std::string silent_backing() {
    return "driver=qcow2,file.driver=file,file.filename=top.img,backing.driver=raw," +
           silent_file("backing.file", "base.img");
  }

  struct Outcome {
    int status = 0;
    std::string out;
    std::string err;
  };
  static Outcome outcome(int (*verb)(int, char**), const std::vector<std::string>& words) {
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    Outcome result;
    result.status = call(verb, words);
    result.err = ::testing::internal::GetCapturedStderr();
    result.out = ::testing::internal::GetCapturedStdout();
    return result;
  }
  static void expect_told(const Outcome& outcome, const std::string& what) {
    EXPECT_NE(outcome.err.find(what), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("Input/output error"), std::string::npos) << outcome.err;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
  }
  static std::string bytes_of_file(const std::string& name) {
    std::ifstream in(name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const ScratchWorkingDir dir_;
};

constexpr const char* kCopyError = "error while reading block status at offset 0";

TEST_F(BlockStatus, ConvertFails) {
  const Outcome layered =
      outcome(run_convert, {"convert", "--image-opts", "-O", "raw", silent_backing(), "out.img"});
  EXPECT_EQ(layered.status, 1);
  expect_told(layered, kCopyError);
  const Outcome plain =
      outcome(run_convert, {"convert", "--image-opts", "-O", "raw",
                            "driver=raw," + silent_file("file", "base.img"), "out.img"});
  EXPECT_EQ(plain.status, 1);
  expect_told(plain, kCopyError);
}

TEST_F(BlockStatus, ConvertDoesNotNeedToKnowTheHolesOfAFile) {
  const Outcome done =
      outcome(run_convert, {"convert", "--image-opts", "-O", "raw",
                            "driver=qcow2," + silent_file("file", "plain.img"), "out.img"});
  EXPECT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(bytes_of_file("out.img"), bytes_of_file("base.img"));
}

TEST_F(BlockStatus, CompareFails) {
  for (const char* other : {"same.img", "other.img"}) {
    const std::string second = std::string("driver=raw,file.driver=file,file.filename=") + other;
    const Outcome first =
        outcome(run_compare, {"compare", "--image-opts", silent_backing(), second});
    EXPECT_EQ(first.status, 3) << first.out;
    expect_told(first, "Sector allocation test failed for image 1");
    EXPECT_EQ(first.out, "");
    const Outcome swapped =
        outcome(run_compare, {"compare", "--image-opts", second, silent_backing()});
    EXPECT_EQ(swapped.status, 3) << swapped.out;
    expect_told(swapped, "Sector allocation test failed for image 2");
  }
}

TEST_F(BlockStatus, MapFails) {
  for (const char* output : {"human", "json"}) {
    const Outcome done = outcome(
        run_map, {"map", "--image-opts", std::string("--output=") + output, silent_backing()});
    EXPECT_EQ(done.status, 1);
    expect_told(done, "Failed to read image metadata");
    EXPECT_EQ(done.out.find("\"data\""), std::string::npos) << done.out;
  }
}

TEST_F(BlockStatus, RebaseAndStreamFailAndChangeNothing) {
  const std::string before = bytes_of_file("top.img");
  const Outcome rebased = outcome(
      run_rebase, {"rebase", "--image-opts", "-b", "other.img", "-F", "raw", silent_backing()});
  EXPECT_EQ(rebased.status, 1);
  EXPECT_NE(rebased.err.find("Input/output error"), std::string::npos) << rebased.err;
  const Outcome streamed = outcome(run_stream, {"stream", "-q", "--image-opts", silent_backing()});
  EXPECT_EQ(streamed.status, 1);
  EXPECT_NE(streamed.err.find("Input/output error"), std::string::npos) << streamed.err;
  const Outcome compared = outcome(run_compare, {"compare", "top.img", "base.img"});
  EXPECT_EQ(compared.status, 0) << compared.out << compared.err;
  const Outcome info = outcome(run_info, {"info", "top.img"});
  EXPECT_NE(info.out.find("base.img"), std::string::npos) << info.out;
}

}  // namespace
}  // namespace platter::img

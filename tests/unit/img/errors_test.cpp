// What the verbs say when they fail: one line, with the name of the image that it is about.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "unit/img/call.h"
#include "unit/qcow2/engine_support.h"
#include "unit/scratch_dir.h"

namespace platter::img {
namespace {

class Errors : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream("raw.img") << std::string(1 << 20, 'r');
    ASSERT_EQ(call(run_create, {"create", "-q", "-f", "qcow2", "disk.img", "1M"}), 0);
    ASSERT_EQ(call(run_create,
                   {"create", "-q", "-f", "qcow2", "-b", "disk.img", "-F", "qcow2", "top.img"}),
              0);
    ASSERT_EQ(call(run_convert, {"convert", "-c", "-O", "qcow2", "raw.img", "packed.img"}), 0);
  }

  // That `verb` fails and says so of `image`, with a hint on the line below or none.
  static void expect_error(int (*verb)(int, char**), const std::string& image,
                           const std::vector<std::string>& words, std::string_view hint = {}) {
    SCOPED_TRACE(::testing::PrintToString(words));
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const int status = call(verb, words);
    std::string said = ::testing::internal::GetCapturedStderr();
    ::testing::internal::GetCapturedStdout();
    EXPECT_NE(status, 0);
    EXPECT_TRUE(said.ends_with(hint)) << said;
    said.resize(said.size() - std::min(hint.size(), said.size()));
    EXPECT_EQ(std::ranges::count(said, '\n'), 1) << said;
    EXPECT_TRUE(said.starts_with(program() + ": " + image + ": ") ||
                said.find("'" + image + "'") != std::string::npos)
        << said;
    // Nobody's name is said for nothing.
    EXPECT_EQ(said.find(image + ": " + image), std::string::npos) << said;
  }

  const ScratchWorkingDir dir_;
};

TEST_F(Errors, NameTheImageThatIsChanged) {
  for (const auto& words : std::vector<std::vector<std::string>>{
           {"-f", "raw", "raw.img", "0"},
           {"-f", "raw", "raw.img", "512k"},
           {"-f", "raw", "raw.img", "1X"},
           {"-f", "raw", "--preallocation=metadata", "raw.img", "2M"},
           {"-f", "raw", "--shrink", "--preallocation=full", "raw.img", "512k"}}) {
    std::vector<std::string> all{"resize"};
    all.insert(all.end(), words.begin(), words.end());
    expect_error(run_resize, "raw.img", all);
  }
  expect_error(run_resize, "disk.img", {"resize", "disk.img", "7E"});
  expect_error(run_commit, "disk.img", {"commit", "disk.img"});
  expect_error(run_commit, "top.img", {"commit", "-b", "nofile", "top.img"});
  expect_error(run_stream, "top.img", {"stream", "-b", "nofile", "top.img"});
  expect_error(run_rebase, "disk.img", {"rebase", "-b", "nofile", "-F", "raw", "disk.img"});
  expect_error(run_rebase, "disk.img", {"rebase", "-u", "-b", "raw.img", "disk.img"});
  expect_error(run_rebase, "disk.img", {"rebase", "-b", "raw.img", "-F", "foo", "disk.img"});
  const std::string options = "driver=raw,file.filename=raw.img";
  for (const char* action : {"-c", "-a", "-d"})
    expect_error(run_snapshot, options, {"snapshot", action, "s", "--image-opts", options});
  expect_error(run_amend, "disk.img", {"amend", "-o", "foo=1", "disk.img"});
  expect_error(run_amend, "raw.img", {"amend", "-f", "raw", "-o", "compat=v2", "raw.img"});
  expect_error(run_bitmap, "disk.img", {"bitmap", "--remove", "disk.img", "b"});
  expect_error(run_bitmap, "raw.img", {"bitmap", "-f", "raw", "--add", "raw.img", "b"});
}

TEST_F(Errors, NameTheImageThatIsLookedAt) {
  expect_error(run_check, "raw.img", {"check", "raw.img"});
  expect_error(run_map, "packed.img", {"map", "packed.img"});
  expect_error(run_measure, "disk.img", {"measure", "-l", "s", "disk.img"});
  expect_error(run_bench, "raw.img", {"bench", "-f", "raw", "-c", "1", "-o", "2M", "raw.img"});
  expect_error(run_info, "nofile", {"info", "nofile"});
  expect_error(run_compare, "nofile", {"compare", "raw.img", "nofile"});
}

TEST_F(Errors, NameTheImageThatIsMadeOrItsSource) {
  for (const auto& words : std::vector<std::vector<std::string>>{
           {"-O", "foo", "raw.img", "new"},
           {"-o", "foo=1", "raw.img", "new"},
           {"-c", "raw.img", "new"},
           {"-B", "disk.img", "-F", "qcow2", "raw.img", "new"},
           {"-O", "qcow2", "-B", "disk.img", "raw.img", "new"},
           {"-O", "qcow2", "-o", "cluster_size=3", "raw.img", "new"},
           {"--bitmaps", "-O", "raw", "disk.img", "new"},
           {"-n", "raw.img", "new"}}) {
    std::vector<std::string> all{"convert"};
    all.insert(all.end(), words.begin(), words.end());
    expect_error(run_convert, "new", all);
  }
  std::ofstream("small") << std::string(512, 's');
  expect_error(run_convert, "small", {"convert", "-n", "-O", "raw", "raw.img", "small"});
  expect_error(run_convert, "disk.img", {"convert", "-l", "s", "disk.img", "new"});
  expect_error(run_convert, "raw.img", {"convert", "--bitmaps", "-O", "qcow2", "raw.img", "new"});
  expect_error(run_convert, "nofile", {"convert", "nofile", "new"});
  const std::string broken =
      R"(json:{"driver":"blkdebug","image":{"driver":"file","filename":"raw.img"},)"
      R"("inject-error":[{"event":"none","iotype":"read","errno":5}]})";
  expect_error(run_convert, broken, {"convert", "-f", "raw", broken, "new"});
  expect_error(run_dd, "new", {"dd", "-O", "foo", "if=raw.img", "of=new"});
  expect_error(run_dd, broken, {"dd", "-f", "raw", "if=" + broken, "of=new"});
  expect_error(run_create, "new", {"create", "-f", "qcow2", "-b", "nofile", "-F", "raw", "new"});
  expect_error(run_create, "new", {"create", "-f", "qcow2", "-b", "raw.img", "new"});
  expect_error(run_create, "new", {"create", "-f", "qcow2", "-o", "cluster_size=3", "new", "1M"});
}

TEST_F(Errors, NameTheImageWhoseSnapshotCannotBe) {
  const std::string longest(255, 'n');
  EXPECT_EQ(call(run_snapshot, {"snapshot", "-c", longest, "disk.img"}), 0);
  expect_error(run_snapshot, "disk.img", {"snapshot", "-c", longest + "n", "disk.img"});
  expect_error(run_snapshot, "disk.img", {"snapshot", "-a", "s", "disk.img"});
}

// (It would come to light with the first cluster only, and not at all where there is none.)
TEST_F(Errors, OfAPackedImageWithADataFileComeBeforeEither) {
  ASSERT_EQ(call(run_create, {"create", "-q", "-f", "raw", "empty.img", "1M"}), 0);
  for (const char* source : {"empty.img", "raw.img"}) {
    expect_error(
        run_convert, "new",
        {"convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "data_file=data", source, "new"});
    EXPECT_FALSE(std::filesystem::exists("new"));
    EXPECT_FALSE(std::filesystem::exists("data"));
  }
}

TEST_F(Errors, OfAnImageInUseAreALineAndAHint) {
  auto executor = Executor::create();
  ASSERT_TRUE(executor);
  OpenRequest request;
  request.filename = "disk.img";
  request.format = "qcow2";
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto user = (*executor)->block_on([&] { return open_node(request); });
  ASSERT_TRUE(user);
  const std::string_view hint = "Is another process using the image [disk.img]?\n";
  expect_error(run_info, "disk.img", {"info", "disk.img"}, hint);
  expect_error(run_convert, "disk.img", {"convert", "raw.img", "disk.img"}, hint);
  auto closed = (*executor)->block_on([&] { return user->detach(); });
  EXPECT_TRUE(closed);
}

}  // namespace
}  // namespace platter::img

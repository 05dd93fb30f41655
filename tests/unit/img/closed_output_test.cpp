// Standard output that nobody reads any more: the work is done all the same, and its exit status
// tells of the work.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tools/img/commands.h"
#include "tools/tools.h"
#include "unit/img/call.h"
#include "unit/scratch_dir.h"

namespace platter::img {
namespace {

// The exit status of `img` with the words, in front of a pipe without a reader.
int run_unread(std::vector<std::string> words) {
  int ends[2];
  if (pipe(ends) != 0 || dup2(ends[1], STDOUT_FILENO) < 0) _exit(99);
  close(ends[0]);
  close(ends[1]);
  std::signal(SIGPIPE, SIG_DFL);
  words.insert(words.begin(), "img");
  return call([](int argc, char** argv) { return run_img("img", argc, argv); }, words);
}

class ClosedOutputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // In a process that begins anew: this one may have threads.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    ASSERT_EQ(call(run_create, {"create", "-q", "-f", "qcow2", at("image"), "1M"}), 0);
  }
  void TearDown() override { GTEST_FLAG_SET(death_test_style, "fast"); }
  std::string at(const char* name) const { return dir_ / name; }
  // In the process that has begun anew, whose directory is another.
  [[noreturn]] void leave(int status) const {
    std::filesystem::remove_all(dir_.path());
    std::exit(status);
  }
  void expect_success(const std::vector<std::string>& words) {
    SCOPED_TRACE(::testing::PrintToString(words));
    EXPECT_EXIT(leave(run_unread(words)), ::testing::ExitedWithCode(0), "");
  }
  int convert() const {
    const int status = run_unread({"convert", "-p", "-O", "qcow2", at("image"), at("old")});
    if (status != 0) return status;
    const std::filesystem::directory_iterator all(dir_.path());
    if (std::distance(begin(all), end(all)) != 2) return 98;
    return call(run_check, {"check", "-q", "-f", "qcow2", at("old")});
  }
  int info_on_full_disk() const {
    if (std::freopen("/dev/full", "w", stdout) == nullptr) return 99;
    return call(run_info, {"info", at("image")});
  }

  const ScratchDir dir_;
};

TEST_F(ClosedOutputTest, IsNoErrorOfWhatIsDone) {
  expect_success({"info", at("image")});
  expect_success({"check", at("image")});
  expect_success({"map", at("image")});
  expect_success({"resize", at("image"), "+1M"});
  expect_success({"compare", "-p", at("image"), at("image")});
  expect_success({"--help"});
}

TEST_F(ClosedOutputTest, AnImageThatIsReplacedIsWhole) {
  std::ofstream(at("old")) << "old contents";
  EXPECT_EXIT(leave(convert()), ::testing::ExitedWithCode(0), "");
}

TEST_F(ClosedOutputTest, AnErrorStaysOne) {
  EXPECT_EXIT(leave(run_unread({"info", at("absent")})), ::testing::ExitedWithCode(1), "absent");
  EXPECT_EXIT(leave(run_unread({"check", "-f", "raw", at("image")})), ::testing::ExitedWithCode(63),
              "");
}

TEST_F(ClosedOutputTest, AFullDiskIsAnError) {
  EXPECT_EXIT(leave(info_on_full_disk()), ::testing::ExitedWithCode(1),
              "could not write to standard output");
}

}  // namespace
}  // namespace platter::img

// Images that stand on others: what making them needs of the file below, and what is left when it
// comes to nothing.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "unit/img/call.h"
#include "unit/qcow2/engine_support.h"
#include "unit/scratch_dir.h"

namespace platter::img {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests
namespace fs = std::filesystem;

class BackingNames : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(call(run_create, {"create", "-q", "-f", "qcow2", at("base"), "1M"}), 0);
    std::ofstream(at("source")) << std::string(65536, 's');
  }
  std::string at(const char* name) const { return dir_ / name; }
  std::string contents(const char* name) const {
    std::ifstream file(at(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const ScratchDir dir_;
};

TEST_F(BackingNames, AnOverlayIsMadeWhileItsBaseIsInUse) {
  auto executor = Executor::create();
  ASSERT_TRUE(executor);
  OpenRequest request;
  request.filename = at("base");
  request.format = "qcow2";
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto user = (*executor)->block_on([&] { return open_node(request); });
  ASSERT_TRUE(user);
  EXPECT_EQ(
      call(run_create, {"create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", at("top")}), 0);
  EXPECT_TRUE(fs::exists(at("top")));
  auto closed = (*executor)->block_on([&] { return user->detach(); });
  EXPECT_TRUE(closed);
}

TEST_F(BackingNames, AnImageDoesNotOverwriteItsOwnBase) {
  const std::string before = contents("base");
  for (const std::string& name :
       {at("base"), at("./base"),
        at("../") + fs::path(dir_.path()).filename().string() + "/base"}) {
    EXPECT_EQ(
        call(run_create, {"create", "-q", "-f", "qcow2", "-b", at("base"), "-F", "qcow2", name}),
        1);
    EXPECT_EQ(call(run_convert,
                   {"convert", "-O", "qcow2", "-B", at("base"), "-F", "qcow2", at("source"), name}),
              1);
    EXPECT_EQ(contents("base"), before);
  }
}

TEST_F(BackingNames, AnImageDoesNotOverwriteWhatItsBaseStandsOn) {
  ASSERT_EQ(
      call(run_create, {"create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", at("over")}),
      0);
  fs::create_hard_link(at("base"), at("second name"));
  const std::string before = contents("base");
  const std::string over = contents("over");
  for (const char* name : {"base", "second name"}) {
    for (const std::vector<std::string>& words :
         {std::vector<std::string>{"create", "-q", "-f", "qcow2", "-b", at("over"), "-F", "qcow2",
                                   at(name)},
          {"convert", "-O", "qcow2", "-B", at("over"), "-F", "qcow2", at("source"), at(name)}}) {
      EXPECT_EQ(call(words[0] == "create" ? run_create : run_convert, words), 1);
      EXPECT_EQ(contents("base"), before);
    }
  }
  for (const char* backing : {"base", "over"}) {
    for (const char* data : {"base", "second name"}) {
      const std::string option = "data_file=" + at(data);
      EXPECT_EQ(call(run_create, {"create", "-q", "-f", "qcow2", "-o", option, "-b", at(backing),
                                  "-F", "qcow2", at("new")}),
                1);
      EXPECT_EQ(call(run_convert, {"convert", "-O", "qcow2", "-o", option, "-B", at(backing), "-F",
                                   "qcow2", at("source"), at("new")}),
                1);
      EXPECT_EQ(contents("base"), before);
      EXPECT_FALSE(fs::exists(at("new")));
    }
  }
  EXPECT_EQ(contents("over"), over);
}

TEST_F(BackingNames, ADataFileThatTheBaseNeedsIsKept) {
  ASSERT_EQ(
      call(run_create, {"create", "-q", "-f", "qcow2", "-o",
                        "preallocation=falloc,data_file=" + at("data"), at("with data"), "1M"}),
      0);
  std::ofstream(at("data")) << std::string(1 << 20, 'd');
  const std::string before = contents("data");
  const std::vector<std::string> base{"-b", at("with data"), "-F", "qcow2"};
  std::vector<std::string> words{"create", "-q", "-f", "qcow2"};
  words.insert(words.end(), base.begin(), base.end());
  std::vector<std::string> over = words;
  over.push_back(at("data"));
  EXPECT_EQ(call(run_create, over), 1);
  words.insert(words.end(), {"-o", "data_file=" + at("data"), at("new")});
  EXPECT_EQ(call(run_create, words), 1);
  EXPECT_EQ(contents("data"), before);
}

TEST_F(BackingNames, ASourceIsNotTheTargetsDataFile) {
  const std::string before = contents("source");
  fs::create_hard_link(at("source"), at("second name"));
  for (const char* data : {"source", "second name"}) {
    for (const char* share : {"-q", "-U"}) {
      EXPECT_EQ(call(run_convert, {"convert", share, "-f", "raw", "-O", "qcow2", "-o",
                                   "data_file=" + at(data), at("source"), at("new")}),
                1);
      EXPECT_EQ(contents("source"), before);
    }
  }
}

TEST_F(BackingNames, ABaseOfNoUseIsSeenBeforeTheTargetIsTouched) {
  std::ofstream(at("old")) << "old contents";
  for (const auto& [base, format] :
       {std::pair{"nofile", "raw"}, {"source", "qcow2"}, {"base", "foo"}}) {
    for (const char* target : {"old", "new"}) {
      EXPECT_EQ(call(run_convert, {"convert", "-O", "qcow2", "-B", base, "-F", format, at("source"),
                                   at(target)}),
                1);
    }
    EXPECT_EQ(contents("old"), "old contents");
    EXPECT_FALSE(fs::exists(at("new")));
  }
}

// The target cannot be written: its size is beyond what the process may have.
TEST_F(BackingNames, AFileThatCouldNotBeFinishedGoesIfItIsNew) {
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 300 << 10, .rlim_max = old.rlim_max};
  std::ofstream(at("old")) << "old contents";
  std::ofstream(at("big")) << std::string(300 << 10, 'b');
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (const char* target : {"old", "new"}) {
    EXPECT_EQ(call(run_convert, {"convert", "-O", "qcow2", at("big"), at(target)}), 1);
    EXPECT_EQ(call(run_create,
                   {"create", "-q", "-f", "qcow2", "-o", "preallocation=full", at(target), "1M"}),
              1);
    EXPECT_EQ(call(run_create, {"create", "-q", "-f", "qcow2", "-o",
                                "preallocation=full,data_file=" + at("data"), at(target), "1M"}),
              1);
  }
  EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, ignored);
  EXPECT_EQ(contents("old"), "old contents");
  EXPECT_FALSE(fs::exists(at("new")));
  EXPECT_FALSE(fs::exists(at("data")));
}

}  // namespace
}  // namespace platter::img

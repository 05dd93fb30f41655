// create, convert and dd where a file is already: it is replaced by a whole image or stays as it
// was.
#include "tools/img/new_image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tools/img/commands.h"
#include "unit/img/call.h"
#include "unit/qcow2/engine_support.h"
#include "unit/scratch_dir.h"

namespace platter::img {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;
namespace fs = std::filesystem;

constexpr const char* kOld = "old contents";

class NewImageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(fs::create_directory(dir_));
    std::ofstream(source()) << std::string(kSourceSize, 's');
  }
  static constexpr std::size_t kSourceSize = 1 << 20;
  std::string source() const { return top_ / "source"; }
  std::string at(const std::string& name) const { return dir_ + "/" + name; }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_)) names.push_back(entry.path().filename());
    return names;
  }
  static std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // Every way of making an image at `target`.
  std::vector<std::vector<std::string>> ways(const std::string& target,
                                             const std::string& from) const {
    return {{"convert", "-f", "raw", from, target},
            {"convert", "-f", "raw", "-O", "qcow2", from, target},
            {"dd", "-f", "raw", "if=" + from, "of=" + target},
            {"create", "-q", "-o", "preallocation=full", target, "1M"},
            {"create", "-q", "-f", "qcow2", "-o", "preallocation=full", target, "1M"}};
  }
  static int make(const std::vector<std::string>& words) {
    return call(words[0] == "convert" ? run_convert
                : words[0] == "dd"    ? run_dd
                                      : run_create,
                words);
  }
  // Fails, in one line that does not tell how it was to be made, and leaves `target` alone.
  std::string expect_kept(const std::vector<std::string>& words, const std::string& target) {
    SCOPED_TRACE(::testing::PrintToString(words));
    std::ofstream(target) << kOld;
    const std::vector<std::string> before = files();
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(make(words), 1);
    std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(contents(target), kOld);
    EXPECT_EQ(files(), before);
    EXPECT_THAT(said, Not(HasSubstr("platter-X")));
    EXPECT_THAT(said, Not(HasSubstr(".platter-")));
    return said;
  }

  const ScratchDir top_;
  const std::string dir_ = top_ / "dir";
};

TEST_F(NewImageTest, WhatCannotBeWrittenLeavesTheOldFile) {
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 512 << 10, .rlim_max = old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (const auto& words : ways(at("old"), source())) expect_kept(words, at("old"));
  EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, ignored);
}

TEST_F(NewImageTest, AFullDiskLeavesTheOldFileAndSaysSo) {
  if (mount("tmpfs", dir_.c_str(), "tmpfs", 0, "size=640k") != 0) {
    GTEST_SKIP() << "no tmpfs can be mounted here: " << errno_text(errno);
  }
  for (const auto& words : ways(at("old"), source())) {
    EXPECT_THAT(expect_kept(words, at("old")),
                EndsWith(": No space left on device ('" + at("old") +
                         "' is as it was; removing it first would give its space)\n"));
  }
  EXPECT_EQ(umount(dir_.c_str()), 0);
}

TEST_F(NewImageTest, ASourceThatCannotBeReadLeavesTheOldFile) {
  const std::string broken =
      R"(json:{"driver":"blkdebug","image":{"driver":"file","filename":")" + source() +
      R"("},"inject-error":[{"event":"none","iotype":"read","sector":1024,"errno":5}]})";
  for (const auto& words : ways(at("old"), broken)) {
    if (words[0] != "create") expect_kept(words, at("old"));
  }
}

TEST_F(NewImageTest, AnImageInUseIsRefused) {
  std::ofstream(at("old")) << kOld;
  auto executor = Executor::create();
  ASSERT_TRUE(executor);
  OpenRequest request;
  request.filename = at("old");
  request.format = "raw";
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto user = (*executor)->block_on([&] { return open_node(request); });
  ASSERT_TRUE(user);
  for (const auto& words : ways(at("old"), source())) {
    EXPECT_THAT(expect_kept(words, at("old")),
                HasSubstr("Is another process using the image [" + at("old") + "]?"));
  }
  auto closed = (*executor)->block_on([&] { return user->detach(); });
  EXPECT_TRUE(closed);
}

TEST_F(NewImageTest, TheOldFileIsHeldUntilItIsReplaced) {
  std::ofstream(at("old")) << kOld;
  auto executor = Executor::create();
  ASSERT_TRUE(executor);
  NewImage image(at("old"));
  auto made = (*executor)->block_on([&] { return image.create("raw", 512, Options()); });
  ASSERT_TRUE(made);
  EXPECT_EQ(contents(at("old")), kOld);
  EXPECT_EQ(call(run_create, {"create", "-q", at("old"), "1k"}), 1);
  EXPECT_TRUE(image.finish({}, "create"));
  EXPECT_EQ(contents(at("old")), std::string(512, '\0'));
  EXPECT_THAT(files(), ElementsAre("old"));
}

TEST_F(NewImageTest, WhatIsNotFinishedGoes) {
  std::ofstream(at("old")) << kOld;
  auto executor = Executor::create();
  ASSERT_TRUE(executor);
  for (const char* name : {"old", "new"}) {
    NewImage image(at(name));
    auto made = (*executor)->block_on([&] { return image.create("raw", 512, Options()); });
    EXPECT_TRUE(made);
    EXPECT_EQ(files().size(), 2U);
  }
  EXPECT_THAT(files(), ElementsAre("old"));
  EXPECT_EQ(contents(at("old")), kOld);
}

TEST_F(NewImageTest, OwnerModeAndAttributesStay) {
  std::ofstream(at("old")) << kOld;
  ASSERT_EQ(chmod(at("old").c_str(), 0640), 0);
  const bool root = geteuid() == 0;
  ASSERT_TRUE(!root || chown(at("old").c_str(), 1, 2) == 0);
  const bool attributes = setxattr(at("old").c_str(), "user.platter", "label", 5, 0) == 0;
  for (const auto& words : ways(at("old"), source())) {
    ASSERT_EQ(make(words), 0);
    struct stat about{};
    ASSERT_EQ(stat(at("old").c_str(), &about), 0);
    EXPECT_GE(about.st_size, 1 << 20);
    EXPECT_EQ(about.st_mode & 07777, 0640U);
    EXPECT_TRUE(!root || (about.st_uid == 1 && about.st_gid == 2));
    char value[8] = {};
    if (attributes) {
      EXPECT_EQ(getxattr(at("old").c_str(), "user.platter", value, sizeof(value)), 5);
      EXPECT_STREQ(value, "label");
    }
  }
  EXPECT_THAT(files(), ElementsAre("old"));
}

TEST_F(NewImageTest, ALinkStaysOneAndItsImageIsReplaced) {
  fs::create_directory(at("deep"));
  std::ofstream(at("deep/old")) << kOld;
  fs::create_symlink("deep/old", at("link"));
  // The backing file's name is meant from where the link is.
  std::ofstream(at("base")) << std::string(kSourceSize, 'b');
  ASSERT_EQ(make({"convert", "-O", "qcow2", "-B", "base", "-F", "raw", source(), at("link")}), 0);
  EXPECT_TRUE(fs::is_symlink(at("link")));
  EXPECT_TRUE(contents(at("deep/old")).starts_with("QFI\xfb"));
  EXPECT_EQ(call(run_compare, {"compare", "-f", "raw", "-F", "qcow2", source(), at("link")}), 0);
  EXPECT_THAT(files(), UnorderedElementsAre("deep", "link", "base"));
  expect_kept({"create", "-q", at("link"), "9E"}, at("link"));
}

TEST_F(NewImageTest, AFileOfSeveralNamesKeepsThem) {
  std::ofstream(at("old")) << kOld;
  fs::create_hard_link(at("old"), at("other"));
  for (const auto& words : ways(at("old"), source())) {
    ASSERT_EQ(make(words), 0);
    EXPECT_EQ(contents(at("old")), contents(at("other")));
  }
  EXPECT_THAT(files(), UnorderedElementsAre("old", "other"));
}

TEST_F(NewImageTest, ADescriptorsFileIsTheOneThatIsWritten) {
  std::ofstream(at("old")) << kOld;
  const UniqueFd fd(open(at("old").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(fd);
  ASSERT_EQ(make({"convert", source(), "/dev/fd/" + std::to_string(fd.get())}), 0);
  struct stat about{};
  ASSERT_EQ(fstat(fd.get(), &about), 0);
  EXPECT_EQ(about.st_size, static_cast<off_t>(kSourceSize));
}

TEST_F(NewImageTest, AnExternalDataFileIsReplacedWithItsImage) {
  std::ofstream(at("data")) << kOld;
  std::ofstream(at("old")) << kOld;
  const std::string option = "data_file=" + at("data");
  ASSERT_EQ(make({"convert", "-O", "qcow2", "-o", option, source(), at("old")}), 0);
  EXPECT_EQ(contents(at("data")), contents(source()));
  EXPECT_EQ(call(run_compare, {"compare", "-f", "raw", "-F", "qcow2", source(), at("old")}), 0);
  EXPECT_THAT(files(), UnorderedElementsAre("old", "data"));

  std::ofstream(at("data")) << kOld;
  expect_kept({"convert", "-f", "raw", "-O", "qcow2", "-o", option + ",preallocation=foo", source(),
               at("old")},
              at("old"));
  EXPECT_EQ(contents(at("data")), kOld);
  for (const char* target : {"old", "new"}) {
    NewImage image(at(target));
    auto executor = Executor::create();
    Options options;
    options.set("data_file", at("data"));
    auto made =
        (*executor)->block_on([&] { return image.create("qcow2", 1 << 20, std::move(options)); });
    EXPECT_TRUE(made);
    const Result<void> end = image.finish(fail(EIO, "broken"), "create");
    EXPECT_FALSE(end);
    EXPECT_EQ(contents(at("data")), kOld);
  }
  EXPECT_THAT(files(), UnorderedElementsAre("old", "data"));
  expect_kept({"create", "-q", "-f", "qcow2", "-o", "data_file=" + at("./old"), at("old"), "1M"},
              at("old"));
}

}  // namespace
}  // namespace platter::img

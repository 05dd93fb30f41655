// Copying between files without passing the bytes through memory.
#include <fcntl.h>

#include "block/adapters/posix_file.h"
#include "block/adapters/splice.h"
#include "block/node/graph.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

class FileCopy : public ::testing::Test {
 protected:
  void SetUp() override {
    auto executor = Executor::create();
    ASSERT_TRUE(executor);
    executor_ = std::move(*executor);
  }
  Edge open(const std::string& path, bool read_only) {
    OpenRequest request;
    request.options = filename_options(path);
    request.options.set("driver", "file");
    request.flags.read_only = read_only;
    request.permissions = read_only ? Permissions::reader() : Permissions::writer();
    Result<Edge> edge = executor_->block_on([&] { return open_node(request); });
    EXPECT_TRUE(edge) << edge.error().message();
    return std::move(*edge);
  }
  Result<void> copy(Edge& from, Edge& to, std::uint64_t source, std::uint64_t target,
                    std::uint64_t length, CopyFlags flags = {}) {
    return executor_->block_on([&] { return to->copy_from(*from, source, target, length, flags); });
  }
  void close(Edge& edge) {
    EXPECT_TRUE(executor_->block_on([&] { return edge.detach(); }));
  }
  std::unique_ptr<Executor> executor_;
};

TEST_F(FileCopy, WithinOneFileSystem) {
  const ScratchDir dir;
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += static_cast<char>(i % 251);
  write_file(dir / "from", text);
  write_file(dir / "to", std::string(150'000, 'x'));
  Edge from = open(dir / "from", true);
  Edge to = open(dir / "to", false);
  const Result<void> copied = copy(from, to, 1000, 5000, 90'000);
  if (!copied && copied.error().code() == ENOTSUP) {
    close(from);
    close(to);
    GTEST_SKIP() << "this file system copies nothing by itself";
  }
  EXPECT_TRUE(copied) << error_of(copied);
  // Whole blocks: a reflink where the file system has them.
  EXPECT_TRUE(copy(from, to, 0, 98'304, 40'960));
  EXPECT_TRUE(read_file(dir / "to") == std::string(5000, 'x') + text.substr(1000, 90'000) +
                                           std::string(3304, 'x') + text.substr(0, 40'960) +
                                           std::string(150'000 - 98'304 - 40'960, 'x'));
  close(from);
  close(to);
}

TEST_F(FileCopy, BetweenFileSystemsTheCallerMustReadAndWrite) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm";
  const ScratchDir here("/tmp");
  const ScratchDir there("/dev/shm");
  write_file(here / "from", std::string(10'000, 'a'));
  write_file(there / "to", std::string(10'000, 'b'));
  Edge from = open(here / "from", true);
  Edge to = open(there / "to", false);
  const Result<void> copied = copy(from, to, 0, 0, 10'000);
  // Either the kernel copies across, or it is left to the caller; never half of it silently.
  if (copied) {
    EXPECT_EQ(read_file(there / "to"), std::string(10'000, 'a'));
  } else {
    EXPECT_EQ(copied.error().code(), ENOTSUP);
    EXPECT_EQ(copy(from, to, 0, 0, 4096).error().code(), ENOTSUP);
  }
  close(from);
  close(to);
}

TEST_F(FileCopy, PlainlyWithoutSharingBlocks) {
  const CopyFlags plain{.may_share = false};
  const ScratchDir dir;
  std::string text;
  for (int i = 0; i < 3'000'000; ++i) text += static_cast<char>(i % 251);
  write_file(dir / "from", text);
  write_file(dir / "to", std::string(10'000, 'x'));
  Edge from = open(dir / "from", true);
  Edge to = open(dir / "to", false);
  const Result<void> copied = copy(from, to, 1001, 5003, 1'000'000, plain);
  EXPECT_TRUE(copied) << error_of(copied);
  EXPECT_EQ(to->size(), 1'005'003U);
  EXPECT_TRUE(read_file(dir / "to") == std::string(5003, 'x') + text.substr(1001, 1'000'000));
  // What would keep the executor from its other work.
  EXPECT_EQ(copy(from, to, 0, 0, 2'000'000, plain).error().code(), ENOTSUP);
  close(from);
  close(to);
}

TEST_F(FileCopy, APipeGivesNothingLeftOverFromAFailedCopy) {
  const ScratchDir dir;
  write_file(dir / "from", std::string(100'000, 'a') + std::string(100'000, 'b'));
  write_file(dir / "to", "");
  const UniqueFd from(::open((dir / "from").c_str(), O_RDONLY));
  const UniqueFd to(::open((dir / "to").c_str(), O_WRONLY));
  EXPECT_EQ(splice_range(from.get(), 0, from.get(), 0, 50'000), EBADF);  // not open for writing
  EXPECT_EQ(splice_range(from.get(), 100'000, to.get(), 0, 50'000), 0);
  EXPECT_TRUE(read_file(dir / "to") == std::string(50'000, 'b'));
  // Behind the end there is nothing to copy.
  EXPECT_EQ(splice_range(from.get(), 150'000, to.get(), 0, 100'000), ENOTSUP);
}

}  // namespace
}  // namespace platter

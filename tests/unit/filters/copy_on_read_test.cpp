// The copy-on-read filter over a qcow2 overlay in memory.
#include "block/adapters/memory.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace platter::testing;

constexpr std::uint64_t kCluster = 64 << 10;
constexpr std::uint64_t kSize = 16 * kCluster;

class CopyOnReadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    make_memory_disk("cor_base", kSize);
    make_memory_disk("cor_top", 0);
    const std::vector<std::byte> data = bytes_of(4 * kCluster, 1);
    find_memory_disk("cor_base")->write(0, IoVec::of_const(data));
    Options options;
    options.set("backing_file", "memory:cor_base");
    options.set("backing_fmt", "raw");
    const Result<void> created =
        run([&] { return create_image("qcow2", "memory:cor_top", kSize, options); });
    ASSERT_OK(created);
  }
  void TearDown() override {
    remove_memory_disk("cor_base");
    remove_memory_disk("cor_top");
  }

  // Opens the filter, runs `use` with its node, and closes it.
  template <class Use>
  void with_filter(bool read_only, Use&& use,
                   std::string_view below = "file.driver=qcow2,file.file.filename=memory:cor_top") {
    OpenRequest request;
    request.options = *Options::parse_keyval("driver=copy-on-read," + std::string(below));
    request.flags.read_only = read_only;
    request.permissions = read_only ? Permissions::reader() : Permissions::writer();
    auto executor = Executor::create();
    Result<Edge> edge = (*executor)->block_on([&] { return open_node(request); });
    ASSERT_OK(edge);
    use(**executor, **edge);
    const Result<void> closed = (*executor)->block_on([&] { return edge->detach(); });
    EXPECT_OK(closed);
  }

  static std::vector<std::byte> read(Executor& executor, BlockNode& node, std::uint64_t offset,
                                     std::size_t length) {
    std::vector<std::byte> bytes(length);
    const Result<void> done =
        executor.block_on([&] { return node.read(offset, IoVec(std::span(bytes))); });
    EXPECT_OK(done);
    return bytes;
  }
  static Extent extent(Executor& executor, BlockNode& node, std::uint64_t offset) {
    const Result<Extent> found =
        executor.block_on([&] { return node.extent(offset, kSize - offset); });
    EXPECT_OK(found);
    return *found;
  }
  static std::vector<std::byte> base_bytes(std::uint64_t offset, std::size_t length) {
    const std::vector<std::byte> all = bytes_of(4 * kCluster, 1);
    return {all.begin() + static_cast<std::ptrdiff_t>(offset),
            all.begin() + static_cast<std::ptrdiff_t>(offset + length)};
  }
};

TEST_F(CopyOnReadTest, KeepsTheWholeClustersOfWhatIsRead) {
  with_filter(false, [](Executor& executor, BlockNode& node) {
    EXPECT_EQ(read(executor, node, kCluster + 5000, 300), base_bytes(kCluster + 5000, 300));
    const Extent before = extent(executor, node, 0);
    EXPECT_EQ(before.kind, ExtentKind::kUnallocated);
    EXPECT_EQ(before.length, kCluster);
    const Extent kept = extent(executor, node, kCluster);
    EXPECT_EQ(kept.kind, ExtentKind::kData);
    EXPECT_EQ(kept.length, kCluster);
  });
  // What was kept no longer depends on the backing disk.
  find_memory_disk("cor_base")->zero(0, kSize);
  with_filter(true, [](Executor& executor, BlockNode& node) {
    EXPECT_EQ(read(executor, node, kCluster, kCluster), base_bytes(kCluster, kCluster));
  });
}

TEST_F(CopyOnReadTest, LeavesWhatTheImageHolds) {
  with_filter(false, [](Executor& executor, BlockNode& node) {
    const std::vector<std::byte> mine = filled(kCluster, 7);
    const Result<void> written =
        executor.block_on([&] { return node.write(kCluster, IoVec::of_const(mine)); });
    EXPECT_OK(written);
    std::vector<std::byte> expected = base_bytes(0, 3 * kCluster);
    std::copy(mine.begin(), mine.end(), expected.begin() + kCluster);
    EXPECT_EQ(read(executor, node, 0, 3 * kCluster), expected);
    EXPECT_EQ(extent(executor, node, 0).kind, ExtentKind::kData);
    EXPECT_EQ(extent(executor, node, 3 * kCluster).kind, ExtentKind::kUnallocated);
  });
}

TEST_F(CopyOnReadTest, KeepsZeroesAsZeroes) {
  with_filter(false, [](Executor& executor, BlockNode& node) {
    EXPECT_EQ(read(executor, node, 8 * kCluster, kCluster), filled(kCluster, 0));
    EXPECT_EQ(extent(executor, node, 8 * kCluster).kind, ExtentKind::kZero);
  });
}

// Nothing is kept, or given out, of what nobody can say whether the image holds it.
TEST_F(CopyOnReadTest, TellsThatItCannotBeSaidWhatTheImageHolds) {
  for (const char* skip : {"0", "1"}) {
    SCOPED_TRACE(skip);
    const std::string below =
        std::string(
            "file.driver=blkdebug,file.image.driver=qcow2,"
            "file.image.file.filename=memory:cor_top,file.inject-error.0.event=none,"
            "file.inject-error.0.iotype=block-status,file.inject-error.0.errno=5,"
            "file.inject-error.0.count=1,file.inject-error.0.skip=") +
        skip;
    const auto use = [](Executor& executor, BlockNode& node) {
      std::vector<std::byte> bytes = filled(512, 9);
      const Result<void> failed =
          executor.block_on([&] { return node.read(kCluster, IoVec(std::span(bytes))); });
      ASSERT_FALSE(failed);
      EXPECT_EQ(failed.error().code(), EIO);
      const Extent after = extent(executor, node, kCluster);
      EXPECT_EQ(after.kind, ExtentKind::kUnallocated);
      EXPECT_EQ(read(executor, node, kCluster, 512), base_bytes(kCluster, 512));
      EXPECT_EQ(extent(executor, node, kCluster).kind, ExtentKind::kData);
    };
    with_filter(false, use, below);
    SetUp();
  }
}

TEST_F(CopyOnReadTest, OnlyReadsWhenItMustNotWrite) {
  with_filter(true, [](Executor& executor, BlockNode& node) {
    EXPECT_EQ(read(executor, node, kCluster, 512), base_bytes(kCluster, 512));
    EXPECT_EQ(extent(executor, node, kCluster).kind, ExtentKind::kUnallocated);
  });
}

}  // namespace
}  // namespace platter

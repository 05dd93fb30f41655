// raw: windows, sizes, growth, extents, creation and measuring.
#include <filesystem>
#include <fstream>

#include "block/adapters/memory.h"
#include "block/exec/executor_thread.h"
#include "unit/node/support.h"
#include "unit/scratch_dir.h"

namespace platter {
namespace {

using namespace testing;

Result<Edge> open(std::string_view options, Permissions permissions = Permissions::reader()) {
  OpenRequest request;
  request.options = *Options::parse_keyval(options);
  request.permissions = permissions;
  return run([&] { return open_node(request); });
}
Result<void> close(Edge& edge) {
  return run([&] { return edge.detach(); });
}

class Raw : public ::testing::Test {
 protected:
  void SetUp() override { disk_ = make_memory_disk("r", 1000); }
  void TearDown() override { remove_memory_disk("r"); }
  std::shared_ptr<MemoryDisk> disk_;
};

TEST_F(Raw, DisksAreWholeSectors) {
  disk_->write(0, IoVec::of_const(filled(1000, 1)));
  auto edge =
      open("driver=raw,read-only=off,file.driver=memory,file.name=r", Permissions::writer());
  ASSERT_OK(edge);
  EXPECT_EQ((*edge)->size(), 1024U);
  auto expected = filled(1024, 1);
  std::fill_n(expected.begin() + 1000, 24, std::byte{0});
  EXPECT_EQ(read_bytes(**edge, 0, 1024), expected);
  auto extent = run([&] { return (*edge)->extent(0, 4096); });
  ASSERT_OK(extent);
  EXPECT_EQ(extent->length, 1000U);
  extent = run([&] { return (*edge)->extent(1010, 4096); });
  ASSERT_OK(extent);
  EXPECT_EQ(extent->kind, ExtentKind::kZero);
  EXPECT_EQ(extent->length, 14U);
  EXPECT_EQ(extent->host_offset, 1010U);
  EXPECT_OK(write_bytes(**edge, 1000, filled(24, 2)));
  EXPECT_FALSE(write_bytes(**edge, 1024, filled(1, 2)));
  EXPECT_OK(close(*edge));
}

TEST_F(Raw, DiscardsToTheEndOfItsLastSector) {
  disk_->write(0, IoVec::of_const(filled(1000, 1)));
  auto edge = open("driver=raw,read-only=off,discard=unmap,file.driver=memory,file.name=r",
                   Permissions::writer());
  ASSERT_OK(edge);
  // What lies behind the end of the file alone is nothing to give up.
  EXPECT_OK(run([&] { return (*edge)->discard(1000, 24); }));
  EXPECT_EQ(read_bytes(**edge, 512, 488), filled(488, 1));
  EXPECT_OK(run([&] { return (*edge)->discard(512, 512); }));
  EXPECT_EQ(read_bytes(**edge, 512, 488), filled(488, 0));
  EXPECT_EQ(read_bytes(**edge, 0, 512), filled(512, 1));
  EXPECT_EQ(disk_->size(), 1000U);
  EXPECT_OK(close(*edge));
}

// A disk whose file ends within its last sector grows with its space, and that sector is written
// to meanwhile.
class RawGrowth : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(path_).close();
    std::filesystem::resize_file(path_, 1000);
    auto thread = ExecutorThread::start();
    ASSERT_OK(thread);
    writer_ = std::move(*thread);
    auto edge = open("driver=raw,read-only=off,file.driver=file,file.filename=" + path_,
                     Permissions::writer());
    ASSERT_OK(edge);
    edge_ = std::move(*edge);
  }
  void TearDown() override { EXPECT_OK(close(edge_)); }

  // Whether the growth was cancelled is `cancel`.
  void grow_beside_a_write(Preallocation preallocation, bool cancel) {
    std::atomic<bool> cancelled{false};
    bool written = false;
    const ResizeProgress progress = [&](std::uint64_t, std::uint64_t) {
      if (std::exchange(written, true)) return;
      auto writing = [&] { return edge_->write(512, IoVec::of_const(sector_)); };
      EXPECT_OK(run_blocking(writer_->executor(), writing));
      auto flushing = [&] { return edge_->flush(); };
      EXPECT_OK(run_blocking(writer_->executor(), flushing));
      cancelled = cancel;
    };
    const ResizeRequest grow{.size = edge_->size() + 2 * kMiB,
                             .preallocation = preallocation,
                             .cancelled = &cancelled,
                             .progress = &progress};
    const auto resized = run([&] { return edge_->resize(grow); });
    EXPECT_EQ(resized.has_value(), !cancel) << message_of(resized);
    EXPECT_TRUE(written);
    EXPECT_EQ(read_bytes(*edge_, 512, 512), sector_);
  }

  const ScratchDir dir_;
  const std::string path_ = dir_ / "disk";
  const std::vector<std::byte> sector_ = filled(512, 7);
  std::unique_ptr<ExecutorThread> writer_;
  Edge edge_;
};

TEST_F(RawGrowth, ThatIsCancelledLeavesWhatWasWrittenMeanwhile) {
  grow_beside_a_write(Preallocation::kFull, true);
  EXPECT_EQ(edge_->size(), 1024U);
}

TEST_F(RawGrowth, LeavesWhatWasWrittenMeanwhile) {
  for (const auto preallocation : {Preallocation::kFull, Preallocation::kFalloc}) {
    grow_beside_a_write(preallocation, false);
  }
}

TEST_F(Raw, TheWindowMayChangeWhileItIsOpen) {
  disk_->write(512, IoVec::of_const(filled(488, 1)));
  auto edge = open("driver=raw,file.driver=memory,file.name=r");
  ASSERT_OK(edge);
  const auto change = [&](std::string_view window) {
    Options options = *Options::parse_keyval(window);
    auto planned = (*edge)->driver().plan_change(options);
    return planned ? run([&] { return (*planned)(); }) : Result<void>(forward_error(planned));
  };
  EXPECT_OK(change("offset=512"));
  EXPECT_EQ((*edge)->size(), 512U);
  EXPECT_EQ(read_bytes(**edge, 0, 100), filled(100, 1));
  EXPECT_FALSE(change("size=1024"));
  EXPECT_EQ((*edge)->size(), 512U);
  // What is not named stays.
  EXPECT_OK(change("offset=0,size=512"));
  EXPECT_OK(change("offset=512"));
  EXPECT_EQ((*edge)->size(), 512U);
  EXPECT_OK(close(*edge));
}

// As qemu-img 7.2 answered for a file of 1000 bytes.
TEST_F(Raw, WindowsAreCheckedAgainstTheFile) {
  const std::string base = "driver=raw,file.driver=memory,file.name=r,";
  const auto size_of = [&](std::string_view window) {
    auto edge = open(base + std::string(window));
    EXPECT_OK(edge) << window;
    const std::uint64_t size = (*edge)->size();
    EXPECT_OK(close(*edge));
    return size;
  };
  EXPECT_EQ(size_of("size=512"), 512U);
  EXPECT_EQ(size_of("offset=100"), 1024U);
  EXPECT_EQ(size_of("offset=600"), 512U);
  EXPECT_EQ(size_of("offset=1024"), 0U);
  EXPECT_EQ(size_of("offset=512,size=512"), 512U);
  const auto refused = [&](std::string_view window) {
    return message_of(open(base + std::string(window))).substr(sizeof("Could not open '': ") - 1);
  };
  EXPECT_EQ(refused("size=100"), "Specified size is not multiple of 512");
  EXPECT_EQ(refused("offset=2048"),
            "Offset (2048) cannot be greater than size of the containing file (1024)");
  EXPECT_EQ(refused("offset=512,size=1024"),
            "The sum of offset (512) and size (1024) has to be smaller or equal to the  actual "
            "size of the "
            "containing file (1024)");
}

TEST_F(Raw, AWindowReadsAndWritesItsPart) {
  disk_->resize(8192);
  auto edge = open(
      "driver=raw,read-only=off,offset=1024,size=2048,discard=unmap,file.driver=memory,file.name=r",
      Permissions::writer());
  ASSERT_OK(edge);
  ASSERT_OK(write_bytes(**edge, 0, bytes_of(2048, 1)));
  EXPECT_FALSE(write_bytes(**edge, 2000, filled(100, 1)));
  std::vector<std::byte> below(2048);
  disk_->read(1024, IoVec(std::span(below)));
  EXPECT_EQ(below, bytes_of(2048, 1));
  const auto extent = run([&] { return (*edge)->extent(100, 5000); });
  ASSERT_OK(extent);
  EXPECT_EQ(extent->offset, 100U);
  EXPECT_EQ(extent->length, 1948U);
  EXPECT_EQ(extent->host_offset, 1124U);
  EXPECT_EQ(extent->node, (*edge)->storage());
  ASSERT_OK(run([&] { return (*edge)->write_zeroes(0, 512, {}); }));
  ASSERT_OK(run([&] { return (*edge)->discard(512, 512); }));
  EXPECT_EQ(read_bytes(**edge, 0, 1024), filled(1024, 0));
  EXPECT_FALSE(run([&] { return (*edge)->resize(ResizeRequest{.size = 4096}); }));
  EXPECT_EQ(write_bytes(**edge, 0, filled(512, 0), {.compressed = true}).error().code(), ENOTSUP);
  EXPECT_OK(close(*edge));
}

TEST_F(Raw, ResizesTheFileBehindItsOffset) {
  auto edge = open("driver=raw,read-only=off,offset=512,file.driver=memory,file.name=r",
                   Permissions::writer());
  ASSERT_OK(edge);
  ASSERT_OK(run([&] { return (*edge)->resize(ResizeRequest{.size = 4096}); }));
  EXPECT_EQ((*edge)->size(), 4096U);
  EXPECT_EQ(disk_->size(), 4608U);
  EXPECT_OK(close(*edge));
}

// A format's metadata may grow a raw node below it; a guest's writes may not.
TEST_F(Raw, GrowsOnlyAsStorage) {
  auto edge =
      open("driver=raw,read-only=off,file.driver=raw,file.file.driver=memory,file.file.name=r",
           Permissions::writer());
  ASSERT_OK(edge);
  EXPECT_FALSE(write_bytes(**edge, 4096, filled(512, 1)));
  EXPECT_OK(write_bytes(*(*edge)->storage(), 4096, filled(512, 1)));
  EXPECT_EQ(disk_->size(), 4608U);
  EXPECT_OK(close(*edge));
}

TEST_F(Raw, RightsOfItsUsersReachTheFile) {
  auto edge = open("driver=raw,read-only=off,file.driver=memory,file.name=r,file.node-name=below",
                   Permissions::writer());
  ASSERT_OK(edge);
  EXPECT_FALSE(
      run([&] { return Edge::attach(find_node("below"), "second", Permissions::writer()); }));
  ASSERT_OK(run([&] { return edge->set_permissions({.need = 0, .shared = perm::kAll}); }));
  auto second =
      run([&] { return Edge::attach(find_node("below"), "second", Permissions::writer()); });
  ASSERT_OK(second);
  // And their conflicts come back up.
  EXPECT_FALSE(run([&] { return edge->set_permissions(Permissions::writer()); }));
  EXPECT_OK(close(*second));
  EXPECT_OK(close(*edge));
}

TEST_F(Raw, CreatesAndMeasures) {
  ASSERT_OK(run([&] { return create_image("raw", "memory:r", 1000, {}); }));
  EXPECT_EQ(disk_->size(), 1024U);
  Options bad;
  bad.set("cluster_size", "64k");
  EXPECT_EQ(message_of(run([&] { return create_image("raw", "memory:r", 4096, bad); })),
            "Invalid parameter 'cluster_size'");
  EXPECT_EQ(disk_->size(), 1024U);
  EXPECT_EQ(message_of(run([&] { return create_image("nofmt", "memory:r", 0, {}); })),
            "Unknown file format 'nofmt'");
  EXPECT_EQ(message_of(run([&] { return create_image("raw", "nope:r", 0, {}); })),
            "Unknown protocol 'nope'");
  const auto measured =
      run([&] { return find_driver("raw")->measure(MeasureRequest{.options = {}, .size = 1000}); });
  ASSERT_OK(measured);
  EXPECT_EQ(measured->required, 1024U);
  EXPECT_EQ(measured->fully_allocated, 1024U);
}

}  // namespace
}  // namespace platter

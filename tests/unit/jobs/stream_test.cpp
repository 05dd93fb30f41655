// Streaming chains of qcow2 images in memory.
#include "block/jobs/stream.h"

#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kCluster = 65536;
constexpr std::uint64_t kSize = 32 * kCluster;

// "stream-base" (raw), "stream-mid" and "stream-top" over it, with data, zeroes and nothing in
// each.
class Chain {
 public:
  explicit Chain(std::string_view top_options, std::string_view mid_options = "",
                 std::uint64_t mid_size = kSize) {
    auto base = make_memory_disk("stream-base", kSize);
    auto data = pattern(20 * kCluster, 1);
    base->write(0, iov(data));
    mid_.emplace("stream-mid", mid_size,
                 "backing_file=memory:stream-base,backing_fmt=raw" + tail(mid_options));
    top_.emplace("stream-top", kSize,
                 "backing_file=memory:stream-mid,backing_fmt=qcow2" + tail(top_options));
    run([&] { return fill(*mid_, true); });
    run([&] { return fill(*top_, false); });
    shown_ = read_all();
  }
  ~Chain() { remove_memory_disk("stream-base"); }

  const MemoryImage& top() const { return *top_; }
  const MemoryImage& mid() const { return *mid_; }
  const std::vector<std::byte>& shown() const { return shown_; }

  std::vector<std::byte> read_all() const {
    std::vector<std::byte> all(kSize);
    run([&] { return read(all); });
    return all;
  }

 private:
  static std::string tail(std::string_view more) {
    return more.empty() ? std::string() : "," + std::string(more);
  }
  static Task<void> fill(const MemoryImage& image, bool middle) {
    auto opened = co_await image.open();
    CO_OK(opened);
    BlockNode& node = **opened;
    const std::uint64_t shift = middle ? 0 : 5 * kCluster + 1536;
    auto data = pattern(2 * kCluster + 512, middle ? 2 : 3);
    auto written = co_await node.write(2 * kCluster + shift, iov(data));
    CO_OK(written);
    written = co_await node.write_zeroes(14 * kCluster + shift, 2 * kCluster + 1024);
    CO_OK(written);
    auto small = pattern(512, 4);
    if (node.size() > 25 * kCluster + shift) {
      written = co_await node.write(24 * kCluster + shift, iov(small));
      CO_OK(written);
    }
    auto closed = co_await opened->detach();
    CO_OK(closed);
  }
  Task<void> read(std::vector<std::byte>& all) const {
    auto opened = co_await top_->open(false);
    CO_OK(opened);
    auto got = co_await (*opened)->read(0, iov(all));
    CO_OK(got);
    auto closed = co_await opened->detach();
    CO_OK(closed);
  }

  std::optional<MemoryImage> mid_;
  std::optional<MemoryImage> top_;
  std::vector<std::byte> shown_;
};

Task<void> stream_all(const Chain& chain) {
  auto opened = co_await chain.top().open();
  CO_OK(opened);
  BlockNode& top = **opened;
  std::uint64_t last = 0;
  StreamOptions options;
  options.progress = [&last](std::uint64_t done) { last = done; };
  auto streamed = co_await stream(top, options);
  CO_OK(streamed);
  EXPECT_EQ(last, kSize);
  EXPECT_EQ(top.backing(), nullptr);
  EXPECT_EQ(top.driver().backing_reference()->backing_filename(), "");
  const std::uint64_t leaks = co_await leaks_of(top);
  EXPECT_EQ(leaks, 0u);
  // What is zeroes everywhere has not become data.
  auto extent = co_await top.extent(30 * kCluster, kCluster);
  CO_OK(extent);
  if (top.driver().info().cluster_size <= kCluster) {
    EXPECT_EQ(extent->kind, ExtentKind::kUnallocated);
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Stream, TheWholeChain) {
  for (const char* options : {"", "compat=0.10", "cluster_size=4k", "extended_l2=on",
                              "cluster_size=2M", "data_file=memory:stream-data"}) {
    SCOPED_TRACE(options);
    const Chain chain(options, "cluster_size=4k");
    run([&] { return stream_all(chain); });
    find_memory_disk("stream-base")->zero(0, kSize);
    chain.mid().disk().zero(0, chain.mid().disk().size());
    EXPECT_EQ(chain.read_all(), chain.shown());
    remove_memory_disk("stream-data");
  }
}

Task<void> stream_to_base(const Chain& chain) {
  auto opened = co_await chain.top().open();
  CO_OK(opened);
  BlockNode& top = **opened;
  BlockNode* const base = top.backing()->backing();
  const std::weak_ptr<BlockNode> middle = top.backing()->weak_from_this();
  StreamOptions options;
  options.base = base;
  auto streamed = co_await stream(top, options);
  CO_OK(streamed);
  EXPECT_EQ(top.backing(), base);
  EXPECT_EQ(top.driver().backing_reference()->backing_filename(), "memory:stream-base");
  EXPECT_EQ(top.driver().backing_reference()->backing_format(), "raw");
  EXPECT_TRUE(middle.expired()) << "the image between them is still open";
  const std::uint64_t leaks = co_await leaks_of(top);
  EXPECT_EQ(leaks, 0u);
  // What only the base holds is left to it.
  auto extent = co_await top.extent(0, kCluster);
  CO_OK(extent);
  EXPECT_EQ(extent->kind, ExtentKind::kUnallocated);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Stream, DownToABase) {
  for (const char* options :
       {"", "compat=0.10", "cluster_size=4k", "extended_l2=on", "cluster_size=512"}) {
    for (const char* middle : {"", "cluster_size=512"}) {
      // A shorter image in the middle ends what shows of the base.
      for (const std::uint64_t size : {kSize, 17 * kCluster + 1536}) {
        SCOPED_TRACE(std::string(options) + " over " + middle);
        const Chain chain(options, middle, size);
        run([&] { return stream_to_base(chain); });
        chain.mid().disk().zero(0, chain.mid().disk().size());
        EXPECT_EQ(chain.read_all(), chain.shown());
      }
    }
  }
}

// The image `top` over stream-base, with fault points in its file.
struct Held {
  Held() {
    auto base = make_memory_disk("stream-base", kSize);
    auto data = bytes(kSize, 7);
    base->write(0, iov(data));
    image.emplace("stream-top", kSize, "backing_file=memory:stream-base,backing_fmt=raw");
  }
  ~Held() { remove_memory_disk("stream-base"); }
  std::optional<MemoryImage> image;
};

// A write comes while its cluster is on its way up.
Task<void> write_meets_stream(const MemoryImage& image, FaultEvent event) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& top = *opened->node;
  FaultPoints& points = *opened->points;
  points.suspend("up", event);
  StreamOptions options;
  options.in_flight = 1;
  auto streaming = stream(top, options);
  auto halted = points.wait_suspended("up");
  co_await halted;
  auto data = bytes(4096, 9);
  auto writing = top.write(8192, iov(data));
  EXPECT_FALSE(writing.done()) << "must wait for the cluster";
  auto zeroing = top.write_zeroes(16384, 4096);
  auto resumed = points.resume("up");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  auto zeroed = co_await zeroing;
  CO_OK(zeroed);
  auto streamed = co_await streaming;
  CO_OK(streamed);
  EXPECT_EQ(top.skip_filters().backing(), nullptr);
  for (const auto& [offset, size, value] : {std::tuple<std::uint64_t, std::size_t, int>{0, 8192, 7},
                                            {8192, 4096, 9},
                                            {12288, 4096, 7},
                                            {16384, 4096, 0},
                                            {20480, kSize - 20480, 7}}) {
    const bool same = co_await reads_as(top, offset, size, value);
    EXPECT_TRUE(same) << offset;
  }
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(Stream, WhatIsWrittenMeanwhileStays) {
  for (const FaultEvent event : {FaultEvent::kCowRead, FaultEvent::kCowWrite, FaultEvent::kWriteAio,
                                 FaultEvent::kL2Update}) {
    SCOPED_TRACE(fault_event_name(event));
    const Held held;
    run([&] { return write_meets_stream(*held.image, event); });
  }
}

// The cluster comes while a write to it is under way.
Task<void> stream_meets_write(const MemoryImage& image, FaultEvent event) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& top = *opened->node;
  FaultPoints& points = *opened->points;
  points.suspend("guest", event);
  auto data = bytes(4096, 9);
  auto writing = top.write(8192, iov(data));
  EXPECT_TRUE(points.is_suspended("guest"));
  const StreamOptions options;
  auto streaming = stream(top, options);
  auto resumed = points.resume("guest");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  auto streamed = co_await streaming;
  CO_OK(streamed);
  const bool before = co_await reads_as(top, 0, 8192, 7);
  EXPECT_TRUE(before);
  const bool wrote = co_await reads_as(top, 8192, 4096, 9);
  EXPECT_TRUE(wrote);
  const bool behind = co_await reads_as(top, 12288, kSize - 12288, 7);
  EXPECT_TRUE(behind);
  const std::uint64_t leaks = co_await leaks_of(top.skip_filters());
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(Stream, WhatIsBeingWrittenStays) {
  for (const FaultEvent event : {FaultEvent::kClusterAlloc, FaultEvent::kCowRead,
                                 FaultEvent::kCowWrite, FaultEvent::kL2Update}) {
    SCOPED_TRACE(fault_event_name(event));
    const Held held;
    run([&] { return stream_meets_write(*held.image, event); });
  }
}

Task<void> cancel_after(const MemoryImage& image, std::uint64_t bytes_done) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& top = **opened;
  std::atomic<bool> cancelled{bytes_done == 0};
  StreamOptions options;
  options.in_flight = 1;
  options.progress = [&](std::uint64_t done) {
    if (done >= bytes_done) cancelled.store(true);
  };
  options.cancelled = &cancelled;
  auto streamed = co_await stream(top, options);
  EXPECT_FALSE(streamed);
  EXPECT_EQ(streamed ? 0 : streamed.error().code(), ECANCELED);
  EXPECT_NE(top.backing(), nullptr);
  EXPECT_EQ(top.driver().backing_reference()->backing_filename(), "memory:stream-base");
  const std::uint64_t leaks = co_await leaks_of(top);
  EXPECT_EQ(leaks, 0u);
  const bool same = co_await reads_as(top, 0, kSize, 7);
  EXPECT_TRUE(same);
  auto last = co_await top.extent(kSize - kCluster, kCluster);
  CO_OK(last);
  EXPECT_EQ(last->kind, ExtentKind::kUnallocated) << "it has gone on to the end";
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Stream, StopsWhenItIsCancelled) {
  for (const std::uint64_t done : {std::uint64_t{0}, std::uint64_t{1}, kSize / 2}) {
    const Held held;
    run([&] { return cancel_after(*held.image, done); });
  }
}

Task<void> refuse(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& top = **opened;
  auto taken = co_await top.driver().snapshots()->create("one", 0, 0);
  CO_OK(taken);
  StreamOptions options;
  auto streamed = co_await stream(top, options);
  EXPECT_FALSE(streamed);
  EXPECT_NE(top.backing(), nullptr);
  options.base = &top;
  streamed = co_await stream(top, options);
  EXPECT_FALSE(streamed) << "it does not stand on itself";
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Stream, RefusesWhatWouldLoseData) {
  const Held held;
  run([&] { return refuse(*held.image); });
}

}  // namespace
}  // namespace platter::qcow2

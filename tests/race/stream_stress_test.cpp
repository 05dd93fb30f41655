// C9 with a stream beside it: the chain's data is brought up while the queues are at work.
#include "block/jobs/stream.h"
#include "race/lanes.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

Task<Result<void>> stream_whole(BlockNode& node) {
  StreamOptions options;
  options.in_flight = 4;
  auto streamed = co_await stream(node, options);
  PLATTER_CO_TRY(streamed);
  EXPECT_EQ(node.backing(), nullptr);
  co_return {};
}

Task<Result<void>> stream_to_bottom(BlockNode& node) {
  StreamOptions options;
  options.in_flight = 4;
  options.base = node.backing()->backing();
  auto streamed = co_await stream(node, options);
  PLATTER_CO_TRY(streamed);
  EXPECT_EQ(node.backing(), options.base);
  co_return {};
}

// Data with holes of some clusters, so that zeroes are met as well.
std::vector<std::byte> holey(unsigned seed) {
  auto data = pattern(kSize, seed);
  for (std::uint64_t at = 3 * kStripe; at < kSize; at += 7 * kStripe)
    std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(at), std::min(2 * kStripe, kSize - at),
                std::byte{0});
  return data;
}

Task<void> fill_with(const MemoryImage& image, std::vector<std::byte>& data) {
  auto opened = co_await image.open();
  CO_OK(opened);
  auto written = co_await (*opened)->write(0, iov(data));
  CO_OK(written);
  ZeroFlags unmap{.may_unmap = true};
  for (std::uint64_t at = 3 * kStripe; at < kSize; at += 7 * kStripe) {
    auto zeroed = co_await (*opened)->write_zeroes(at, std::min(2 * kStripe, kSize - at), unmap);
    CO_OK(zeroed);
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

void stream_under_writers(const char* options) {
  SCOPED_TRACE(options);
  auto bottom = make_memory_disk("c9-bottom", kSize);
  auto hidden = pattern(kSize, 1);
  bottom->write(0, iov(hidden));
  const MemoryImage middle("c9-middle", kSize,
                           "cluster_size=4k,backing_file=memory:c9-bottom,backing_fmt=raw");
  auto shown = holey(2);
  run([&] { return fill_with(middle, shown); });
  for (const auto beside : {stream_whole, stream_to_bottom}) {
    const MemoryImage image(
        "c9t", kSize, std::string("backing_file=memory:c9-middle,backing_fmt=qcow2,") + options);
    play(image, "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512",
         {.before = shown, .beside = beside});
  }
  remove_memory_disk("c9-bottom");
}

TEST(C9, StreamUnderFourQueues) {
  stream_under_writers("cluster_size=4k");
  stream_under_writers("cluster_size=16k,extended_l2=on");
  stream_under_writers("cluster_size=4k,compat=0.10");
}

}  // namespace
}  // namespace platter::qcow2

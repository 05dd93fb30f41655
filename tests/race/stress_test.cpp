// C9 and C16: stress with seeds.
#include <chrono>
#include <iostream>

#include "race/lanes.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

// New images with new seeds, for `share` of the time that long runs are given.
void play_long(std::string_view create_options, std::string_view open_options, double share) {
  using Clock = std::chrono::steady_clock;
  const unsigned seconds = stress_seconds();
  unsigned seed = from_environment("PLATTER_SEED", 1);
  unsigned rounds = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds * share);
  for (; Clock::now() < end && !::testing::Test::HasFailure(); ++seed, ++rounds) {
    const MemoryImage image("c9", kSize, create_options);
    play(image, open_options, {.queues = 8, .steps = 150, .seed = seed});
  }
  std::cout << fmt::format("{} seeds in {:.0f} s\n", rounds, seconds * share);
  EXPECT_GT(rounds, 0u);
}

constexpr std::string_view kTwoSlices =
    "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024";

TEST(C9, FourQueuesOnTinyCaches) {
  MemoryImage image("c9", kSize, "cluster_size=4k");
  play(image, kTwoSlices);
}

TEST(C9, FourQueuesOverABackingFile) {
  auto backing = make_memory_disk("c9-backing", kSize);
  MemoryImage image("c9b", kSize, "cluster_size=4k,backing_file=memory:c9-backing,backing_fmt=raw");
  play(image, "discard=unmap");
  remove_memory_disk("c9-backing");
}

TEST(C9, FourQueuesOnSubclusters) {
  auto backing = make_memory_disk("c9-backing", kSize);
  MemoryImage image(
      "c9s", kSize,
      "cluster_size=16k,extended_l2=on,backing_file=memory:c9-backing,backing_fmt=raw");
  play(image, kTwoSlices);
  remove_memory_disk("c9-backing");
}

TEST(C9, FourQueuesOnAnExternalDataFile) {
  MemoryImage image("c9d", kSize, "cluster_size=4k,data_file=memory:c9-data,data_file_raw=on");
  play(image, "discard=unmap");
  remove_memory_disk("c9-data");
}

TEST(C9, EightQueuesOnTinyCachesForLong) { play_long("cluster_size=4k", kTwoSlices, 1.0); }

TEST(C9, EightQueuesOnTheSmallestClustersForLong) {
  play_long("cluster_size=512,refcount_bits=64", kTwoSlices, 0.25);
}

TEST(C9, EightQueuesOnSubclustersOverABackingFileForLong) {
  auto backing = make_memory_disk("c9-backing", kSize);
  play_long("cluster_size=16k,extended_l2=on,backing_file=memory:c9-backing,backing_fmt=raw",
            kTwoSlices, 0.25);
  remove_memory_disk("c9-backing");
}

TEST(C9, EightQueuesWithLazyRefcountsForLong) {
  play_long("cluster_size=4k,lazy_refcounts=on", kTwoSlices, 0.25);
}

// Unaligned heads and tails beside aligned writes: the file below takes whole sectors of 4 KiB
// only.
TEST(C16, SectorsThatAreSharedByUnalignedWritesLoseNothing) {
  make_memory_disk("c16", 0);
  MemoryImage image("c16", kSize, "cluster_size=16k");
  play(image,
       "file.driver=memory,file.name=c16,file.request-alignment=4096,file.memory-alignment=512",
       {.steps = 200});
}

}  // namespace
}  // namespace platter::qcow2

// A safe rebase of version 2, which has no zero clusters: zeroes that nothing below made stay
// zeroes.
#include <gtest/gtest.h>

#include "tools/img/commands.h"
#include "unit/img/call.h"
#include "unit/qcow2/engine_support.h"

namespace platter::img::rebase_zeroes {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kMany = std::uint64_t{1} << 20;

// On what it stood on, of `below` bytes (0: on nothing), all of the disk behind reads as zeroes.
void expect_kept(std::uint64_t below) {
  std::string stands_on = "compat=0.10";
  if (below != 0) {
    make_memory_disk("rebase-old", below);
    stands_on += ",backing_file=memory:rebase-old,backing_fmt=raw";
  }
  const MemoryImage image("rebase-top", kMany, stands_on);
  auto other = make_memory_disk("rebase-new", kMany);
  auto data = filled(4096, 0xaa);
  other->write(kMany / 2 + 512, iov(data));
  EXPECT_EQ(call(run_rebase, {"rebase", "-f", "qcow2", "-b", "memory:rebase-new", "-F", "raw",
                              image.filename()}),
            0);
  platter::testing::run([&]() -> Task<void> {
    auto node = co_await image.open(false);
    CO_OK(node);
    const bool zero = co_await reads_as(**node, 0, kMany, 0);
    EXPECT_TRUE(zero);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  remove_memory_disk("rebase-new");
  if (below != 0) remove_memory_disk("rebase-old");
}

TEST(RebaseZeroes, BehindAShorterBackingFileStay) { expect_kept(kMany / 4); }

TEST(RebaseZeroes, OnNothingStay) { expect_kept(0); }

// Zeroes that are detected are not written.
TEST(RebaseZeroes, OfAnImageThatDetectsThemAreNotGivenUp) {
  const MemoryImage image("rebase-detects", kMany, "compat=0.10");
  auto data = filled(4096, 0xaa);
  make_memory_disk("rebase-data", kMany)->write(0, iov(data));
  EXPECT_EQ(call(run_rebase, {"rebase", "--image-opts", "-b", "memory:rebase-data", "-F", "raw",
                              "driver=qcow2,detect-zeroes=on,file.filename=" + image.filename()}),
            1);
  platter::testing::run([&]() -> Task<void> {
    auto node = co_await image.open(false);
    CO_OK(node);
    EXPECT_EQ((*node)->backing(), nullptr);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  remove_memory_disk("rebase-data");
}

}  // namespace
}  // namespace platter::img::rebase_zeroes

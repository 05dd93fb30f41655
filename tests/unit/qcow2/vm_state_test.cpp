// VM state in the active tables, as a snapshot that was applied leaves it.
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::vm_state {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kStateBytes = 150'000;
constexpr std::uint64_t kResizedDisk = 4 << 20;

Task<void> take_and_apply(BlockNode& node) {
  auto state = pattern(kStateBytes, 7);
  auto saved = co_await node.driver().vm_state()->write(0, iov(state));
  CO_OK(saved);
  SnapshotAbility& snapshots = *node.driver().snapshots();
  auto taken = co_await snapshots.create("s", 1, 1);
  CO_OK(taken);
  auto applied = co_await snapshots.apply("s");
  CO_OK(applied);
}

// What it shares with the snapshot is copied, before and behind what is written.
Task<void> write_a_part(const MemoryImage& image) {
  auto edge = co_await image.open();
  CO_OK(edge);
  BlockNode& node = **edge;
  auto before = take_and_apply(node);
  co_await before;
  VmStateAbility& vm = *node.driver().vm_state();
  auto expected = pattern(kStateBytes, 7);
  for (const std::uint64_t at : {std::uint64_t{512}, std::uint64_t{70'000}}) {
    std::vector<std::byte> part(100, std::byte{9});
    auto written = co_await vm.write(at, iov(part));
    CO_OK(written);
    std::ranges::copy(part, expected.begin() + static_cast<std::ptrdiff_t>(at));
  }
  std::vector<std::byte> now(kStateBytes);
  auto read = co_await vm.read(0, iov(now));
  CO_OK(read);
  EXPECT_TRUE(now == expected);
  auto clean = expect_clean(node);
  co_await clean;
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(VmState, APartThatIsWrittenLeavesTheRest) {
  for (const char* how :
       {"cluster_size=64k", "cluster_size=4k", "cluster_size=64k,extended_l2=on"}) {
    MemoryImage image("vm", 1 << 20, how);
    run([&] { return write_a_part(image); });
  }
}

// The backing image goes on where the disk ends.
Task<void> write_over_backing(const MemoryImage& image) {
  auto edge = co_await image.open();
  CO_OK(edge);
  VmStateAbility& vm = *(**edge).driver().vm_state();
  std::vector<std::byte> expected(kStateBytes);
  std::vector<std::byte> part(100, std::byte{9});
  auto done = co_await vm.write(70'000, iov(part));
  CO_OK(done);
  std::ranges::copy(part, expected.begin() + 70'000);
  std::vector<std::byte> now(kStateBytes, std::byte{1});
  done = co_await vm.read(0, iov(now));
  CO_OK(done);
  EXPECT_TRUE(now == expected) << "what was never written reads as zeroes";
  done = co_await edge->detach();
  CO_OK(done);
}

TEST(VmState, ShowsNothingOfALongerBackingImage) {
  auto backing = make_memory_disk("vm-backing", 8 << 20);
  auto data = filled(8 << 20, 7);
  backing->write(0, iov(data));
  for (const char* how : {"cluster_size=4k", "cluster_size=4k,compat=0.10", "cluster_size=512",
                          "cluster_size=16k,extended_l2=on"}) {
    SCOPED_TRACE(how);
    MemoryImage image("vm", 1 << 20,
                      std::string("backing_file=memory:vm-backing,backing_fmt=raw,") + how);
    run([&] { return write_over_backing(image); });
  }
  remove_memory_disk("vm-backing");
}

Task<void> resize_to(const MemoryImage& image, std::uint64_t size) {
  auto edge = co_await image.open();
  CO_OK(edge);
  BlockNode& node = **edge;
  auto before = take_and_apply(node);
  co_await before;
  auto resized = co_await node.resize(ResizeRequest{.size = size});
  CO_OK(resized);
  for (std::uint64_t at = 0; at < size; at += 1 << 20) {
    std::vector<std::byte> bytes(std::min<std::uint64_t>(size - at, 1 << 20), std::byte{1});
    auto read = co_await node.read(at, iov(bytes));
    CO_OK(read);
    EXPECT_TRUE(bytes == std::vector<std::byte>(bytes.size())) << at;
  }
  auto clean = expect_clean(node);
  co_await clean;
  // The snapshot has its own.
  auto applied = co_await node.driver().snapshots()->apply("s");
  CO_OK(applied);
  std::vector<std::byte> state(kStateBytes);
  auto loaded = co_await node.driver().vm_state()->read(0, iov(state));
  CO_OK(loaded);
  EXPECT_TRUE(state == pattern(kStateBytes, 7));
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(VmState, IsNoPartOfADiskOfAnotherSize) {
  for (const std::uint64_t size : {kResizedDisk * 3, kResizedDisk + 512, kResizedDisk / 4}) {
    MemoryImage image("vm", kResizedDisk, "cluster_size=4k");
    run([&] { return resize_to(image, size); });
  }
}

}  // namespace
}  // namespace platter::qcow2::vm_state

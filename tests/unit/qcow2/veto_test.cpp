// An image whose tables contradict one another: what would write over a table is refused, the image
// says that it is corrupt, and nothing else is written to it.
#include "block/base/bytes.h"
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kVetoCluster = 4096;

class Veto : public ::testing::Test {
 protected:
  Veto() {
    run([&] { return fill(image_); });
  }

  static Task<void> fill(const MemoryImage& image) {
    auto opened = co_await image.open();
    CO_OK(opened);
    auto data = pattern(kVetoCluster, 1);
    auto written = co_await (*opened)->write(0, iov(data));
    CO_OK(written);
    auto closed = co_await opened->detach();
    CO_OK(closed);
  }

  std::vector<std::byte> bytes(std::uint64_t offset, std::uint64_t length) const {
    std::vector<std::byte> read(length);
    image_.disk().read(offset, IoVec(std::span(read)));
    return read;
  }
  std::uint64_t word(std::uint64_t offset) const {
    return load_be<std::uint64_t>(bytes(offset, 8).data());
  }
  void store(std::uint64_t offset, std::uint64_t word) {
    std::byte stored[8];
    store_be(stored, word);
    image_.disk().write(offset, IoVec(std::span(stored)));
  }
  void set_refcount(std::uint64_t host, std::uint16_t count) {
    std::byte stored[2];
    store_be(stored, count);
    image_.disk().write(word(word(48)) + host / kVetoCluster * 2, IoVec(std::span(stored)));
  }
  std::uint64_t l1() const { return word(40); }
  std::uint64_t l2() const { return l1_offset(word(l1())); }
  std::uint64_t data() const { return word(l2()) & kOffsetMask; }

  // A write of one cluster to `offset` is refused, and nothing but the corrupt bit is changed.
  void expect_refused(std::uint64_t offset) {
    const std::vector<std::byte> then = bytes(0, image_.disk().size());
    ::testing::internal::CaptureStderr();
    run([&] { return refused(image_, offset); });
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("Marking image as corrupt: Preventing invalid"), std::string::npos) << said;
    std::vector<std::byte> now = bytes(0, image_.disk().size());
    EXPECT_EQ(now[79], std::byte{2}) << "the corrupt bit";
    now[79] = then[79];
    now.resize(then.size());
    EXPECT_EQ(now, then) << "something was written";
  }
  static Task<void> refused(const MemoryImage& image, std::uint64_t offset) {
    auto opened = co_await image.open();
    CO_OK(opened);
    BlockNode& node = **opened;
    auto data = pattern(kVetoCluster, 2);
    auto written = co_await node.write(offset, iov(data));
    EXPECT_FALSE(written);
    if (!written) {
      EXPECT_EQ(written.error().code(), EIO);
    }
    // Nor is anything else, though nothing speaks against it; not even in place.
    auto in_place = co_await node.write(0, iov(data));
    EXPECT_FALSE(in_place);
    auto other = co_await node.write(20 * kVetoCluster, iov(data));
    EXPECT_FALSE(other);
    auto zeroed = co_await node.write_zeroes(30 * kVetoCluster, kVetoCluster, ZeroFlags{});
    EXPECT_FALSE(zeroed);
    auto closed = co_await opened->detach();
    static_cast<void>(closed);
    // Once it is marked it is only read.
    auto again = co_await image.open();
    EXPECT_FALSE(again);
    auto reader = co_await image.open(false);
    CO_OK(reader);
    closed = co_await reader->detach();
    CO_OK(closed);
  }

  MemoryImage image_{"veto", 1 << 20, "cluster_size=4k"};
};

TEST_F(Veto, DataThatLiesInATable) {
  store(l2() + 8, data_entry(l1(), true));
  expect_refused(kVetoCluster);
}

TEST_F(Veto, ATableThatCountsAsFree) {
  ASSERT_LT(l2(), data());
  set_refcount(l2(), 0);
  expect_refused(kVetoCluster);
}

TEST_F(Veto, ATableThatCountsAsFreeAtTheEnd) {
  ASSERT_LT(l2(), data());
  set_refcount(l2(), 0);
  set_refcount(data(), 0);
  expect_refused(kVetoCluster);
}

}  // namespace
}  // namespace platter::qcow2

// The copy-on-read filter over a disk that becomes shorter between its answers.
#include "block/node/registry.h"
#include "unit/node/support.h"

namespace platter::copy_on_read_shrink {
namespace {

using namespace platter::testing;

constexpr std::uint64_t kCluster = 64 << 10;
constexpr std::uint64_t kSize = 4 * kCluster;

// An empty disk of which nothing is allocated; whoever asks what lies in it finds it at this size
// afterwards.
std::uint64_t size_once_asked = kSize;

class ShrinkingDriver : public Driver {
 public:
  std::uint64_t size() const override { return size_; }
  Limits limits() const override { return {}; }
  Task<Result<void>> do_read(std::uint64_t, IoVec iov, ReadFlags) override {
    iov.fill(std::byte{0});
    co_return {};
  }
  Task<Result<void>> do_write(std::uint64_t, IoVec, WriteFlags) override { co_return {}; }
  Task<Result<void>> do_write_zeroes(std::uint64_t, std::uint64_t, ZeroFlags) override {
    co_return {};
  }
  Task<Result<void>> do_flush() override { co_return {}; }
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    size_ = size_once_asked;
    co_return Extent{.offset = offset, .length = length, .kind = ExtentKind::kUnallocated};
  }

 private:
  std::uint64_t size_ = kSize;
};

Task<Result<std::unique_ptr<Driver>>> open_shrinking(OpenContext&) {
  co_return std::make_unique<ShrinkingDriver>();
}

const RegisterDriver registered_shrinking{
    DriverType{.name = "shrinking", .protocol = false, .open = open_shrinking}};

Result<void> read_beside_shrinking(std::uint64_t offset, std::size_t length, std::uint64_t size) {
  size_once_asked = size;
  OpenRequest request;
  request.options = *Options::parse_keyval("driver=copy-on-read,file.driver=shrinking");
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto edge = run([&] { return open_node(request); });
  if (!edge) return forward_error(edge);
  std::vector<std::byte> bytes(length);
  const Result<void> read = run([&] { return (*edge)->read(offset, IoVec(std::span(bytes))); });
  EXPECT_OK(close(*edge));
  return read;
}

TEST(CopyOnReadShrink, WhatIsGoneIsRefusedAsBehindTheEnd) {
  // The end may come to lie before the cluster, within it, and within what is read.
  EXPECT_EQ(message_of(read_beside_shrinking(3 * kCluster, 4096, kCluster)),
            "request of 4096 bytes at offset 196608 reaches beyond the end at 65536");
  EXPECT_EQ(message_of(read_beside_shrinking(3 * kCluster + 8192, 4096, 3 * kCluster + 512)),
            "request of 4096 bytes at offset 204800 reaches beyond the end at 197120");
  EXPECT_EQ(message_of(read_beside_shrinking(3 * kCluster, 4096, 3 * kCluster + 512)),
            "request of 4096 bytes at offset 196608 reaches beyond the end at 197120");
}

TEST(CopyOnReadShrink, WhatIsLeftIsRead) {
  EXPECT_OK(read_beside_shrinking(3 * kCluster, 512, 3 * kCluster + 512));
}

}  // namespace
}  // namespace platter::copy_on_read_shrink

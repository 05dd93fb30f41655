// An image that was opened to be read, and is then written to.
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kAutoclear = 88;     // in the header
constexpr std::byte kNobodyKnowsIt{1 << 5};  // of its first byte

Task<void> write_after_reopening(const MemoryImage& image) {
  auto opened = co_await image.open(false);
  CO_OK(opened);
  BlockNode& node = **opened;
  const auto first_byte = [&image] {
    std::byte byte{};
    image.disk().read(kAutoclear, IoVec(std::span(&byte, 1)));
    return byte;
  };
  OpenFlags flags = node.flags();
  flags.read_only = false;
  auto done = co_await reopen(node, flags);
  CO_OK(done);
  done = co_await opened->set_permissions(Permissions::writer());
  CO_OK(done);
  auto data = pattern(512, 1);
  done = co_await node.write(0, iov(data));
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  EXPECT_EQ(first_byte(), std::byte{0}) << "what it tells of need not be true any more";
  done = co_await opened->detach();
  CO_OK(done);
}

TEST(Reopen, ForWritingClearsWhatMustGoWhenOthersWrite) {
  MemoryImage image("reopen-autoclear", 1 << 20, "");
  std::byte bit = kNobodyKnowsIt;
  image.disk().write(kAutoclear, IoVec(std::span(&bit, 1)));
  run([&] { return write_after_reopening(image); });
}

Task<void> reopen_what_shows_a_snapshot(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  auto done = co_await fill(**opened, 0, 1 << 20, 1);
  CO_OK(done);
  done = co_await (*opened)->driver().snapshots()->create("s", 1, 1);
  CO_OK(done);
  done = co_await fill(**opened, 0, 1 << 20, 2);
  CO_OK(done);
  done = co_await opened->detach();
  CO_OK(done);

  opened = co_await image.open(false);
  CO_OK(opened);
  BlockNode& node = **opened;
  done = co_await node.driver().snapshots()->load("s");
  CO_OK(done);
  OpenFlags flags = node.flags();
  flags.read_only = false;
  done = co_await reopen(node, flags);
  EXPECT_FALSE(done) << "what is written would change the snapshot";
  if (!done) {
    EXPECT_NE(done.error().message().find("shows a snapshot"), std::string::npos);
  }
  EXPECT_TRUE(node.flags().read_only);
  const bool shown = co_await reads_as(node, 0, 1 << 20, 1);
  EXPECT_TRUE(shown) << "and it goes on to show it";
  done = co_await opened->detach();
  CO_OK(done);
}

TEST(Reopen, ForWritingIsRefusedWhileASnapshotIsShown) {
  MemoryImage image("reopen-snapshot", 1 << 20, "");
  run([&] { return reopen_what_shows_a_snapshot(image); });
}

}  // namespace
}  // namespace platter::qcow2

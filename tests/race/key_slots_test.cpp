// Key slots of an image while its disk fails: what is on the disk counts, not what memory knew.
#include "block/crypto/secret.h"
#include "race/race_support.h"

namespace platter::qcow2::key_slots {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests
using platter::testing::message_of;

Task<Result<void>> amend(BlockNode& node, std::string_view text) {
  const std::function<void(std::uint64_t, std::uint64_t)> untold;
  auto done = co_await node.driver().amender()->amend(options(text), false, untold);
  co_return done;
}

// The header is written, but neither the flush behind it nor a look at it succeeds.
Task<void> erase_twice(const MemoryImage& image) {
  auto opened = co_await open_watched(image, "encrypt.key-secret=one");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  auto done = co_await amend(node,
                             "encrypt.state=active,encrypt.new-secret=two,encrypt.keyslot=7,"
                             "encrypt.iter-time=0");
  CO_OK(done);
  opened->points->add({.operations = fault_op::kFlush, .skip = 0, .count = 1, .error = EIO});
  done = co_await amend(node, "encrypt.state=inactive,encrypt.keyslot=7");
  EXPECT_FALSE(done);
  opened->points->add({.operations = fault_op::kRead, .count = 1, .error = EIO});
  done = co_await amend(node, "encrypt.state=inactive,encrypt.keyslot=0");
  EXPECT_FALSE(done) << "nobody knows what is left";
  opened->points->clear_rules();
  done = co_await amend(node, "encrypt.state=inactive,encrypt.keyslot=0");
  EXPECT_NE(message_of(done).find("the only active keyslot 0"), std::string::npos)
      << message_of(done);
  auto closed = co_await opened->node.detach();
  static_cast<void>(closed);  // may tell of the flush
}

TEST(KeySlots, TheLastOneThatIsOnDiskStays) {
  ASSERT_OK(crypto::add_secret("one", crypto::SecretBytes::of(std::string_view("one"))));
  ASSERT_OK(crypto::add_secret("two", crypto::SecretBytes::of(std::string_view("two"))));
  MemoryImage image("key-slots", 1 << 20,
                    "encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=0");
  run([&] { return erase_twice(image); });
  auto opened = run([&] { return image.open(true, "encrypt.key-secret=one"); });
  ASSERT_OK(opened);
  auto closed = run([&] { return opened->detach(); });
  EXPECT_OK(closed);
  crypto::remove_secret("one");
  crypto::remove_secret("two");
}

}  // namespace
}  // namespace platter::qcow2::key_slots

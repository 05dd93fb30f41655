// Emptying an image with an external data file: data goes only once no entry on disk leads there.
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::empty_data_file {
namespace {

using namespace platter::qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kHeld = 256 << 10;

TEST(EmptyDataFile, KeepsDataThatTheTablesStillName) {
  make_memory_disk("empty-base", kMiB);
  make_memory_disk("empty-data", 0);
  const MemoryImage image("empty-top", kMiB,
                          "data_file=memory:empty-data,backing_file=memory:empty-base,"
                          "backing_fmt=raw");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto done = co_await fill(**node, 0, kHeld, 5);
    CO_OK(done);
    done = co_await node->detach();
    CO_OK(done);

    OpenRequest request;
    request.format = "qcow2";
    request.options = options("file.driver=blkdebug,file.image.filename=" + image.filename() +
                              ",file.inject-error.0.event=none,file.inject-error.0.iotype=flush");
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    node = co_await open_node(std::move(request));
    CO_OK(node);
    auto emptied = co_await (*node)->driver().backing_reference()->make_empty();
    EXPECT_FALSE(emptied);
    done = co_await node->detach();
    EXPECT_FALSE(done);
  });
  std::vector<std::byte> held(kHeld);
  find_memory_disk("empty-data")->read(0, iov(held));
  EXPECT_EQ(held, filled(kHeld, 5));
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto emptied = co_await (*node)->driver().backing_reference()->make_empty();
    CO_OK(emptied);
    const bool zero = co_await reads_as(**node, 0, kHeld, 0);
    EXPECT_TRUE(zero);
    co_await expect_clean(**node);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  find_memory_disk("empty-data")->read(0, iov(held));
  EXPECT_EQ(held, filled(kHeld, 0));
  remove_memory_disk("empty-data");
  remove_memory_disk("empty-base");
}

}  // namespace
}  // namespace platter::qcow2::empty_data_file

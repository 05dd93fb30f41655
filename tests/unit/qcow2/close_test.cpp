// Closing an image whose file fails: what an error that passes left is written, and what could not
// be written is told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests
using ::testing::ElementsAre;

// What each failure of closing says, after one write that is not flushed.
Task<std::vector<std::string>> close_after_write(const MemoryImage& image, std::string fault) {
  OpenRequest request;
  request.options = options(
      fmt::format("driver=qcow2,file.driver=blkdebug,file.image.driver=memory,file.image.name={},"
                  "file.inject-error.0.event={}",
                  image.name(), fault));
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  std::vector<std::string> told;
  auto opened = co_await open_node(std::move(request));
  EXPECT_TRUE(opened) << (opened ? "" : opened.error().message());
  if (!opened) co_return told;
  std::vector<std::byte> bytes = pattern(65536, 1);
  auto written = co_await (*opened)->write(0, iov(bytes));
  EXPECT_TRUE(written) << (written ? "" : written.error().message());
  auto closed = co_await opened->detach();
  if (!closed) {
    for (const Error::Part& part : closed.error().parts()) told.push_back(part.reason);
  }
  co_return told;
}

Task<void> expect_the_write(const MemoryImage& image) {
  auto opened = co_await image.open(false);
  CO_OK(opened);
  co_await testing::expect_clean(**opened);
  std::vector<std::byte> found(65536);
  auto read = co_await (*opened)->read(0, iov(found));
  CO_OK(read);
  EXPECT_EQ(found, pattern(65536, 1));
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Qcow2Close, WhatAnErrorThatPassesLeftIsWritten) {
  for (const char* const event : {"l2_update", "refblock_update_part", "l1_update"}) {
    SCOPED_TRACE(event);
    const MemoryImage image("close_once", kMiB, "");
    EXPECT_THAT(run([&] {
                  return close_after_write(image,
                                           fmt::format("{},file.inject-error.0.once=on", event));
                }),
                ElementsAre("Input/output error"));
    run([&] { return expect_the_write(image); });
  }
}

TEST(Qcow2Close, EachCacheThatCannotBeWrittenIsNamed) {
  const std::string tables = "Failed to flush the L2 table cache: Input/output error";
  const std::string counts = "Failed to flush the refcount block cache: Input/output error";
  const MemoryImage image("close_failing", kMiB, "");
  EXPECT_THAT(run([&] { return close_after_write(image, "flush_to_disk"); }),
              ElementsAre(tables, counts));
  EXPECT_THAT(run([&] { return close_after_write(image, "refblock_update_part"); }),
              ElementsAre(tables, counts));
  EXPECT_THAT(
      run([&] { return close_after_write(image, "l1_update,file.inject-error.0.iotype=write"); }),
      ElementsAre(tables));
}

}  // namespace
}  // namespace platter::qcow2

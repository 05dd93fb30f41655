// Helpers for tests of the qcow2 engine on disks in memory.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "block/adapters/memory.h"
#include "block/node/graph.h"
#include "unit/node/support.h"

namespace platter::qcow2::testing {

// Fails the test and leaves the coroutine when a Result has failed.
#define CO_OK(result)                                                    \
  do {                                                                   \
    EXPECT_TRUE(result) << ((result) ? "" : (result).error().message()); \
    if (!(result)) co_return;                                            \
  } while (false)

using platter::testing::filled;
using platter::testing::kMiB;
using platter::testing::run;

inline Options options(std::string_view text) { return Options::parse_keyval(text).value(); }

// A new image "memory:NAME"; removed with the object.
class MemoryImage {
 public:
  MemoryImage(std::string name, std::uint64_t size, std::string_view create_options)
      : name_(std::move(name)) {
    auto made =
        run([&] { return create_image("qcow2", filename(), size, options(create_options)); });
    EXPECT_TRUE(made) << made.error().message();
  }
  ~MemoryImage() { remove_memory_disk(name_); }
  MemoryImage(const MemoryImage&) = delete;
  MemoryImage& operator=(const MemoryImage&) = delete;

  std::string filename() const { return "memory:" + name_; }
  const std::string& name() const { return name_; }
  MemoryDisk& disk() const { return *find_memory_disk(name_); }

  Task<Result<Edge>> open(bool writable = true, std::string_view more = {}) const {
    OpenRequest request;
    request.filename = filename();
    request.format = "qcow2";
    request.options = options(more);
    request.flags.read_only = !writable;
    request.permissions = writable ? Permissions::writer() : Permissions::reader();
    return open_node(std::move(request));
  }

 private:
  std::string name_;
};

inline Task<Result<CheckResult>> check(BlockNode& node) {
  CheckRequest request;
  request.report = [](std::string_view line) { ADD_FAILURE() << line; };
  auto result = co_await node.driver().checker()->check(request);
  co_return result;
}

inline Task<void> expect_clean(BlockNode& node) {
  auto checked = co_await check(node);
  CO_OK(checked);
  EXPECT_EQ(checked->corruptions + checked->leaks + checked->check_errors, 0u);
}

inline std::vector<std::byte> pattern(std::size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  std::mt19937 random(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

inline IoVec iov(std::vector<std::byte>& bytes) { return IoVec(std::span(bytes)); }

// Writes bytes of one value.
inline Task<Result<void>> fill(BlockNode& node, std::uint64_t offset, std::size_t size, int value) {
  auto data = filled(size, value);
  auto written = co_await node.write(offset, iov(data));
  co_return written;
}

// True when the whole range reads as `value`.
inline Task<bool> reads_as(BlockNode& node, std::uint64_t offset, std::size_t size, int value) {
  auto data = filled(size, ~value);
  auto got = co_await node.read(offset, iov(data));
  co_return got&& data == filled(size, value);
}

}  // namespace platter::qcow2::testing

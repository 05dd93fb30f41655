// Helpers of the node's tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "block/exec/executor.h"
#include "block/exec/iovec.h"
#include "block/node/graph.h"
#include "block/node/node.h"

namespace platter::testing {

inline constexpr std::uint64_t kMiB = 1 << 20;  // bytes

// The thread's executor: a ring for each use would cost more than most tests.
inline Executor& executor_of_thread() {
  thread_local const std::unique_ptr<Executor> executor = std::move(Executor::create().value());
  return *executor;
}

// Runs a coroutine function's Task to its end. (A template's own thread_local would be one for each
// caller, and there can be 64 executors.)
template <class Start>
auto run(Start&& start) {
  return executor_of_thread().block_on(std::forward<Start>(start));
}

inline Result<void> close(Edge& edge) {
  return run([&] { return edge.detach(); });
}

inline std::vector<std::byte> bytes_of(std::size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  std::uint32_t state = static_cast<std::uint32_t>(seed) * 2654435761U + 1;
  for (std::byte& b : bytes) {
    state = state * 1664525U + 1013904223U;
    b = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

inline std::vector<std::byte> filled(std::size_t size, int value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

inline Result<void> write_bytes(BlockNode& node, std::uint64_t offset,
                                std::span<const std::byte> bytes, WriteFlags flags = {}) {
  return run([&] { return node.write(offset, IoVec::of_const(bytes), flags); });
}

inline std::vector<std::byte> read_bytes(BlockNode& node, std::uint64_t offset,
                                         std::size_t length) {
  std::vector<std::byte> bytes(length, std::byte{0xee});
  const Result<void> r = run([&] { return node.read(offset, IoVec(std::span(bytes))); });
  EXPECT_TRUE(r) << (r ? "" : r.error().message());
  return bytes;
}

template <class T>
std::string message_of(const Result<T>& result) {
  return result ? "(no error)" : result.error().message();
}

#define ASSERT_OK(result) ASSERT_TRUE(result) << ::platter::testing::message_of(result)
#define EXPECT_OK(result) EXPECT_TRUE(result) << ::platter::testing::message_of(result)

}  // namespace platter::testing

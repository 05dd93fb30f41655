// What tests of lying images share: an image in memory whose bytes are changed one lie at a time,
// and what users do with it, within the bounds of time and memory.
#pragma once

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <ctime>
#include <functional>

#include "block/node/node.h"
#include "unit/qcow2/image_support.h"
#include "unit/sanitized.h"

namespace platter::qcow2::testing {

using platter::testing::kSanitized;
using ::testing::HasSubstr;

inline constexpr std::uint64_t kRefcountTable = 0x10000;
inline constexpr std::uint64_t kRefcountBlock = 0x20000;
inline constexpr std::uint64_t kL1 = 0x30000;
inline constexpr std::uint64_t kL2 = 0x40000;
inline constexpr std::uint64_t kData = 0x50000;

#if defined(NDEBUG)
inline constexpr double kSeconds = kSanitized ? 60 : 2;  // 1 on the machines we know
#else
inline constexpr double kSeconds = kSanitized ? 60 : 10;  // unoptimised
#endif

inline double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}
inline std::uint64_t peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

class Hostile : public ::testing::Test {
 protected:
  void SetUp() override { use("preallocation=metadata", kMiB); }
  void TearDown() override { remove_memory_disk("hostile"); }

  void use(std::string_view options, std::uint64_t size) {
    remove_memory_disk("hostile");
    disk_ = make_memory_disk("hostile", 0);
    Options parsed = *Options::parse_keyval(options);
    auto plan = plan_create(parsed, size);
    ASSERT_OK(plan);
    header_ = plan->header;
    if (plan->encryption.method == CryptMethod::kLuks) {
      const auto key = plan->encryption.key();
      ASSERT_OK(key);
      auto volume = crypto::make_luks_volume(plan->encryption.luks, key->span());
      ASSERT_OK(volume);
      plan->encryption_header = std::move(volume->area);
    }
    const NodePtr node = make_memory_node("image", disk_);
    ASSERT_OK(run([&] { return write_image(*node, *plan); }));
  }
  void put(std::uint64_t offset, std::span<const std::byte> bytes) {
    disk_->write(offset, IoVec::of_const(bytes));
  }
  void put64(std::uint64_t offset, std::uint64_t value) {
    std::byte bytes[8];
    store_be(bytes, value);
    put(offset, bytes);
  }
  void put32(std::uint64_t offset, std::uint32_t value) {
    std::byte bytes[4];
    store_be(bytes, value);
    put(offset, bytes);
  }
  void put16(std::uint64_t offset, unsigned value) {
    std::byte bytes[2];
    store_be(bytes, static_cast<std::uint16_t>(value));
    put(offset, bytes);
  }
  void put_header() { put(0, *encode_header(header_)); }

  // Everything that users do with an image that they were given. All errors and findings, one line
  // each.
  static Task<std::string> look(Edge& edge) {
    std::string said;
    BlockNode& node = *edge;
    CheckRequest request;
    request.report = [&said](std::string_view line) {
      if (said.size() < 100000) said += "check: " + std::string(line) + "\n";
    };
    auto checked = co_await node.driver().checker()->check(request);
    if (!checked) said += "check: " + checked.error().message() + "\n";
    const FormatInfo info = node.driver().info();
    static_cast<void>(info);
    std::uint64_t offset = 0;
    for (unsigned pieces = 0; offset < node.size() && pieces < 1000; ++pieces) {
      auto extent = co_await chain_extent(node, nullptr, offset, node.size() - offset);
      if (!extent) {
        said += "map: " + extent.error().message() + "\n";
        break;
      }
      offset += extent->length;
    }
    Buffer buffer(64 << 10);
    for (offset = 0; offset < std::min<std::uint64_t>(node.size(), 4 * kMiB);) {
      const std::uint64_t n = std::min<std::uint64_t>(buffer.size(), node.size() - offset);
      const IoVec iov(buffer.span(0, n));
      auto read = co_await node.read(offset, iov);
      if (!read) said += "read: " + read.error().message() + "\n";
      offset += n;
    }
    co_return said;
  }
  static Task<std::string> open_and_look(Options options) {
    OpenRequest request;
    request.options = std::move(options);
    request.filename = "memory:hostile";
    request.format = "qcow2";
    request.flags.no_backing = true;
    auto edge = co_await open_node(std::move(request));
    if (!edge) co_return "open: " + edge.error().message() + "\n";
    std::string said = co_await look(*edge);
    auto closed = co_await edge->detach();
    if (!closed) said += "close: " + closed.error().message() + "\n";
    co_return said;
  }

  // What was said, with the bounds asserted. `options`: to open it with.
  std::string outcome(std::string_view options = {}) {
    const double start = cpu_seconds();
    const std::uint64_t memory = peak_memory();
    const std::string said = run([&] { return open_and_look(*Options::parse_keyval(options)); });
    EXPECT_LT(cpu_seconds() - start, kSeconds);
    if (!kSanitized) {
      EXPECT_LT(peak_memory() - memory, 64 * kMiB + disk_->allocated());
    }
    return said;
  }

  std::shared_ptr<MemoryDisk> disk_;
  Header header_;
};

}  // namespace platter::qcow2::testing

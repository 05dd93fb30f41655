// What the tests of virtio-blk share: a disk in memory that counts, fails and holds requests on
// demand, a device over it, and a driver.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block/adapters/memory.h"
#include "block/exec/executor_thread.h"
#include "block/node/registry.h"
#include "virtio/testing/blk_driver.h"

namespace platter::virtio {

class WatchedDisk final : public MemoryDriver {
 public:
  explicit WatchedDisk(std::uint64_t size, Limits limits = {.native_fua = true})
      : MemoryDriver(std::make_shared<MemoryDisk>(size), limits) {}

  std::atomic<unsigned> reads{0}, writes{0}, durable_writes{0}, flushes{0}, discards{0}, zeroes{0},
      unmaps{0};
  std::atomic<int> fail_with{0};           // errno for every request
  std::atomic<AsyncEvent*> held{nullptr};  // requests wait for it
  std::atomic<unsigned> waiting{0};

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    ++reads;
    auto gate = co_await pass();
    PLATTER_CO_TRY(gate);
    auto done = co_await MemoryDriver::do_read(offset, iov, flags);
    co_return done;
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    ++(flags.fua ? durable_writes : writes);
    auto gate = co_await pass();
    PLATTER_CO_TRY(gate);
    auto done = co_await MemoryDriver::do_write(offset, iov, flags);
    co_return done;
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override {
    ++zeroes;
    if (flags.may_unmap) ++unmaps;
    if (flags.fua) ++durable_writes;
    auto gate = co_await pass();
    PLATTER_CO_TRY(gate);
    auto done = co_await MemoryDriver::do_write_zeroes(offset, length, flags);
    co_return done;
  }
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    ++discards;
    auto gate = co_await pass();
    PLATTER_CO_TRY(gate);
    auto done = co_await MemoryDriver::do_discard(offset, length);
    co_return done;
  }
  Task<Result<void>> do_flush() override {
    ++flushes;
    auto gate = co_await pass();
    co_return gate;
  }

 private:
  Task<Result<void>> pass() {
    if (AsyncEvent* event = held.load()) {
      ++waiting;
      waiting.notify_all();
      co_await event->wait();
    }
    if (const int code = fail_with.load()) co_return fail_errno(code);
    co_return {};
  }
};

struct BlkFixture : ::testing::Test {
  static constexpr std::uint64_t kSize = 1u << 20;  // bytes

  explicit BlkFixture(BlkOptions options = {},
                      OpenFlags flags = {.read_only = false, .discard_unmap = true},
                      unsigned threads_wanted = 1, Limits limits = {.native_fua = true}) {
    auto driver_owned = std::make_unique<WatchedDisk>(kSize, limits);
    disk = driver_owned.get();
    node = BlockNode::create(*find_driver("memory"), std::move(driver_owned), "disk", "", flags);
    std::vector<Executor*> executors;
    for (unsigned i = 0; i < threads_wanted; ++i) {
      threads.push_back(ExecutorThread::start().value());
      executors.push_back(&threads.back()->executor());
    }
    device = BlkDevice::create(guest->memory(), *node, options, executors).value();
    device->set_reporter([this](const Error& e) {
      std::lock_guard lock(mutex);
      reported.push_back(e.message());
    });
    driver = std::make_unique<testing::BlkDriver>(*device, *guest);
  }
  ~BlkFixture() override {
    if (device) device->stop_and_wait();
  }

  void bring_up(std::uint16_t ring_size = 64) {
    ASSERT_TRUE(driver->bring_up(device->offered_features(), ring_size));
  }
  static std::vector<std::byte> pattern(std::size_t size, unsigned seed) {
    std::vector<std::byte> bytes(size);
    for (std::byte& b : bytes) {
      seed = seed * 1664525u + 1013904223u;
      b = static_cast<std::byte>(seed >> 24);
    }
    return bytes;
  }
  std::vector<std::byte> on_disk(std::uint64_t offset, std::size_t size) {
    std::vector<std::byte> bytes(size);
    disk->disk().read(offset, IoVec(std::span(bytes)));
    return bytes;
  }
  std::vector<std::string> reports() {
    std::lock_guard lock(mutex);
    return reported;
  }

  std::unique_ptr<testing::TestGuest> guest = std::make_unique<testing::TestGuest>();
  WatchedDisk* disk = nullptr;
  NodePtr node;
  std::vector<std::unique_ptr<ExecutorThread>> threads;
  std::unique_ptr<BlkDevice> device;
  std::unique_ptr<testing::BlkDriver> driver;
  std::mutex mutex;
  std::vector<std::string> reported;
};

inline constexpr std::uint8_t kOk = 0;
inline constexpr std::uint8_t kIoError = 1;
inline constexpr std::uint8_t kUnsupported = 2;

}  // namespace platter::virtio

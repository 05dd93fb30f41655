// Fuzzes the virtio-blk device from where a hostile guest sits: descriptors, rings, requests, guest
// memory and the registers of both transports, in any order the input asks for. Well-formed
// requests are among the choices, so that the device gets beyond its checks.
//
// One thread does everything: it plays the vCPU, and runs the device's executor for a few rounds
// when the input says so. Only register writes that wait for requests (reset) go through a second
// thread while the first one keeps the executor going.
#include <fuzzer/FuzzedDataProvider.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "block/adapters/memory.h"
#include "block/exec/executor.h"
#include "block/node/registry.h"
#include "virtio/testing/blk_driver.h"
#include "virtio/transport_mmio.h"
#include "virtio/transport_pci.h"

namespace platter::virtio {
namespace {

using testing::FakeLine;
using testing::FakePlatform;
using testing::MockRing;
using testing::TestGuest;

constexpr std::uint64_t kDiskSize = 64 << 10;
constexpr std::size_t kGuestSize = 256 << 10;

struct Yield {
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept { Executor::current().post(h); }
  void await_resume() const noexcept {}
};

// Takes a few rounds for a request, so that many are in flight when something else happens.
class SlowDisk final : public MemoryDriver {
 public:
  explicit SlowDisk(std::uint64_t size)
      : MemoryDriver(std::make_shared<MemoryDisk>(size), {.native_fua = true}) {}
  unsigned delay = 0;  // rounds
  bool failing = false;

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    auto waited = co_await wait(offset, iov.size());
    PLATTER_CO_TRY(waited);
    auto done = co_await MemoryDriver::do_read(offset, iov, flags);
    co_return done;
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    auto waited = co_await wait(offset, iov.size());
    PLATTER_CO_TRY(waited);
    auto done = co_await MemoryDriver::do_write(offset, iov, flags);
    co_return done;
  }
  Task<Result<void>> do_flush() override {
    auto waited = co_await wait(0, 0);
    co_return waited;
  }

 private:
  Task<Result<void>> wait(std::uint64_t offset, std::uint64_t length) {
    // The device must not let a request beyond the end through.
    if (offset > kDiskSize || length > kDiskSize - offset) std::abort();
    for (unsigned i = 0; i < delay; ++i) co_await Yield{};
    if (failing) co_return fail_errno(EIO);
    co_return {};
  }
};

Task<void> rounds(unsigned count) {
  for (unsigned i = 0; i < count; ++i) co_await Yield{};
}
Task<void> until(AsyncEvent& done) { co_await done.wait(); }
Task<void> stop(Device& device) { co_await device.stop(); }

class Machine {
 public:
  Machine(Executor& executor, FuzzedDataProvider& input)
      : executor_(executor), input_(input), guest_(kGuestSize) {
    auto owned = std::make_unique<SlowDisk>(kDiskSize);
    disk_ = owned.get();
    node_ = BlockNode::create(*find_driver("memory"), std::move(owned), "disk", "",
                              OpenFlags{.read_only = false, .discard_unmap = true});
    BlkOptions options;
    options.queues = static_cast<std::uint16_t>(input.ConsumeIntegralInRange(1, 2));
    options.queue_size = 16;
    options.read_only = input.ConsumeProbability<float>() < 0.1F;
    device_ = BlkDevice::create(guest_.memory(), *node_, options, {&executor}).value();
    if (input.ConsumeBool()) {
      pci_ = std::make_unique<PciTransport>(*device_, platform_, line_, 0x010000);
    } else {
      mmio_ = std::make_unique<MmioTransport>(*device_, platform_, line_, 0xd0000000);
    }
    if (input.ConsumeProbability<float>() < 0.9F) bring_up();
  }
  ~Machine() {
    executor_.block_on([&] { return stop(*device_); });
    if (line_.repeated()) std::abort();
  }

  void step() {
    if ((device_->status() & kStatusNeedsReset) != 0 && input_.ConsumeBool()) restart();
    switch (input_.ConsumeIntegralInRange(0, 20)) {
      case 0:
        return descriptor();
      case 1:
        return available();
      case 2:
        return poke();
      case 3:
        return drain_used();
      case 4:
        return register_read();
      case 5:
      case 6:
      case 7:
        return register_write();
      case 8:
        if (input_.ConsumeProbability<float>() < 0.2F) restart();
        return device_->capacity_changed();
      case 9:
        disk_->delay = input_.ConsumeIntegralInRange(0u, 5u);
        disk_->failing = input_.ConsumeProbability<float>() < 0.2F;
        return;
      case 10:
      case 11:
      case 12:
      case 13:
        return run();
      default:
        return request();
    }
  }

 private:
  // By the book, so that most inputs reach a running device.
  void bring_up() {
    const std::uint64_t features =
        input_.ConsumeProbability<float>() < 0.8F
            ? device_->offered_features()
            : (device_->offered_features() & input_.ConsumeIntegral<std::uint64_t>()) |
                  kFeatureVersion1;
    rings_.clear();
    guest_.release(0);
    device_->write_status(kStatusAcknowledge | kStatusDriver);
    device_->set_driver_features(0, static_cast<std::uint32_t>(features));
    device_->set_driver_features(1, static_cast<std::uint32_t>(features >> 32));
    device_->write_status(kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
    for (unsigned q = 0; q < device_->queue_count(); ++q) {
      rings_.push_back(std::make_unique<MockRing>(guest_, 16, features));
      const auto layout = rings_[q]->layout();
      device_->set_queue_size(q, layout.size);
      for (auto [part, address] : {std::pair{RingPart::kDescriptors, layout.descriptors},
                                   std::pair{RingPart::kDriver, layout.driver},
                                   std::pair{RingPart::kDevice, layout.device}}) {
        device_->set_queue_address(q, part, 0, static_cast<std::uint32_t>(address));
        device_->set_queue_address(q, part, 1, static_cast<std::uint32_t>(address >> 32));
      }
      device_->enable_queue(q);
    }
    device_->write_status(kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk);
    data_ = guest_.mark();
  }

  MockRing* ring() {
    if (rings_.empty()) return nullptr;
    return rings_[input_.ConsumeIntegralInRange<std::size_t>(0, rings_.size() - 1)].get();
  }
  // Mostly inside guest memory, around its edges, or anywhere.
  std::uint64_t address() {
    switch (input_.ConsumeIntegralInRange(0, 3)) {
      case 0:
        return input_.ConsumeIntegral<std::uint64_t>();
      case 1:
        return guest_.end() - input_.ConsumeIntegralInRange(0u, 64u);
      default:
        return TestGuest::kBase + input_.ConsumeIntegralInRange<std::uint64_t>(0, kGuestSize - 1);
    }
  }
  std::uint32_t length() {
    return input_.ConsumeBool() ? input_.ConsumeIntegralInRange(0u, 4096u)
                                : input_.ConsumeIntegral<std::uint32_t>();
  }

  void descriptor() {
    MockRing* r = ring();
    if (!r) return;
    r->set_descriptor(input_.ConsumeIntegralInRange<std::uint16_t>(0, 15), address(), length(),
                      input_.ConsumeIntegralInRange<std::uint16_t>(0, 7),
                      input_.ConsumeIntegralInRange<std::uint16_t>(0, 17));
  }
  void available() {
    MockRing* r = ring();
    if (!r) return;
    if (input_.ConsumeProbability<float>() < 0.1F) {
      r->set_available_index(input_.ConsumeIntegral<std::uint16_t>());
    } else {
      r->push_available(input_.ConsumeIntegralInRange<std::uint16_t>(0, 17));
      r->publish();
    }
    kick();
  }
  // The guest changes its memory while the device looks.
  void poke() {
    const std::size_t at = input_.ConsumeIntegralInRange<std::size_t>(0, 8192);
    for (std::size_t i = 0; i < 8; ++i) {
      *guest_.at(TestGuest::kBase + at + i) = std::byte{input_.ConsumeIntegral<std::uint8_t>()};
    }
  }
  void request() {
    MockRing* r = ring();
    if (!r || r->free_descriptors() < 8) return drain_used();
    if (guest_.mark() + 40000 > kGuestSize) guest_.release(data_);
    const std::uint32_t types[] = {0, 0, 1, 1, 4, 8, 11, 13, 2};
    const std::uint64_t header = guest_.allocate(kBlkHeaderSize);
    store_le(guest_.at(header), input_.PickValueInArray(types));
    store_le(guest_.at(header) + 8,
             input_.ConsumeProbability<float>() < 0.9F
                 ? input_.ConsumeIntegralInRange<std::uint64_t>(0, kDiskSize / 512)
                 : input_.ConsumeIntegral<std::uint64_t>());
    std::vector<testing::Piece> pieces;
    const auto cut = input_.ConsumeIntegralInRange<std::uint32_t>(0, 15);
    if (cut != 0) pieces.push_back({header, cut, false});
    pieces.push_back({header + cut, 16 - cut, false});
    const bool out = input_.ConsumeBool();
    for (unsigned i = input_.ConsumeIntegralInRange(0u, 3u); i > 0; --i) {
      const std::uint32_t n = input_.ConsumeBool() ? 512 * input_.ConsumeIntegralInRange(1u, 16u)
                                                   : input_.ConsumeIntegralInRange(1u, 600u);
      const std::uint64_t at = guest_.allocate(n, 1);
      if (out && n >= 16) {
        store_le(guest_.at(at), input_.ConsumeIntegralInRange<std::uint64_t>(0, kDiskSize / 512));
        store_le(guest_.at(at) + 8, input_.ConsumeIntegralInRange<std::uint32_t>(0, 200));
        store_le(guest_.at(at) + 12, input_.ConsumeIntegralInRange<std::uint32_t>(0, 2));
      }
      pieces.push_back({at, n, !out});
    }
    if (input_.ConsumeProbability<float>() < 0.95F) {
      pieces.push_back({guest_.allocate(1, 1), 1, true});
    }
    if (input_.ConsumeBool()) {
      r->add_indirect(pieces);
    } else {
      r->add(pieces);
    }
    r->publish();
    if (input_.ConsumeBool()) kick();
  }
  void kick() { device_->kick(input_.ConsumeIntegralInRange(0u, 2u)); }
  void run() {
    const unsigned count = input_.ConsumeIntegralInRange(1u, 12u);
    executor_.block_on([&] { return rounds(count); });
  }
  void drain_used() {
    for (auto& r : rings_) {
      for (int i = 0; i < 32 && r->take_used(); ++i) {
      }
      if (input_.ConsumeBool()) r->enable_interrupts();
    }
  }

  // A reset through the transport, and the driver from the beginning.
  void restart() {
    const std::array<std::byte, 4> zero{};
    const bool function = input_.ConsumeBool();
    perform(true, [&] {
      if (pci_ && function) return pci_->reset_function();
      if (pci_) pci_->write_bar(0, 20, std::span(zero).first(1));
      if (mmio_) mmio_->write(0x70, zero);
    });
    bring_up();
  }

  void register_write() {
    if (pci_ && input_.ConsumeProbability<float>() < 0.3F) return config_write();
    std::uint32_t offset = 0;
    std::size_t size = std::size_t{1} << input_.ConsumeIntegralInRange(0, 3);
    if (input_.ConsumeBool()) {
      offset = input_.ConsumeIntegralInRange<std::uint32_t>(0, 0x180);
      if (pci_) offset |= input_.ConsumeIntegralInRange<std::uint32_t>(0, 8) << 12;
    } else if (mmio_) {
      const std::uint32_t registers[] = {0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64,
                                         0x70, 0x80, 0x84, 0x90, 0xa0, 0xa4, 0x120};
      offset = input_.PickValueInArray(registers);
      size = offset < 0x100 ? 4 : 1;
    } else {
      const std::pair<std::uint32_t, std::size_t> fields[] = {
          {0, 4},      {8, 4},      {12, 4},     {16, 2},     {20, 1},     {22, 2},
          {24, 2},     {26, 2},     {28, 2},     {32, 4},     {40, 4},     {52, 4},
          {0x3000, 2}, {0x3004, 2}, {0x2020, 1}, {0x4000, 4}, {0x4008, 4}, {0x400c, 4},
          {0x4010, 4}, {0x401c, 4}, {0x402c, 4}};
      std::tie(offset, size) =
          fields[input_.ConsumeIntegralInRange<std::size_t>(0, std::size(fields) - 1)];
    }
    std::array<std::byte, 8> bytes{};
    store_le(bytes.data(), input_.ConsumeBool() ? input_.ConsumeIntegralInRange<std::uint64_t>(0, 3)
                                                : input_.ConsumeIntegral<std::uint64_t>());
    // A reset, or a queue taken back.
    const bool may_wait = bytes[0] == std::byte{0} && (pci_ ? offset <= 20 && offset + size > 20
                                                            : offset == 0x70 || offset == 0x44);
    perform(may_wait, [&] {
      const auto data = std::span<const std::byte>(bytes).first(size);
      if (pci_) pci_->write_bar(0, offset, data);
      if (mmio_) mmio_->write(offset, data);
    });
    if (device_->status() == 0 && input_.ConsumeBool()) bring_up();
  }
  void config_write() {
    // Command, BAR, MSI-X control, and the window's bar, offset, length and data, by their places.
    const std::uint32_t registers[] = {0x04, 0x10, 0x42, 0x94, 0x98, 0x9c, 0xa0};
    const std::uint32_t offset = input_.ConsumeBool()
                                     ? input_.PickValueInArray(registers)
                                     : input_.ConsumeIntegralInRange<std::uint32_t>(0, 0x110);
    const unsigned size = 1u << input_.ConsumeIntegralInRange(0, 2);
    const auto value = input_.ConsumeBool() ? input_.ConsumeIntegralInRange<std::uint32_t>(0, 32)
                                            : input_.ConsumeIntegral<std::uint32_t>();
    // The window may reach the status register.
    const bool may_wait = offset < 0xa4 && offset + size > 0xa0;
    perform(may_wait, [&] { pci_->write_config(offset, size, value); });
    if (device_->status() == 0 && input_.ConsumeBool()) bring_up();
  }
  void register_read() {
    std::array<std::byte, 8> bytes{};
    const auto size = std::size_t{1} << input_.ConsumeIntegralInRange(0, 3);
    std::uint32_t offset = input_.ConsumeIntegralInRange<std::uint32_t>(0, 0x180);
    if (pci_) {
      pci_->read_config(offset, static_cast<unsigned>(size));
      offset |= input_.ConsumeIntegralInRange<std::uint32_t>(0, 8) << 12;
      pci_->read_bar(0, offset, std::span(bytes).first(size));
    } else {
      mmio_->read(offset, std::span(bytes).first(size));
    }
  }

  // Runs `write`; when it `may_wait` for requests in flight, on another thread, while this one
  // keeps the executor going.
  template <class F>
  void perform(bool may_wait, F write) {
    if (!may_wait) return write();
    AsyncEvent done;
    std::thread vcpu([&] {
      write();
      done.set();
    });
    executor_.block_on([&] { return until(done); });
    vcpu.join();
  }

  Executor& executor_;
  FuzzedDataProvider& input_;
  TestGuest guest_;
  SlowDisk* disk_ = nullptr;
  NodePtr node_;
  FakePlatform platform_;
  FakeLine line_;
  std::unique_ptr<BlkDevice> device_;
  std::unique_ptr<PciTransport> pci_;
  std::unique_ptr<MmioTransport> mmio_;
  std::vector<std::unique_ptr<MockRing>> rings_;
  std::size_t data_ = 0;  // where requests' memory begins
};

}  // namespace
}  // namespace platter::virtio

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto executor = platter::Executor::create().value();
  FuzzedDataProvider input(data, size);
  platter::virtio::Machine machine(*executor, input);
  for (int steps = 0; steps < 200 && input.remaining_bytes() > 0; ++steps) machine.step();
  return 0;
}

// KvmPlatform: what virtio transports ask of the machine, done with KVM: doorbells are ioeventfds,
// message-signalled interrupts are irqfds with a route each, lines go to the in-kernel controllers.
//
// Threads: as virtio::Platform says.
// Ownership: refers to the Vm, which outlives it, and it outlives transports, signals and lines.
// Errors: those of Vm.
#pragma once

#include <memory>

#include "block/base/mutex.h"
#include "tools/run/vm.h"
#include "virtio/platform.h"

namespace platter::run {

class KvmPlatform final : public virtio::Platform {
 public:
  explicit KvmPlatform(Vm& vm) : vm_(vm) {}

  Result<std::unique_ptr<virtio::MsiSignal>> create_msi(const virtio::MsiMessage& message) override;
  Result<void> bind_notify(const virtio::NotifyAddress& where, int event_fd) override;
  void unbind_notify(const virtio::NotifyAddress& where, int event_fd) override;

 private:
  Vm& vm_;
};

// An edge-triggered line of one device: each rise is one interrupt, through an irqfd.
class EdgeLine final : public virtio::InterruptLine {
 public:
  static Result<std::unique_ptr<EdgeLine>> create(Vm& vm, unsigned gsi);
  ~EdgeLine() override;
  void set_level(bool asserted) noexcept override;

 private:
  EdgeLine(Vm& vm, unsigned gsi, UniqueFd fd) : vm_(vm), gsi_(gsi), fd_(std::move(fd)) {}
  Vm& vm_;
  const unsigned gsi_;
  UniqueFd fd_;
};

// A level-triggered interrupt that several PCI functions share: high while any of them asserts.
// The devices know and keep their level until the driver acknowledges, so the level is handed on
// as it is and no end-of-interrupt notification is needed.
class SharedLevel {
 public:
  SharedLevel(Vm& vm, unsigned gsi) : vm_(vm), gsi_(gsi) {}
  // A function's own line into it; this object outlives it.
  std::unique_ptr<virtio::InterruptLine> connect();

 private:
  class Input;
  void change(int by) noexcept;

  Vm& vm_;
  const unsigned gsi_;
  Mutex mutex_;
  int asserted_ PLATTER_GUARDED_BY(mutex_) = 0;
};

}  // namespace platter::run

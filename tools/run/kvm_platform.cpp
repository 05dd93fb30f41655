#include "tools/run/kvm_platform.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace platter::run {
namespace {

Result<UniqueFd> make_eventfd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return fail_errno(errno, "could not create an event descriptor");
  return fd;
}

void signal_eventfd(int fd) noexcept {
  const std::uint64_t one = 1;
  // Fails only when the counter is full, and then the interrupt is pending anyway.
  [[maybe_unused]] const auto written = ::write(fd, &one, sizeof one);
}

class IrqfdSignal final : public virtio::MsiSignal {
 public:
  IrqfdSignal(Vm& vm, unsigned gsi, UniqueFd fd) : vm_(vm), gsi_(gsi), fd_(std::move(fd)) {}
  ~IrqfdSignal() override {
    // A descriptor that was never attached is no loss here.
    (void)vm_.detach_irqfd(gsi_, fd_.get());
    vm_.messages().free(gsi_);
  }
  void raise() noexcept override { signal_eventfd(fd_.get()); }
  Result<void> set_message(const virtio::MsiMessage& message) override {
    return vm_.messages().set(gsi_, message.address, message.data);
  }

 private:
  Vm& vm_;
  const unsigned gsi_;
  UniqueFd fd_;
};

IoEvent io_event(const virtio::NotifyAddress& where) {
  IoEvent event;
  event.address = where.address;
  event.length = where.length;
  event.port = where.space == virtio::AddressSpace::kPort;
  event.match = where.value.has_value();
  event.value = where.value.value_or(0);
  return event;
}

}  // namespace

Result<std::unique_ptr<virtio::MsiSignal>> KvmPlatform::create_msi(
    const virtio::MsiMessage& message) {
  auto fd = make_eventfd();
  PLATTER_TRY(fd);
  auto gsi = vm_.messages().allocate();
  PLATTER_TRY(gsi);
  const int descriptor = fd->get();
  auto signal = std::make_unique<IrqfdSignal>(vm_, *gsi, std::move(*fd));
  auto routed = signal->set_message(message);
  PLATTER_TRY(routed);
  auto attached = vm_.attach_irqfd(*gsi, descriptor);
  PLATTER_TRY(attached);
  return signal;
}

Result<void> KvmPlatform::bind_notify(const virtio::NotifyAddress& where, int event_fd) {
  return vm_.bind_event(io_event(where), event_fd);
}

void KvmPlatform::unbind_notify(const virtio::NotifyAddress& where, int event_fd) {
  // Fails only for a doorbell that is not there, and then all is as wanted.
  (void)vm_.unbind_event(io_event(where), event_fd);
}

Result<std::unique_ptr<EdgeLine>> EdgeLine::create(Vm& vm, unsigned gsi) {
  auto fd = make_eventfd();
  PLATTER_TRY(fd);
  auto attached = vm.attach_irqfd(gsi, fd->get());
  PLATTER_TRY(attached);
  return std::unique_ptr<EdgeLine>(new EdgeLine(vm, gsi, std::move(*fd)));
}

EdgeLine::~EdgeLine() { (void)vm_.detach_irqfd(gsi_, fd_.get()); }

void EdgeLine::set_level(bool asserted) noexcept {
  if (asserted) signal_eventfd(fd_.get());
}

class SharedLevel::Input final : public virtio::InterruptLine {
 public:
  explicit Input(SharedLevel& line) : line_(line) {}
  void set_level(bool asserted) noexcept override { line_.change(asserted ? 1 : -1); }

 private:
  SharedLevel& line_;
};

std::unique_ptr<virtio::InterruptLine> SharedLevel::connect() {
  return std::make_unique<Input>(*this);
}

void SharedLevel::change(int by) noexcept {
  MutexLock lock(mutex_);
  const bool before = asserted_ > 0;
  asserted_ += by;
  const bool after = asserted_ > 0;
  // The line exists since the machine was made, so KVM does not refuse.
  if (before != after) (void)vm_.set_line(gsi_, after);
}

}  // namespace platter::run

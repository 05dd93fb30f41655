#include "tools/run/control.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace platter::run {

int exit_code(EndReason reason) {
  switch (reason) {
    case EndReason::kNone:
    case EndReason::kPowerOff:
    case EndReason::kReset:
    case EndReason::kUser:
      return 0;
    case EndReason::kTripleFault:
      return 2;
    case EndReason::kFailure:
      return 3;
    case EndReason::kInterrupt:
      return 130;
    case EndReason::kTerminate:
      return 143;
  }
  return 3;
}

Result<std::unique_ptr<Control>> Control::create() {
  std::unique_ptr<Control> control(new Control());
  control->fd_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!control->fd_) return fail_errno(errno, "could not create an event descriptor");
  return control;
}

void Control::end(EndReason reason, std::string message) noexcept {
  MutexLock lock(mutex_);
  if (reason_ != EndReason::kNone) return;
  reason_ = reason;
  message_ = std::move(message);
  ended_.store(true, std::memory_order_release);
  const std::uint64_t one = 1;
  // An eventfd that is written once cannot be full.
  [[maybe_unused]] const auto written = ::write(fd_.get(), &one, sizeof one);
}

EndReason Control::reason() const {
  MutexLock lock(mutex_);
  return reason_;
}

std::string Control::message() const {
  MutexLock lock(mutex_);
  return message_;
}

}  // namespace platter::run

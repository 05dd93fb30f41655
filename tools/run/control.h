// Control: how a machine comes to its end. Whoever finds a reason says so here; the first one
// counts. The main thread waits on the descriptor.
//
// Threads: all member functions from any thread.
// Errors: none.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "block/base/error.h"
#include "block/base/mutex.h"
#include "block/base/unique_fd.h"

namespace platter::run {

enum class EndReason : std::uint8_t {
  kNone,         // still running
  kPowerOff,     // the guest switched itself off
  kReset,        // the guest asked for a reset
  kTripleFault,  // the guest crashed so that a processor shut down
  kUser,         // Ctrl-A X
  kInterrupt,    // SIGINT
  kTerminate,    // SIGTERM or SIGHUP
  kFailure,      // KVM or this program could not go on; the message says why
};

// Exit code of the program for each; docs/run.md lists them.
int exit_code(EndReason reason);

class Control {
 public:
  static Result<std::unique_ptr<Control>> create();

  // Ends the machine; later calls change nothing.
  void end(EndReason reason, std::string message = {}) noexcept;

  bool ended() const { return ended_.load(std::memory_order_acquire); }
  EndReason reason() const;
  std::string message() const;
  // Readable once end() was called.
  int fd() const { return fd_.get(); }

 private:
  Control() = default;
  UniqueFd fd_;
  std::atomic<bool> ended_{false};
  mutable Mutex mutex_;
  EndReason reason_ PLATTER_GUARDED_BY(mutex_) = EndReason::kNone;
  std::string message_ PLATTER_GUARDED_BY(mutex_);
};

}  // namespace platter::run

// Cancellation: while one exists, SIGINT, SIGTERM and SIGHUP are a wish that the work ends, and no
// sudden death: what is under way is finished or stopped, and images are closed as ever. A second
// signal kills at once. Signals that were ignored (nohup) stay so.
//
// In front of work that cannot stop half-way it only puts the end off.
//
//   const Cancellation cancellation;
//   options.cancelled = Cancellation::flag();
//   ...
//   if (Cancellation::ended(result)) co_return Cancellation::status();
//
// Threads: one object at a time; the flag may be read anywhere (signals are the process's).
#pragma once

#include <signal.h>

#include <atomic>
#include <iterator>
#include <string>

#include "block/base/error.h"

namespace platter::img {

class Cancellation {
 public:
  enum Wish { kStop, kAtOnce };
  explicit Cancellation(Wish wish = kStop);
  ~Cancellation();
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;

  static const std::atomic<bool>* flag();
  // Whether this is what `result` failed of.
  static bool ended(const Result<void>& result);
  // The exit status for work that was cancelled: 128 and the signal's number.
  static int status();
  // Ends the process by the signal if `status` says so: whoever waits for the process sees what a
  // program shows that died of it.
  static void die_if(int status);

  // A file to be removed when a signal kills; a few at a time.
  static void remove_if_killed(const std::string& path);
  static void forget(const std::string& path);

 private:
  static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction before_[std::size(kSignals)] = {};
};

}  // namespace platter::img

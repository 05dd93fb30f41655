#include "tools/img/cancel.h"

#include <limits.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace platter::img {
namespace {

std::atomic<bool> cancel_wanted{false};
std::atomic<int> received{0};
std::atomic<bool> at_once{false};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

// Where a signal handler finds the names.
struct Leftover {
  std::atomic<bool> there{false};
  char path[PATH_MAX] = {};
};
Leftover leftovers[2];

void want_end(int signal) {
  if (!at_once.load() && !cancel_wanted.exchange(true)) {
    received.store(signal);
    return;
  }
  for (const Leftover& one : leftovers) {
    if (one.there.load()) unlink(one.path);
  }
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

}  // namespace

Cancellation::Cancellation(Wish wish) {
  at_once.store(wish == kAtOnce);
  cancel_wanted.store(false);
  received.store(0);
  for (std::size_t i = 0; i < std::size(kSignals); ++i) {
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler == SIG_IGN) continue;
    struct sigaction action{};
    action.sa_handler = want_end;
    action.sa_flags = SA_RESTART;
    sigaction(kSignals[i], &action, nullptr);
  }
}

Cancellation::~Cancellation() {
  for (std::size_t i = 0; i < std::size(kSignals); ++i)
    sigaction(kSignals[i], &before_[i], nullptr);
}

const std::atomic<bool>* Cancellation::flag() { return &cancel_wanted; }

bool Cancellation::ended(const Result<void>& result) {
  return !result && result.error().code() == ECANCELED && cancel_wanted.load();
}

int Cancellation::status() { return 128 + received.load(); }

void Cancellation::die_if(int status) {
  const int signal = received.load();
  if (signal == 0 || status != 128 + signal) return;
  std::fflush(stdout);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void Cancellation::remove_if_killed(const std::string& path) {
  for (Leftover& one : leftovers) {
    if (one.there.load() || path.size() >= sizeof(one.path)) continue;
    path.copy(one.path, path.size());
    one.path[path.size()] = '\0';
    one.there.store(true);
    return;
  }
}

void Cancellation::forget(const std::string& path) {
  for (Leftover& one : leftovers) {
    if (one.there.load() && path == one.path) one.there.store(false);
  }
}

}  // namespace platter::img

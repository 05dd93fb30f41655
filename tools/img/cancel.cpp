#include "tools/img/cancel.h"

#include <cerrno>
#include <cstdio>

namespace platter::img {
namespace {

std::atomic<bool> wanted{false};
std::atomic<int> received{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void want_end(int signal) {
  received.store(signal);
  wanted.store(true);
}

}  // namespace

Cancellation::Cancellation() {
  wanted.store(false);
  received.store(0);
  for (std::size_t i = 0; i < std::size(kSignals); ++i) {
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = want_end;
    // (The default action is back for the next one.)
    action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
    sigaction(kSignals[i], &action, nullptr);
  }
}

Cancellation::~Cancellation() {
  for (std::size_t i = 0; i < std::size(kSignals); ++i)
    sigaction(kSignals[i], &before_[i], nullptr);
}

const std::atomic<bool>* Cancellation::flag() { return &wanted; }

bool Cancellation::ended(const Result<void>& result) {
  return !result && result.error().code() == ECANCELED && wanted.load();
}

int Cancellation::status() { return 128 + received.load(); }

void Cancellation::die_if(int status) {
  const int signal = received.load();
  if (signal == 0 || status != 128 + signal) return;
  std::fflush(stdout);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

}  // namespace platter::img

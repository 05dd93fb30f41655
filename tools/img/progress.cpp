#include "tools/img/progress.h"

#include <csignal>
#include <cstdio>

namespace platter::img {
namespace {

volatile std::sig_atomic_t asked_for = 0;

void ask(int) { asked_for = 1; }

}  // namespace

Progress::Progress(bool enabled) : enabled_(enabled) {
  if (enabled_) return;
  struct sigaction action{};
  action.sa_handler = ask;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
}

Progress::~Progress() {
  if (enabled_) {
    std::fputc('\n', stdout);
    std::fflush(stdout);
  }
}

void Progress::update(double percent) {
  constexpr double kStep = 1.0;
  if (enabled_) {
    if (percent != 0.0 && percent != 100.0 && percent < printed_ + kStep) return;
    printed_ = percent;
    std::printf("    (%3.2f/100%%)\r", percent);
    std::fflush(stdout);
  } else if (asked_for != 0) {
    asked_for = 0;
    std::fprintf(stderr, "    (%3.2f/100%%)\n", percent);
  }
}

}  // namespace platter::img

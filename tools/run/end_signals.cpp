#include "tools/run/end_signals.h"

#include <initializer_list>

namespace platter::run {

sigset_t end_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now{};
    if (::sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN) continue;
    ::sigaddset(&set, signal);
  }
  return set;
}

}  // namespace platter::run

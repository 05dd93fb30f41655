#include "tools/run/report.h"

#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <string>

#include "block/base/mutex.h"

namespace platter::run {

bool report(int fd, std::string_view line) {
  static Mutex mutex;
  std::string text(line.substr(0, PIPE_BUF - 1));
  text += '\n';
  // What is writable takes PIPE_BUF bytes without a wait, so the mutex is not held for long either.
  MutexLock lock(mutex);
  pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
  if (::poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0) return false;
  return ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

}  // namespace platter::run

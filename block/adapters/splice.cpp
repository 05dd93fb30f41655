#include "block/adapters/splice.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "block/adapters/posix_file.h"

namespace platter {
namespace {

// What a pipe may hold without privileges; one that holds less only takes more calls.
constexpr int kPipeBytes = 1 << 20;

struct Pipe {
  UniqueFd out;
  UniqueFd in;

  bool open() {
    if (in) return true;
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return false;
    out = UniqueFd(ends[0]);
    in = UniqueFd(ends[1]);
    ::fcntl(in.get(), F_SETPIPE_SZ, kPipeBytes);
    return true;
  }
};

thread_local Pipe pipe_of_thread;

}  // namespace

int splice_range(int from, std::uint64_t source, int to, std::uint64_t target,
                 std::uint64_t length) {
  Pipe& pipe = pipe_of_thread;
  if (!pipe.open()) return ENOTSUP;
  auto source_at = static_cast<off_t>(source);
  auto target_at = static_cast<off_t>(target);
  while (length != 0) {
    ssize_t held = ::splice(from, &source_at, pipe.in.get(), nullptr, length, 0);
    if (held < 0 && errno == EINTR) continue;
    if (held <= 0) return ENOTSUP;
    length -= static_cast<std::uint64_t>(held);
    while (held != 0) {
      const ssize_t n =
          ::splice(pipe.out.get(), nullptr, to, &target_at, static_cast<std::size_t>(held), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        const int error = n == 0 || errno == EINVAL ? ENOTSUP : errno;
        pipe = Pipe();  // what it still holds must not come out next time
        return error;
      }
      held -= n;
    }
  }
  return 0;
}

}  // namespace platter

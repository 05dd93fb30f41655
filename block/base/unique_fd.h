// UniqueFd: the owner of one file descriptor. Movable; closes on destruction.
//
// Threads: a value; the number may be used from any thread while the owner lives.
// Errors: only close() tells of one.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace platter {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() { close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  // 0, or what close() had to report, as a positive errno.
  int close() noexcept {
    const int fd = std::exchange(fd_, -1);
    if (fd < 0 || ::close(fd) == 0) return 0;
    return errno == EINTR ? 0 : errno;  // Linux has closed it even so
  }

 private:
  int fd_ = -1;
};

}  // namespace platter

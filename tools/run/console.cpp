#include "tools/run/console.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

namespace platter::run {
namespace {

constexpr std::byte kControlA{0x01};
constexpr std::string_view kFilePrefix = "file:";

}  // namespace

Typed EscapeFilter::filter(std::span<const std::byte> input) {
  Typed typed;
  for (std::byte byte : input) {
    if (!prefix_seen_ && byte == kControlA) {
      prefix_seen_ = true;
      continue;
    }
    if (prefix_seen_ && (byte == std::byte{'x'} || byte == std::byte{'X'})) {
      typed.quit = true;
      return typed;
    }
    if (prefix_seen_ && byte != kControlA) typed.for_guest.push_back(kControlA);
    prefix_seen_ = false;
    typed.for_guest.push_back(byte);
  }
  return typed;
}

Result<std::unique_ptr<Console>> Console::open(const std::string& target) {
  std::unique_ptr<Console> console(new Console());
  if (target == "none") return console;
  if (target.starts_with(kFilePrefix)) {
    const std::string path = target.substr(kFilePrefix.size());
    console->file_ = UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    if (!console->file_) return fail_errno(errno, "could not open '{}'", path);
    console->output_ = console->file_.get();
    return console;
  }
  if (target != "stdio") {
    return fail(EINVAL, "serial '{}' is none of stdio, file:PATH and none", target);
  }
  console->input_ = STDIN_FILENO;
  console->output_ = STDOUT_FILENO;
  if (::isatty(STDIN_FILENO) == 1 && ::tcgetattr(STDIN_FILENO, &console->saved_) == 0) {
    termios raw = console->saved_;
    ::cfmakeraw(&raw);
    raw.c_oflag |= OPOST;  // our own messages still end their lines properly
    if (::tcsetattr(STDIN_FILENO, TCSANOW, &raw) != 0) {
      return fail_errno(errno, "could not set up the terminal");
    }
    console->raw_ = true;
  }
  return console;
}

Console::~Console() {
  if (raw_) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
}

// (Nothing lies in a terminal or a pipe, and it says so.)
void Console::begin() {
  if (file_) static_cast<void>(::ftruncate(file_.get(), 0));
}

void Console::write(std::byte byte) {
  if (output_ < 0) return;
  const ssize_t written = ::write(output_, &byte, 1);
  // A reader that does not read blocks the guest, as a slow terminal does. The one signal that vCPU
  // threads get is the one that stops them, and then there is nothing more to say.
  if (written < 0 && errno == EINTR) output_ = -1;
}

Typed Console::read(std::size_t room) {
  std::array<std::byte, 4096> buffer;
  const ssize_t count = ::read(input_, buffer.data(), std::min(buffer.size(), room));
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return {};
  if (count <= 0) {
    input_ = -1;
    return {};
  }
  const auto bytes = std::span<const std::byte>(buffer).first(static_cast<std::size_t>(count));
  if (raw_) return escape_.filter(bytes);
  return {std::vector<std::byte>(bytes.begin(), bytes.end()), false};
}

}  // namespace platter::run

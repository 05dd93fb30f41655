// Error and Result: how every fallible operation of the block layer reports failure.
//
// An Error is an errno-style code plus one line of text. The text is written once, where the
// failure is detected, and each layer above may put what it was doing in front of it:
//
//   could not open 'a.qcow2': could not open its backing file 'b.raw': No such file or directory
//
// Ownership: an Error owns its text and is cheap to copy (shared, immutable).
// Threads: distinct Error objects may be used from distinct threads.
// A successful Result<void> allocates nothing and is one byte of state.
#pragma once

#include <fmt/core.h>

#include <cerrno>
#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace platter {

// The code of an image or peer that breaks its format's rules. EUCLEAN is the kernel's own
// "structure needs cleaning".
inline constexpr int kCorrupt = EUCLEAN;

class [[nodiscard]] Error {
 public:
  // `code` is a positive errno value; `message` is one line without trailing newline or period.
  Error(int code, std::string message);

  // An Error whose text is the system's description of `code` ("No such file or directory").
  static Error from_errno(int code);

  int code() const { return code_; }
  const std::string& message() const { return *message_; }

  // The same error with "context: " in front of its text.
  Error in(std::string_view context) const;

 private:
  int code_;
  std::shared_ptr<const std::string> message_;
};

template <class T>
using Result = std::expected<T, Error>;

// The system's description of a positive errno value. Thread-safe.
std::string errno_text(int code);

// `return fail(EINVAL, "cluster size {} is not a power of two", n);`
template <class... Args>
[[nodiscard]] std::unexpected<Error> fail(int code, fmt::format_string<Args...> text,
                                          Args&&... args) {
  return std::unexpected<Error>(Error(code, fmt::format(text, std::forward<Args>(args)...)));
}

// `return fail_errno(err);`: the system's text for a positive errno value.
[[nodiscard]] std::unexpected<Error> fail_errno(int code);

// `return fail_errno(err, "could not open '{}'", name);` gives "could not open 'x': <system text>".
template <class... Args>
[[nodiscard]] std::unexpected<Error> fail_errno(int code, fmt::format_string<Args...> text,
                                                Args&&... args) {
  return std::unexpected<Error>(
      Error::from_errno(code).in(fmt::format(text, std::forward<Args>(args)...)));
}

// Hands a failed Result's error on, as the failure of another Result type.
template <class T>
[[nodiscard]] std::unexpected<Error> forward_error(const Result<T>& failed) {
  return std::unexpected<Error>(failed.error());
}

// The same with context: `return forward_error(r, "could not open '{}'", name);`
template <class T, class... Args>
[[nodiscard]] std::unexpected<Error> forward_error(const Result<T>& failed,
                                                   fmt::format_string<Args...> text,
                                                   Args&&... args) {
  return std::unexpected<Error>(failed.error().in(fmt::format(text, std::forward<Args>(args)...)));
}

}  // namespace platter

// Leave the enclosing function (or coroutine) when the named Result has failed. The argument is a
// variable, never a call: g++ 12 destroys some temporaries in co_await expressions twice, so every
// awaited operand and every awaited result has a name.
#define PLATTER_TRY(result)                    \
  do {                                         \
    if (!(result)) [[unlikely]]                \
      return ::platter::forward_error(result); \
  } while (false)
#define PLATTER_CO_TRY(result)                    \
  do {                                            \
    if (!(result)) [[unlikely]]                   \
      co_return ::platter::forward_error(result); \
  } while (false)

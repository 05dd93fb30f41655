// Error and Result: how every fallible operation of the block layer reports failure.
//
// An Error is an errno-style code plus one line of text. The text is written once, where the
// failure is detected, and each layer above may put what it was doing in front of it:
//
//   could not open 'a.qcow2': could not open its backing file 'b.raw': No such file or directory
//
// What a program may want to know of a failure beside its code is data, never to be found out from
// the text: a hint at what may help, a kind, the file it names, and the further failures of the
// same operation.
//
// Ownership: an Error owns its text and is cheap to copy (shared, immutable).
// Threads: distinct Error objects may be used from distinct threads.
// A successful Result<void> allocates nothing and is one byte of state.
#pragma once

#include <fmt/core.h>

#include <cerrno>
#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace platter {

// The code of an image or peer that breaks its format's rules. EUCLEAN is the kernel's own
// "structure needs cleaning".
inline constexpr int kCorrupt = EUCLEAN;

// What a failure means where its code does not say it.
enum class ErrorKind : std::uint8_t {
  kOther,
  kReadOnlyNode,  // rights to write were asked for on a node that is only read
  kGivenUp,       // an image was found corrupt and is not written to any more, as was said then
};

class [[nodiscard]] Error {
 public:
  // One failure. `hint` is what may help, in whole lines joined with '\n', or empty.
  struct Part {
    std::string reason;
    std::string hint;
  };

  // `code` is a positive errno value; `message` is one line without trailing newline or period.
  Error(int code, std::string message);

  // An Error whose text is the system's description of `code` ("No such file or directory").
  static Error from_errno(int code);

  int code() const { return code_; }
  ErrorKind kind() const { return kind_; }
  // All of it in one line: "reason: hint; further reason".
  const std::string& message() const { return story_->message; }
  // The same for those who have a line for each failure and each hint; never empty.
  const std::vector<Part>& parts() const { return story_->parts; }

  // The file that the text names as the one that failed; empty where it names none.
  const std::string& file() const { return story_->file; }

  // The same error with "context: " in front of each failure.
  Error in(std::string_view context) const;
  // The same error with a hint at what may help, whole sentences in lines joined with '\n'.
  Error with_hint(std::string hint) const;
  // The same error, whose text names this file.
  Error naming(std::string file) const;
  // The same error with a file called `to` wherever its text calls it `from`.
  Error renamed(std::string_view from, std::string_view to) const;
  // The same error as one of this kind.
  Error as(ErrorKind kind) const;
  // The same error; the operation failed in another way as well. Code and kind remain.
  Error also(const Error& further) const;

 private:
  struct Story {
    Story(std::vector<Part> told, std::string named);
    const std::vector<Part> parts;
    const std::string file;
    const std::string message;
  };
  Error with_parts(std::vector<Part> parts) const { return told(std::move(parts), file()); }
  Error told(std::vector<Part> parts, std::string file) const;

  int code_;
  ErrorKind kind_ = ErrorKind::kOther;
  std::shared_ptr<const Story> story_;
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

// Failures whose text names `file`:
// `return fail_naming(name, ENOENT, "Did not find '{}' below '{}'", base, name);`
template <class... Args>
[[nodiscard]] std::unexpected<Error> fail_naming(const std::string& file, int code,
                                                 fmt::format_string<Args...> text, Args&&... args) {
  return std::unexpected<Error>(
      Error(code, fmt::format(text, std::forward<Args>(args)...)).naming(file));
}

// `return forward_naming(name, r, "{}: error while writing at byte {}", name, offset);`
template <class T, class... Args>
[[nodiscard]] std::unexpected<Error> forward_naming(const std::string& file,
                                                    const Result<T>& failed,
                                                    fmt::format_string<Args...> context,
                                                    Args&&... args) {
  return std::unexpected<Error>(
      failed.error().in(fmt::format(context, std::forward<Args>(args)...)).naming(file));
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

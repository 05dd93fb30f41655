// The words of one command line, and how the commands read them: numbers with suffixes, patterns,
// lists of lengths. What is wrong is said on stdout, as qemu-io does.
//
// Threads: the control thread only (getopt has global state).
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "block/exec/buffer.h"
#include "block/exec/iovec.h"

namespace platter::io_tool {

// The longest request of one command, bytes: 2 GiB less one sector.
inline constexpr std::uint64_t kMaxRequest = 2147483136;
inline constexpr std::uint64_t kSector = 512;
// What buffers are filled with when no pattern is given.
inline constexpr std::byte kDefaultPattern{0xcd};

// words[0] is the name that the command was called by. getopt() reorders the words in place.
struct Arguments {
  int count = 0;
  char** words = nullptr;

  // Starts getopt() from the first word; its own complaints go to stderr.
  void rewind() const;
  // As getopt(): the next option letter, '?' for a bad one, -1 at the end.
  int next(const char* letters) const;
  // The words that are no options, once next() has given -1.
  std::span<char* const> rest() const;
};

// nullopt after having said what is wrong.
std::optional<std::uint64_t> read_number(const char* text);
std::optional<std::byte> read_pattern(const char* text);
// A length of at most kMaxRequest.
std::optional<std::uint64_t> read_length(const char* text);

// Whether offset and length are multiples of a sector; says which is not.
bool require_sectors(std::uint64_t offset, std::uint64_t length);

// Memory for a request. `misaligned` places it where O_DIRECT would not take it.
class RequestBuffer {
 public:
  RequestBuffer() = default;
  RequestBuffer(std::size_t size, bool misaligned);
  std::span<std::byte> span() const { return memory_.span(skip_, size_); }
  IoVec iov() const { return IoVec(span()); }
  void fill(std::byte pattern) const;

 private:
  Buffer memory_;
  std::size_t skip_ = 0;
  std::size_t size_ = 0;
};

// One buffer cut into the segments of a vectored request.
class RequestVector {
 public:
  // nullopt after having said which length is wrong.
  static std::optional<RequestVector> read(std::span<char* const> lengths, bool misaligned);
  std::uint64_t size() const { return buffer_.span().size(); }
  const RequestBuffer& buffer() const { return buffer_; }
  IoVec iov() const { return IoVec(std::span<const iovec>(segments_)); }

 private:
  RequestBuffer buffer_;
  std::vector<iovec> segments_;
};

}  // namespace platter::io_tool

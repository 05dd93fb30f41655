#include "tools/io/arguments.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "block/node/options.h"
#include "tools/io/report.h"

namespace platter::io_tool {
namespace {

// Off a page's start, yet not so far that a cache line is split.
constexpr std::size_t kMisalignment = 16;

}  // namespace

void Arguments::rewind() const { optind = 0; }

int Arguments::next(const char* letters) const { return getopt(count, words, letters); }

std::span<char* const> Arguments::rest() const {
  return std::span<char* const>(words, static_cast<std::size_t>(count))
      .subspan(static_cast<std::size_t>(optind));
}

std::optional<std::uint64_t> read_number(const char* text) {
  const Result<std::uint64_t> number = parse_size(text);
  if (number) return *number;
  if (number.error().code() == ERANGE) {
    print("Parsing error: argument too large -- {}\n", text);
  } else {
    print("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {}\n", text);
  }
  return std::nullopt;
}

std::optional<std::byte> read_pattern(const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 0);
  if (end == text || *end != '\0' || value < 0 || value > 255) {
    print("{} is not a valid pattern byte\n", text);
    return std::nullopt;
  }
  return static_cast<std::byte>(value);
}

std::optional<std::uint64_t> read_length(const char* text) {
  const std::optional<std::uint64_t> length = read_number(text);
  if (length && *length > kMaxRequest) {
    print("length cannot exceed {}, given {}\n", kMaxRequest, text);
    return std::nullopt;
  }
  return length;
}

bool require_sectors(std::uint64_t offset, std::uint64_t length) {
  if (offset % kSector != 0) {
    print("{} is not a sector-aligned value for 'offset'\n", offset);
    return false;
  }
  if (length % kSector != 0) {
    print("{} is not a sector-aligned value for 'count'\n", length);
    return false;
  }
  return true;
}

RequestBuffer::RequestBuffer(std::size_t size, bool misaligned)
    : memory_(size + (misaligned ? kMisalignment : 0)),
      skip_(misaligned ? kMisalignment : 0),
      size_(size) {}

void RequestBuffer::fill(std::byte pattern) const {
  if (size_ != 0) std::memset(span().data(), std::to_integer<int>(pattern), size_);
}

std::optional<RequestVector> RequestVector::read(std::span<char* const> lengths, bool misaligned) {
  RequestVector vector;
  vector.segments_.reserve(lengths.size());
  std::uint64_t total = 0;
  for (const char* text : lengths) {
    const std::optional<std::uint64_t> length = read_number(text);
    if (!length) return std::nullopt;
    if (*length > kMaxRequest) {
      print("Argument '{}' exceeds maximum size {}\n", text, kMaxRequest);
      return std::nullopt;
    }
    if (total > kMaxRequest - *length) {
      print("The total number of bytes exceed the maximum size {}\n", kMaxRequest);
      return std::nullopt;
    }
    total += *length;
    vector.segments_.push_back({nullptr, *length});
  }
  vector.buffer_ = RequestBuffer(total, misaligned);
  std::byte* at = vector.buffer_.span().data();
  for (iovec& segment : vector.segments_) {
    segment.iov_base = at;
    at += segment.iov_len;
  }
  return vector;
}

}  // namespace platter::io_tool

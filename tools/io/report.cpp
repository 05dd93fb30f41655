#include "tools/io/report.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <iterator>

namespace platter::io_tool {
namespace {

using Text = fmt::memory_buffer;

void append_size(Text& out, double bytes) {
  static constexpr std::array<std::string_view, 6> kUnits{" EiB", " PiB", " TiB",
                                                          " GiB", " MiB", " KiB"};
  const std::size_t start = out.size();
  std::string_view unit = " bytes";
  double divisor = static_cast<double>(std::uint64_t{1} << 60);
  for (const std::string_view candidate : kUnits) {
    if (bytes >= divisor) {
      unit = candidate;
      break;
    }
    divisor /= 1024;
  }
  if (divisor >= 1024) {
    fmt::format_to(std::back_inserter(out), "{:.3f}", bytes / divisor);
  } else {
    fmt::format_to(std::back_inserter(out), "{:.6f}", bytes);
  }
  // A fraction that begins with three zeroes is not shown at all, however it goes on.
  const std::string_view number(out.data() + start, out.size() - start);
  const std::size_t trim = number.find(".000");
  if (trim != std::string_view::npos) out.resize(start + trim);
  out.append(unit);
}

// "00.02 sec" up to a minute; "0:32:16.38" beyond, or always when `full`.
void append_time(Text& out, Clock::duration elapsed, bool full) {
  const auto hundredths = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count() / 10);
  const std::uint64_t seconds = hundredths / 100;
  if (full || seconds >= 60) {
    fmt::format_to(std::back_inserter(out), "{}:{:02}:{:02}.{:02}", seconds / 3600,
                   seconds / 60 % 60, seconds % 60, hundredths % 100);
  } else {
    fmt::format_to(std::back_inserter(out), "{:02}.{:02} sec", seconds, hundredths % 100);
  }
}

}  // namespace

void put(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::string size_text(double bytes) {
  Text text;
  append_size(text, bytes);
  return fmt::to_string(text);
}

void print_statistics(std::string_view verb, Clock::duration elapsed, std::uint64_t offset,
                      std::uint64_t length, ReportStyle style) {
  if (style.quiet) return;
  // A request always takes some time, so that the rates are finite.
  const double seconds = std::max(std::chrono::duration<double>(elapsed).count(), 1e-9);
  const double bytes = static_cast<double>(length);
  Text text;
  if (style.machine) {
    fmt::format_to(std::back_inserter(text), "{},1,", length);
    append_time(text, elapsed, true);
    fmt::format_to(std::back_inserter(text), ",{:.3f},{:.3f}\n", bytes / seconds, 1 / seconds);
  } else {
    fmt::format_to(std::back_inserter(text), "{} {}/{} bytes at offset {}\n", verb, length, length,
                   offset);
    append_size(text, bytes);
    text.append(std::string_view(", 1 ops; "));
    append_time(text, elapsed, false);
    text.append(std::string_view(" ("));
    append_size(text, bytes / seconds);
    fmt::format_to(std::back_inserter(text), "/sec and {:.4f} ops/sec)\n", 1 / seconds);
  }
  put({text.data(), text.size()});
}

void print_failure(std::string_view what, const Error& error) {
  // To qemu-io an image that was given up is there no more.
  const int code = error.kind() == ErrorKind::kGivenUp ? ENOMEDIUM : error.code();
  print("{} failed: {}\n", what, errno_text(code));
}

void dump_bytes(std::span<const std::byte> bytes, std::uint64_t offset) {
  static constexpr std::size_t kPerLine = 16;
  Text text;
  while (!bytes.empty()) {
    const std::span line = bytes.first(std::min(bytes.size(), kPerLine));
    text.clear();
    fmt::format_to(std::back_inserter(text), "{:08x}:  ", offset);
    for (const std::byte b : line)
      fmt::format_to(std::back_inserter(text), "{:02x} ", std::to_integer<unsigned>(b));
    text.push_back(' ');
    for (const std::byte b : line) {
      const auto c = std::to_integer<unsigned char>(b);
      text.push_back(std::isalnum(c) != 0 ? static_cast<char>(c) : '.');
    }
    text.push_back('\n');
    put({text.data(), text.size()});
    offset += line.size();
    bytes = bytes.subspan(line.size());
  }
}

bool verify_pattern(std::span<const std::byte> bytes, std::uint64_t offset, std::byte pattern) {
  // Equal to itself one byte on: all bytes are like the first.
  if (bytes.empty() ||
      (bytes[0] == pattern && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0)) {
    return true;
  }
  print("Pattern verification failed at offset {}, {} bytes\n", offset, bytes.size());
  return false;
}

}  // namespace platter::io_tool

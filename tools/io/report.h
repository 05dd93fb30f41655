// What the commands of `platter io` print: sizes, statistics, hex dumps. The formats are those of
// qemu-io, which scripts compare line by line.
//
// Output goes to stdout, buffered. Threads: the control thread only.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "block/base/error.h"

namespace platter::io_tool {

using Clock = std::chrono::steady_clock;

// How a request's result is reported.
struct ReportStyle {
  bool quiet = false;    // -q: not at all
  bool machine = false;  // -C: one line of comma-separated values
};

// "64 KiB", "1.500 KiB", "512 bytes": three digits after the point, none when they would be 000.
std::string size_text(double bytes);

// The two lines (or the one of -C) for one request; `verb` is "read", "wrote", "discard".
void print_statistics(std::string_view verb, Clock::duration elapsed, std::uint64_t offset,
                      std::uint64_t length, ReportStyle style);

// "WHAT failed: No such file or directory".
void print_failure(std::string_view what, const Error& error);

// 16 bytes per line, with the offset they have on the disk.
void dump_bytes(std::span<const std::byte> bytes, std::uint64_t offset);

// Whether all of `bytes`, which lie at `offset` on the disk, are `pattern`; complains if not.
bool verify_pattern(std::span<const std::byte> bytes, std::uint64_t offset, std::byte pattern);

// Appends to stdout.
void put(std::string_view text);
template <class... Args>
void print(fmt::format_string<Args...> text, Args&&... args) {
  put(fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace platter::io_tool

// Numbers and tables as qemu-img prints them for people.
// Threads: pure functions (local time is read from the environment).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "block/node/abilities.h"
#include "tools/img/json.h"

namespace platter::img {

// "1.5 GiB": three significant digits, powers of 1024.
std::string size_text(std::uint64_t bytes);
// "01:02:03.004"
std::string vm_clock_text(std::uint64_t nanoseconds);
// "2026-11-22 14:30:11", local time.
std::string date_text(std::uint64_t seconds);

// The table of internal snapshots with its title and heading; each line ends in a newline.
std::string snapshot_table(const std::vector<SnapshotInfo>& snapshots);
Json snapshot_json(const SnapshotInfo& snapshot);

// "Format specific information", four blanks per level, and the same as a JSON object.
std::string fields_text(const std::vector<InfoField>& fields, unsigned depth);
Json fields_json(const std::vector<InfoField>& fields);

}  // namespace platter::img

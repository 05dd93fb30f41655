// convert: what its command line says, and the work.
// Threads: a value; the work runs on the executor that calls it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/img/common.h"
#include "tools/img/snapshots.h"

namespace platter::img {

struct ConvertArguments {
  CommonOptions common;  // format and cache modes; `cache` is the target's
  std::vector<std::string> sources;
  std::string target;
  std::optional<std::string> target_format;
  bool target_image_opts = false;
  std::optional<std::string> options;
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  std::optional<SnapshotName> snapshot;
  std::optional<std::uint64_t> sparse;  // -S, bytes
  std::uint64_t rate = 0;               // bytes per second; 0: no limit
  unsigned in_flight = 8;
  bool out_of_order = false;
  bool compress = false;
  bool no_create = false;
  bool target_is_zero = false;
  bool offload = false;
  bool salvage = false;
  bool bitmaps = false;
  bool skip_broken_bitmaps = false;
};

// Reports what goes wrong; gives the exit status.
Task<int> convert(ConvertArguments arguments);

}  // namespace platter::img

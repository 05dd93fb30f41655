// What commit, rebase and stream share: they change an image with its backing chain, read the same
// options, begin and end alike.
//
// Threads: one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "tools/img/common.h"

namespace platter::img {

struct ChainOptions {
  CommonOptions common;
  std::string filename;
  std::optional<std::string> backing;         // -b
  std::optional<std::string> backing_format;  // -F
  std::uint64_t rate = 0;                     // -r, bytes per second; 0: no limit
  bool keep = false;                          // -d
  bool unsafe = false;                        // -u
};

struct ChainVerb {
  std::span<const Flag> flags;
  // What is done with the image. Errors need not name it.
  Task<Result<void>> (*work)(BlockNode& top, const ChainOptions& options);
  const char* done = nullptr;  // what is said at the end, unless -q
  bool needs_backing = false;  // -b, or -u
  bool discards = false;       // space that holds nothing any more goes back to the file system
};

// The whole of such a verb; gives the exit status.
int run_chain_verb(int argc, char** argv, const ChainVerb& verb);

}  // namespace platter::img

// What commit, rebase and stream share: they change an image with its backing chain, read the same
// options, and end alike.
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

// Reads the command line. Gives the exit status when there is nothing to be done but to leave.
std::optional<int> read_chain_options(int argc, char** argv, std::span<const Flag> flags,
                                      ChainOptions& options);

// How the image is opened.
OpenSpec chain_spec(const ChainOptions& options);

// Closes the image and reports what went wrong; gives the exit status.
Task<int> end_chain_work(Edge& image, std::string name, Result<void> result);

}  // namespace platter::img

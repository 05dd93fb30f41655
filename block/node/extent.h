// What a range of a node is: the answer that map, convert, measure, compare, jobs and NBD block
// status are all made from.
//
//   kind          reads as              bytes are at            may have host_offset
//   kData         the stored bytes      node + host_offset      yes (no, if the driver can't tell)
//   kCompressed   the unpacked bytes    node + host_offset      the packed bytes' place
//   kZero         zeroes                nowhere                 yes: space is preallocated there
//   kUnallocated  the backing node's    the backing node        yes: space is preallocated there
//                 bytes, or zeroes if
//                 there is none or it is shorter
//
// An "unknown" range is kData.
// Threads: values.
#pragma once

#include <cstdint>

namespace platter {

class BlockNode;

enum class ExtentKind : std::uint8_t { kData, kZero, kCompressed, kUnallocated };

// A piece of a node: [offset, offset + length), in bytes, all of one kind; host_offset is
// contiguous over it (except for kCompressed, which covers what one packed cluster holds).
struct Extent {
  static constexpr std::uint64_t kNoHost = ~std::uint64_t{0};

  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  ExtentKind kind = ExtentKind::kData;
  // Where the bytes lie: a node below (not owned; lives as long as the one asked), and the byte
  // offset in it; nullptr and kNoHost where there is no such place.
  BlockNode* node = nullptr;
  std::uint64_t host_offset = kNoHost;
  // The stored bytes may be a hole in the node below (space was preallocated): worth asking it.
  bool maybe_hole = false;

  bool has_host_offset() const { return host_offset != kNoHost; }
  std::uint64_t end() const { return offset + length; }
};

// The same over a whole backing chain: who holds the range and how it reads.
struct ChainExtent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  unsigned depth = 0;    // 0: the node that was asked; its backing is 1; and so on
  bool present = false;  // some node of the chain allocates it (data, zero or compressed)
  bool zero = false;     // reads as zeroes
  bool data = false;     // has stored bytes (packed or not)
  bool compressed = false;
  BlockNode* node = nullptr;  // the node of the lowest layer that host_offset counts in, if any
  std::uint64_t host_offset = Extent::kNoHost;
};

}  // namespace platter

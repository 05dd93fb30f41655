// DataTransform: what stored data is passed through between the guest and the file, such as a
// cipher. Metadata and packed data are not.
//
// Threads: any, several calls at once. May be CPU heavy: the engine calls it on codec threads for
// long requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "block/base/error.h"

namespace platter {

class DataTransform {
 public:
  // Requests come in multiples of this, in bytes, at offsets that are multiples of it.
  static constexpr std::uint32_t kUnit = 512;

  virtual ~DataTransform() = default;
  // In place. `host` and `guest` are where the first byte lies in the node below and on the disk.
  virtual Result<void> encode(std::span<std::byte> bytes, std::uint64_t host,
                              std::uint64_t guest) = 0;
  virtual Result<void> decode(std::span<std::byte> bytes, std::uint64_t host,
                              std::uint64_t guest) = 0;
};

}  // namespace platter

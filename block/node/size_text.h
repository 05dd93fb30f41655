// Sizes beyond what a disk can have. (parse_size in options.h reads those of disks.)
//
// Threads: any, pure. Errors: EINVAL for junk and negatives, ERANGE.
#pragma once

#include <cstdint>
#include <string_view>

#include "block/base/error.h"

namespace platter {

// "64K", "1.5G", "512" to bytes, as qemu-img reads sizes, up to what 64 bits without a sign hold.
Result<std::uint64_t> parse_size_64(std::string_view text);

}  // namespace platter

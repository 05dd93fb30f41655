// What `info` says of a qcow2 image beyond what it says of every image.
// Threads: a pure function.
#pragma once

#include <span>

#include "block/crypto/luks_header.h"
#include "block/node/abilities.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// Members and order are those of `qemu-img info --output=json` 7.2. `bitmaps`: the image's
// directory, empty when it has none. `luks`: its LUKS header, if it has one.
FormatInfo format_info(const Header& header, std::span<const BitmapEntry> bitmaps = {},
                       const crypto::LuksHeader* luks = nullptr);

}  // namespace platter::qcow2

#include "block/node/foreign_format.h"

#include <algorithm>

namespace platter {
namespace {

using namespace std::string_view_literals;

struct Magic {
  std::string_view format;
  std::size_t offset;
  std::string_view bytes;
};

// What QEMU's probes look for, or less where that decides as well: a header that is merely broken
// is no raw disk either. (A Bochs header's fields are 32, 16 and 16 bytes long.)
constexpr Magic kMagics[] = {
    {"vmdk"sv, 0, "KDMV"sv},
    {"vmdk"sv, 0, "COWD"sv},
    {"vdi"sv, 0x40, "\x7f\x10\xda\xbe"sv},
    {"vpc"sv, 0, "conectix"sv},
    {"vhdx"sv, 0, "vhdxfile"sv},
    {"qed"sv, 0, "QED\0"sv},
    {"luks"sv, 0, "LUKS\xba\xbe"sv},
    {"parallels"sv, 0, "WithoutFreeSpace"sv},
    {"parallels"sv, 0, "WithouFreSpacExt"sv},
    {"bochs"sv, 0, "Bochs Virtual HD Image\0"sv},
    {"cloop"sv, 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0"sv},
    {"qcow"sv, 0, "QFI\xfb\0\0\0\x01"sv},
};

// A VMDK descriptor is text: comments and empty lines, and then its version. Read exactly as QEMU
// reads it: what one of the two skips and the other does not is a way around the guard.
bool is_vmdk_descriptor(std::string_view text) {
  while (!text.empty()) {
    if (text.front() == '#') {
      text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
    } else if (text.front() == ' ') {
      text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
      if (text.starts_with('\r')) text.remove_prefix(1);
      if (!text.starts_with('\n')) return false;
    } else if (text.front() == '\r' || text.front() == '\n') {
      text.remove_prefix(1);
    } else {
      if (!text.starts_with("version=") || text.size() < 10) return false;
      const std::string_view end = text.substr(9);
      return text[8] >= '1' && text[8] <= '3' && (end.starts_with('\n') || end.starts_with("\r\n"));
    }
  }
  return false;
}

}  // namespace

std::optional<std::string_view> foreign_format(std::span<const std::byte> head,
                                               std::string_view filename) {
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  for (const Magic& magic : kMagics) {
    if (text.size() >= magic.offset && text.substr(magic.offset).starts_with(magic.bytes)) {
      return magic.format;
    }
  }
  if (is_vmdk_descriptor(text)) return "vmdk";
  if (filename.size() > 4 && filename.ends_with(".dmg")) return "dmg";
  return std::nullopt;
}

}  // namespace platter

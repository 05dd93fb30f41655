#include "tools/run/kernel_image.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::run {
namespace {

constexpr std::size_t kMaxSegments = 128;
constexpr std::uint32_t kNotePvhEntry = 18;     // XEN_ELFNOTE_PHYS32_ENTRY
constexpr std::uint64_t kMaxNotes = 64 * 1024;  // bytes of one note segment that are looked at

// Field offsets of the setup header (boot.rst, "The Real-Mode Kernel Header").
constexpr std::size_t kSetupSectors = 0x1f1, kBootFlag = 0x1fe, kJumpLength = 0x201, kMagic = 0x202,
                      kVersion = 0x206, kLoadFlags = 0x211, kCode32Start = 0x214,
                      kInitrdMax = 0x22c, kXLoadFlags = 0x236, kCommandLineSize = 0x238,
                      kInitSize = 0x260;
constexpr std::uint32_t kHeaderMagic = 0x53726448;  // "HdrS"
constexpr std::size_t kMinimumHeader = 0x23c;

std::span<const std::byte> part(std::span<const std::byte> file, std::uint64_t offset,
                                std::uint64_t size) {
  if (!range_within(offset, size, file.size())) return {};
  return file.subspan(offset, size);
}

// Looks for the PVH note among the notes of one segment.
std::optional<std::uint32_t> find_pvh_note(std::span<const std::byte> notes) {
  Reader reader(notes);
  while (reader.remaining() >= 12) {
    const auto name_size = reader.le<std::uint32_t>();
    const auto content_size = reader.le<std::uint32_t>();
    const auto type = reader.le<std::uint32_t>();
    if (name_size > reader.remaining()) return std::nullopt;
    const auto name = reader.bytes(name_size);
    reader.skip(align_up<std::size_t>(name_size, 4) - name_size);
    if (content_size > reader.remaining()) return std::nullopt;
    const auto content = reader.bytes(content_size);
    static constexpr char kXen[] = "Xen";  // with its terminator
    if (type == kNotePvhEntry && name.size() == sizeof kXen &&
        std::memcmp(name.data(), kXen, sizeof kXen) == 0 && content.size() >= 4) {
      return load_le<std::uint32_t>(content.data());
    }
    const std::size_t padding = align_up<std::size_t>(content_size, 4) - content_size;
    if (padding > reader.remaining()) return std::nullopt;
    reader.skip(padding);
  }
  return std::nullopt;
}

struct ProgramHeader {
  std::uint32_t type = 0;
  ElfImage::Segment segment;
};

ProgramHeader read_program_header(Reader& reader, bool wide) {
  ProgramHeader header;
  header.type = reader.le<std::uint32_t>();
  ElfImage::Segment& segment = header.segment;
  if (wide) {
    reader.skip(4);
    segment.file_offset = reader.le<std::uint64_t>();
    reader.skip(8);
    segment.address = reader.le<std::uint64_t>();
    segment.file_size = reader.le<std::uint64_t>();
    segment.memory_size = reader.le<std::uint64_t>();
    reader.skip(8);
  } else {
    segment.file_offset = reader.le<std::uint32_t>();
    reader.skip(4);
    segment.address = reader.le<std::uint32_t>();
    segment.file_size = reader.le<std::uint32_t>();
    segment.memory_size = reader.le<std::uint32_t>();
    reader.skip(8);
  }
  return header;
}

}  // namespace

bool looks_like_elf(std::span<const std::byte> file) {
  return file.size() >= 4 && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

bool looks_like_bzimage(std::span<const std::byte> file) {
  return file.size() >= kMinimumHeader &&
         load_le<std::uint16_t>(file.data() + kBootFlag) == 0xaa55 &&
         load_le<std::uint32_t>(file.data() + kMagic) == kHeaderMagic;
}

Result<ElfImage> parse_elf(std::span<const std::byte> file) {
  if (!looks_like_elf(file)) return fail(ENOEXEC, "not an ELF file");
  if (file.size() < EI_NIDENT) return fail(EINVAL, "the ELF header is cut off");
  const auto ident = [file](unsigned index) { return std::to_integer<unsigned>(file[index]); };
  const unsigned elf_class = ident(EI_CLASS);
  if (elf_class != ELFCLASS32 && elf_class != ELFCLASS64) {
    return fail(EINVAL, "ELF class {} is neither 32 nor 64 bits", elf_class);
  }
  if (ident(EI_DATA) != ELFDATA2LSB) return fail(EINVAL, "the ELF file is not little-endian");
  const bool wide = elf_class == ELFCLASS64;

  Reader reader(file);
  reader.skip(EI_NIDENT);
  const auto type = reader.le<std::uint16_t>();
  const auto machine = reader.le<std::uint16_t>();
  reader.skip(4);
  ElfImage image;
  image.entry = wide ? reader.le<std::uint64_t>() : reader.le<std::uint32_t>();
  const std::uint64_t table_offset = wide ? reader.le<std::uint64_t>() : reader.le<std::uint32_t>();
  reader.skip(wide ? 8 : 4);
  reader.skip(4 + 2);
  const auto entry_size = reader.le<std::uint16_t>();
  const auto count = reader.le<std::uint16_t>();
  if (!reader.ok()) return fail(EINVAL, "the ELF header is cut off");
  if (type != ET_EXEC) return fail(EINVAL, "ELF type {} is not an executable", type);
  if (machine != (wide ? EM_X86_64 : EM_386)) {
    return fail(EINVAL, "ELF machine {} is not x86", machine);
  }
  const std::size_t expected = wide ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
  if (entry_size != expected) {
    return fail(EINVAL, "ELF program header size is {}, not {}", entry_size, expected);
  }
  if (count > kMaxSegments) {
    return fail(EINVAL, "the ELF file has {} segments, at most {} are possible", count,
                kMaxSegments);
  }
  const auto table = part(file, table_offset, std::uint64_t{count} * entry_size);
  if (table.empty()) return fail(EINVAL, "the ELF program header table is cut off or empty");

  Reader headers(table);
  for (unsigned i = 0; i < count; ++i) {
    const ProgramHeader header = read_program_header(headers, wide);
    const ElfImage::Segment& segment = header.segment;
    if (header.type != PT_LOAD && header.type != PT_NOTE) continue;
    if (!range_within(segment.file_offset, segment.file_size, file.size())) {
      return fail(EINVAL, "ELF segment {} [{:#x}, +{:#x}) is beyond the end of the file", i,
                  segment.file_offset, segment.file_size);
    }
    if (header.type == PT_NOTE) {
      const auto note =
          find_pvh_note(part(file, segment.file_offset, std::min(segment.file_size, kMaxNotes)));
      if (note) image.pvh_entry = note;
      continue;
    }
    if (segment.memory_size < segment.file_size) {
      return fail(EINVAL, "ELF segment {} has {:#x} bytes in the file and only {:#x} in memory", i,
                  segment.file_size, segment.memory_size);
    }
    if (!checked_add(segment.address, segment.memory_size)) {
      return fail(EINVAL, "ELF segment {} at {:#x} wraps around", i, segment.address);
    }
    if (segment.memory_size != 0) image.segments.push_back(segment);
  }
  if (image.segments.empty()) return fail(EINVAL, "the ELF file has nothing to load");
  return image;
}

Result<BzImage> parse_bzimage(std::span<const std::byte> file) {
  if (!looks_like_bzimage(file)) return fail(ENOEXEC, "not a Linux bzImage");
  const auto u8 = [file](std::size_t at) { return std::to_integer<std::uint8_t>(file[at]); };
  const auto u16 = [file](std::size_t at) { return load_le<std::uint16_t>(file.data() + at); };
  const auto u32 = [file](std::size_t at) { return load_le<std::uint32_t>(file.data() + at); };

  BzImage image;
  image.protocol = u16(kVersion);
  if (image.protocol < 0x0206) {
    return fail(EINVAL, "boot protocol {}.{:02} is older than 2.06", image.protocol >> 8,
                image.protocol & 0xff);
  }
  if ((u8(kLoadFlags) & 1) == 0) {
    return fail(EINVAL, "the kernel loads low (a zImage), which is not possible here");
  }
  image.header_end = static_cast<std::uint32_t>(kMagic + u8(kJumpLength));
  if (image.header_end > file.size() || image.header_end < kMinimumHeader) {
    return fail(EINVAL, "the setup header ends at {:#x}, outside [{:#x}, {:#x}]", image.header_end,
                kMinimumHeader, file.size());
  }
  // boot.rst: "if setup_sects contains 0, the real value is 4"; the boot sector comes on top.
  const unsigned sectors = u8(kSetupSectors) == 0 ? 4 : u8(kSetupSectors);
  image.kernel_offset = (std::uint64_t{sectors} + 1) * 512;
  if (image.kernel_offset >= file.size()) {
    return fail(EINVAL, "the kernel is cut off: {} bytes, and its code starts at {:#x}",
                file.size(), image.kernel_offset);
  }
  image.kernel_size = file.size() - image.kernel_offset;
  image.load_address = u32(kCode32Start);
  image.initrd_max = u32(kInitrdMax);
  image.command_line_max = u32(kCommandLineSize);
  if (image.protocol >= 0x020a && image.header_end >= kInitSize + 4) {
    image.init_size = u32(kInitSize);
  }
  image.has_64bit_entry =
      image.protocol >= 0x020c && (u16(kXLoadFlags) & 1) != 0 && image.kernel_size > 0x200;
  return image;
}

}  // namespace platter::run

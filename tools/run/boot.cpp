#include "tools/run/boot.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "tools/run/file_bytes.h"
#include "tools/run/kernel_image.h"

namespace platter::run {
namespace {

constexpr std::uint64_t kMaxFile = 2 * kGiB;
constexpr std::uint64_t kMaxFirmware = 8 * kMiB;
constexpr std::uint64_t kFirmwareEnd = 4 * kGiB;
constexpr std::uint64_t kLegacyFirmwareEnd = kMiB;
constexpr std::uint64_t kMaxLegacyFirmware = 256 * kKiB;

constexpr std::uint32_t kE820Ram = 1, kE820Reserved = 2;
constexpr std::uint32_t kPvhMagic = 0x336ec578;
constexpr std::uint64_t kTableMemory = 0xe0000;  // ACPI and MultiProcessor tables, up to 1 MiB
constexpr std::uint64_t kPvhMapAddress = kStartInfoAddress + 0x100;
constexpr std::uint64_t kPvhModuleAddress = kStartInfoAddress + 0x80;

struct MapEntry {
  std::uint64_t address;
  std::uint64_t size;
  std::uint32_t type = kE820Ram;
};

// Memory as the kernel should see it: the top of the first MiB has holes and tables.
std::vector<MapEntry> memory_map(const Memory& memory) {
  std::vector<MapEntry> map{{0, kBaseMemoryEnd},
                            {kTableMemory, kHighMemory - kTableMemory, kE820Reserved},
                            {kHighMemory, memory.low_ram_size() - kHighMemory}};
  if (memory.high_ram_size() != 0) map.push_back({kHighRamBase, memory.high_ram_size()});
  return map;
}

// Highest place below `limit` and the end of low RAM, page aligned, not under `floor`.
Result<MapEntry> load_initrd(const Memory& memory, const std::string& file, std::uint64_t floor,
                             std::uint64_t limit) {
  auto initrd = FileBytes::map(file, kMaxFile);
  PLATTER_TRY(initrd);
  const std::uint64_t size = initrd->bytes().size();
  const std::uint64_t end = std::min(memory.low_ram_size(), limit);
  if (size > end || align_down<std::uint64_t>(end - size, 4096) < floor) {
    return fail(ENOMEM, "could not load '{}': {} MiB do not fit between the kernel and {:#x}", file,
                size / kMiB + 1, end);
  }
  const std::uint64_t address = align_down<std::uint64_t>(end - size, 4096);
  auto written = memory.write(address, initrd->bytes());
  PLATTER_TRY(written);
  return MapEntry{address, size};
}

Result<void> write_command_line(const Memory& memory, const std::string& text,
                                std::uint64_t limit) {
  if (text.size() > limit || text.size() + 1 > kMaxCommandLine) {
    return fail(E2BIG, "the kernel command line has {} bytes, and at most {} fit", text.size(),
                std::min(limit, kMaxCommandLine - 1));
  }
  return memory.write(kCommandLineAddress, std::as_bytes(std::span(text.c_str(), text.size() + 1)));
}

// Flat 4 GiB segments at selectors 0x10 (code) and 0x18 (data), as boot.rst asks for. A 64-bit code
// segment takes the place of the 32-bit one for `wide`.
Result<void> write_gdt(const Memory& memory, bool wide) {
  std::array<std::byte, 32> table{};
  store_le<std::uint64_t>(table.data() + 0x10, wide ? 0x00af9b000000ffff : 0x00cf9b000000ffff);
  store_le<std::uint64_t>(table.data() + 0x18, 0x00cf93000000ffff);
  return memory.write(kGdtAddress, table);
}

// Identity map of the first 4 GiB with 2 MiB pages.
Result<void> write_page_tables(const Memory& memory) {
  constexpr std::uint64_t kPresentWritable = 3, kLargePage = 0x80;
  std::vector<std::byte> tables(6 * 4096);
  const auto entry = [&tables](std::size_t page, std::size_t index, std::uint64_t value) {
    store_le(tables.data() + page * 4096 + index * 8, value);
  };
  entry(0, 0, (kPageTableAddress + 4096) | kPresentWritable);
  for (std::size_t gib = 0; gib < 4; ++gib) {
    entry(1, gib, (kPageTableAddress + (2 + gib) * 4096) | kPresentWritable);
    for (std::size_t i = 0; i < 512; ++i) {
      entry(2 + gib, i, (gib * kGiB + i * 2 * kMiB) | kPresentWritable | kLargePage);
    }
  }
  return memory.write(kPageTableAddress, tables);
}

Result<EntryState> load_elf(const Memory& memory, const KernelRequest& request,
                            std::span<const std::byte> file) {
  auto image = parse_elf(file);
  PLATTER_TRY(image);
  if (!image->pvh_entry) {
    return fail(ENOEXEC, "the ELF file has no PVH entry note (a Linux kernel needs CONFIG_PVH)");
  }
  std::uint64_t kernel_end = 0;
  for (const ElfImage::Segment& segment : image->segments) {
    if (segment.address < kHighMemory) {
      return fail(EINVAL, "segment at {:#x} is below 1 MiB, which belongs to the loader",
                  segment.address);
    }
    auto target = memory.ram_at(segment.address, segment.memory_size);
    PLATTER_TRY(target);
    const auto source = file.subspan(segment.file_offset, segment.file_size);
    if (!source.empty()) std::memcpy(target->data(), source.data(), source.size());
    kernel_end = std::max(kernel_end, segment.address + segment.memory_size);
  }
  auto command_line = write_command_line(memory, request.command_line, kMaxCommandLine - 1);
  PLATTER_TRY(command_line);
  std::optional<MapEntry> initrd;
  if (request.initrd) {
    auto loaded = load_initrd(memory, *request.initrd, kernel_end, kFirmwareEnd);
    PLATTER_TRY(loaded);
    initrd = *loaded;
  }

  // hvm_start_info version 1, its module list and its memory map (Xen's public arch-x86/hvm).
  std::array<std::byte, 56> start{};
  Writer writer(start);
  const auto map = memory_map(memory);
  writer.le(kPvhMagic);
  writer.le(std::uint32_t{1});
  writer.le(std::uint32_t{0});
  writer.le(std::uint32_t{initrd ? 1U : 0U});
  writer.le(initrd ? kPvhModuleAddress : std::uint64_t{0});
  writer.le(kCommandLineAddress);
  writer.le(request.acpi_root);
  writer.le(kPvhMapAddress);
  writer.le(static_cast<std::uint32_t>(map.size()));
  writer.le(std::uint32_t{0});
  auto written = memory.write(kStartInfoAddress, start);
  PLATTER_TRY(written);
  if (initrd) {
    std::array<std::byte, 32> module{};
    Writer list(module);
    list.le(initrd->address);
    list.le(initrd->size);
    written = memory.write(kPvhModuleAddress, module);
    PLATTER_TRY(written);
  }
  std::vector<std::byte> table(map.size() * 24);
  Writer entries(table);
  for (const MapEntry& entry : map) {
    entries.le(entry.address);
    entries.le(entry.size);
    entries.le(entry.type);
    entries.le(std::uint32_t{0});
  }
  written = memory.write(kPvhMapAddress, table);
  PLATTER_TRY(written);
  auto gdt = write_gdt(memory, false);
  PLATTER_TRY(gdt);
  return EntryState{EntryState::Mode::kProtected, *image->pvh_entry, kStartInfoAddress, 0};
}

Result<EntryState> load_bzimage(const Memory& memory, const KernelRequest& request,
                                std::span<const std::byte> file) {
  auto image = parse_bzimage(file);
  PLATTER_TRY(image);
  if (image->load_address < kHighMemory) {
    return fail(EINVAL, "load address {:#x} is below 1 MiB", image->load_address);
  }
  const std::uint64_t needed = std::max<std::uint64_t>(image->init_size, image->kernel_size);
  auto target = memory.ram_at(image->load_address, needed);
  if (!target) {
    return fail(ENOMEM, "it needs {} MiB of memory from {:#x}", needed / kMiB + 1,
                image->load_address);
  }
  std::memcpy(target->data(), file.data() + image->kernel_offset, image->kernel_size);
  auto command_line = write_command_line(memory, request.command_line, image->command_line_max);
  PLATTER_TRY(command_line);

  // The zero page: the file's setup header, then what a loader fills in (boot.rst, zero-page.rst).
  std::vector<std::byte> page(4096);
  std::memcpy(page.data() + 0x1f1, file.data() + 0x1f1,
              std::min<std::size_t>(image->header_end, 0x290) - 0x1f1);
  if (request.initrd) {
    auto loaded = load_initrd(memory, *request.initrd, image->load_address + needed,
                              std::uint64_t{image->initrd_max} + 1);
    PLATTER_TRY(loaded);
    store_le(page.data() + 0x218, static_cast<std::uint32_t>(loaded->address));
    store_le(page.data() + 0x21c, static_cast<std::uint32_t>(loaded->size));
  }
  store_le(page.data() + 0x70, request.acpi_root);
  page[0x210] = std::byte{0xff};  // type_of_loader: one without a number
  store_le(page.data() + 0x228, static_cast<std::uint32_t>(kCommandLineAddress));
  const auto map = memory_map(memory);
  page[0x1e8] = static_cast<std::byte>(map.size());
  Writer entries(std::span<std::byte>(page).subspan(0x2d0));
  for (const MapEntry& entry : map) {
    entries.le(entry.address);
    entries.le(entry.size);
    entries.le(entry.type);
  }
  auto written = memory.write(kZeroPageAddress, page);
  PLATTER_TRY(written);
  if (!image->has_64bit_entry) {
    auto gdt = write_gdt(memory, false);
    PLATTER_TRY(gdt);
    return EntryState{EntryState::Mode::kProtected, image->load_address, 0, kZeroPageAddress};
  }
  auto prepared = prepare_long_mode(memory);
  PLATTER_TRY(prepared);
  return EntryState{EntryState::Mode::kLong, std::uint64_t{image->load_address} + 0x200, 0,
                    kZeroPageAddress};
}

}  // namespace

Result<void> prepare_long_mode(const Memory& memory) {
  auto gdt = write_gdt(memory, true);
  PLATTER_TRY(gdt);
  return write_page_tables(memory);
}

Result<EntryState> load_kernel(const Memory& memory, const KernelRequest& request) {
  auto file = FileBytes::map(request.kernel, kMaxFile);
  PLATTER_TRY(file);
  const auto bytes = file->bytes();
  Result<EntryState> entry = fail(ENOEXEC, "neither a Linux bzImage nor an ELF file");
  if (looks_like_elf(bytes)) {
    entry = load_elf(memory, request, bytes);
  } else if (looks_like_bzimage(bytes)) {
    entry = load_bzimage(memory, request, bytes);
  }
  if (!entry) return forward_error(entry, "could not load kernel '{}'", request.kernel);
  return entry;
}

Result<EntryState> load_firmware(Memory& memory, const std::string& file) {
  auto image = FileBytes::map(file, kMaxFirmware);
  PLATTER_TRY(image);
  const auto bytes = image->bytes();
  if (bytes.size() % (64 * kKiB) != 0) {
    return fail(EINVAL, "could not load firmware '{}': {} bytes is not a multiple of 64 KiB", file,
                bytes.size());
  }
  const std::uint64_t flash = kFirmwareEnd - bytes.size();
  auto added = memory.add_bank(BankKind::kRom, flash, bytes.size(), "firmware flash");
  PLATTER_TRY(added);
  auto written = memory.write(flash, bytes);
  PLATTER_TRY(written);
  // The reset vector jumps to the legacy copy. All that fits is put there at once, so the firmware
  // need not shadow itself.
  const auto legacy = bytes.last(std::min<std::size_t>(bytes.size(), kMaxLegacyFirmware));
  written = memory.write(kLegacyFirmwareEnd - legacy.size(), legacy);
  PLATTER_TRY(written);
  return EntryState{EntryState::Mode::kReset, 0, 0, 0};
}

}  // namespace platter::run

// Power-off as an operating system does it: from the root pointer through XSDT and FADT to the PM1a
// control register, and from the DSDT the sleep type that is soft-off.
#include "base.h"

namespace {

constexpr u64 kSearchStart = 0xe0000, kSearchEnd = 0x100000;
constexpr u32 kDsdt = 0x54445344, kFadt = 0x50434146, kXsdt = 0x54445358, kSoftOffName = 0x5f35535f;
constexpr u64 kRootSignature = 0x2052545020445352;  // "RSD PTR "
constexpr u16 kSleepEnable = 1U << 13;

// Not by power_off(): without good tables the only way out is a reset.
[[noreturn]] void reset(const char* why, u64 where) {
  Line line;
  line << "GUEST FAIL: ACPI: " << why << " " << where;
  line.print();
  for (;;) out8(0x64, 0xfe);
}

void check_sum(const char* what, u64 address, u64 length) {
  u8 sum = 0;
  for (u64 i = 0; i < length; ++i) sum = static_cast<u8>(sum + at<u8>(address + i));
  if (sum != 0) reset(what, sum);
}

// A table with its signature and checksum.
u64 table(u64 address, u32 signature) {
  if (at<u32>(address) != signature) reset("signature", at<u32>(address));
  check_sum("checksum of a table", address, at<u32>(address + 4));
  return address;
}

u64 root_pointer() {
  const u64 told = at<u64>(start_info + 32);
  u64 found = kSearchStart;
  while (found < kSearchEnd && at<u64>(found) != kRootSignature) found += 16;
  if (told != found) reset("the loader tells of another root pointer", told);
  check_sum("checksum of the root pointer", found, 20);
  check_sum("checksum of the whole root pointer", found, 36);
  return found;
}

u64 fixed_description() {
  const u64 xsdt = table(at<u64>(root_pointer() + 24), kXsdt);
  for (u64 entry = 36; entry < at<u32>(xsdt + 4); entry += 8) {
    const u64 address = at<u64>(xsdt + entry);
    if (at<u32>(address) == kFadt) return table(address, kFadt);
  }
  reset("no FADT", xsdt);
}

// Name (_S5_, Package () { type, ... }): the first element, zero, one or a byte.
u16 soft_off_type(u64 dsdt) {
  for (u64 i = 36; i + 8 < at<u32>(dsdt + 4); ++i) {
    u64 place = dsdt + i;
    if (at<u32>(place) != kSoftOffName || at<u8>(place + 4) != 0x12) continue;
    place += 5;
    place += 1 + (at<u8>(place) >> 6) + 1;  // length, number of elements
    return at<u8>(place) == 0x0a ? at<u8>(place + 1) : at<u8>(place);
  }
  reset("no soft-off", dsdt);
}

}  // namespace

void power_off() {
  const u64 fadt = fixed_description();
  const u64 dsdt = table(at<u64>(fadt + 140), kDsdt);
  const u16 port = static_cast<u16>(at<u64>(fadt + 172 + 4));
  const u16 value = static_cast<u16>(soft_off_type(dsdt) << 10 | kSleepEnable);
  Line line;
  line << "power-off by ACPI: port " << u64{port} << " value " << u64{value};
  line.print();
  for (;;) out16(port, value);
}

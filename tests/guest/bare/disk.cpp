#include "disk.h"

namespace {

constexpr u32 kAcknowledge = 1, kDriver = 2, kDriverOk = 4, kFeaturesOk = 8;
// Features: FLUSH 9, MQ 12, DISCARD 13, WRITE_ZEROES 14, indirect 28, event index 29, version 32.
constexpr u32 kFeaturesLow = 1U << 9 | 1U << 12 | 1U << 13 | 1U << 14 | 1U << 28 | 1U << 29;
constexpr u32 kFeaturesHigh = 1;
constexpr u16 kNext = 1, kWrite = 2, kIndirect = 4;
constexpr u64 kConfigCapacity = 0, kConfigQueues = 34;

u8 data_area[kMaxQueues][kSlots][kMaxData] __attribute__((aligned(4096)));

u32 read_pci(u32 slot, u32 offset) {
  out32(0xcf8, 0x80000000U | slot << 11 | (offset & 0xfc));
  return in32(0xcfc) >> (8 * (offset & 3));
}
void write_pci(u32 slot, u32 offset, u32 value) {
  out32(0xcf8, 0x80000000U | slot << 11 | offset);
  out32(0xcfc, value);
}

// A disk that refuses to be written offers no discard and no zero-writes either.
u32 wanted_of(u32 offered) {
  const u32 features = offered & kFeaturesLow;
  if (features != kFeaturesLow && argument("refusals=", 0) == 0) {
    give_up("GUEST FAIL: features", offered);
  }
  return features;
}

u64 address_of(const volatile void* p) { return reinterpret_cast<u64>(p); }

}  // namespace

Disk disk;

void Queue::set_up(u32 number, u32 vector) {
  vector_ = vector;
  for (u32 i = 0; i < kSlots; ++i) {
    slots[i].data = reinterpret_cast<u64*>(data_area[number][i]);
    slots[i].busy = false;
  }
}

void Queue::add(Slot& slot, Operation operation, u64 sector, u32 sectors) {
  slot.busy = true;
  slot.operation = operation;
  slot.sector = sector;
  slot.sectors = sectors;
  slot.status = 0xff;
  slot.header = {static_cast<u32>(operation), 0, sector};
  const u32 number = static_cast<u32>(&slot - slots);

  // Header, data or range or nothing, status.
  u32 parts = 0;
  slot.table[parts++] = {address_of(&slot.header), 16, kNext, 0};
  if (operation == Operation::kRead || operation == Operation::kWrite) {
    const u16 flags = operation == Operation::kRead ? kWrite : u16{0};
    slot.table[parts++] = {address_of(slot.data), sectors * kSectorSize,
                           static_cast<u16>(flags | kNext), 0};
  } else if (operation != Operation::kFlush) {
    slot.header.sector = 0;
    slot.range = {sector, sectors, 0};
    slot.table[parts++] = {address_of(&slot.range), 16, kNext, 0};
  }
  slot.table[parts++] = {address_of(&slot.status), 1, kWrite, 0};

  // Even slots go through an indirect table, odd ones through the ring's own descriptors, of which
  // each slot has four.
  const u32 first = number * 4;
  if (number % 2 == 0) {
    for (u32 i = 0; i < parts; ++i) slot.table[i].next = static_cast<u16>(i + 1);
    descriptors[first] = {address_of(slot.table), parts * 16, kIndirect, 0};
  } else {
    for (u32 i = 0; i < parts; ++i) {
      descriptors[first + i] = slot.table[i];
      descriptors[first + i].next = static_cast<u16>(first + i + 1);
    }
  }
  avail.ring[avail.index % kRingSize] = static_cast<u16>(first);
  fence();
  avail.index = static_cast<u16>(avail.index + 1);
}

void Queue::notify() {
  fence();
  // 2.7.10: notify when avail_event lies in what was added since the last notification.
  const u16 now = avail.index;
  const u16 event = used.avail_event;
  if (static_cast<u16>(now - event - 1) < static_cast<u16>(now - notified_)) {
    if (disk.pci) {
      at<u16>(notify_address) = static_cast<u16>(notify_value);
    } else {
      at<u32>(notify_address) = notify_value;
    }
  }
  notified_ = now;
}

Slot* Queue::take() {
  if (used.index == last_used_) return nullptr;
  fence();
  const u32 id = used.ring[last_used_ % kRingSize].id;
  ++last_used_;
  if (id % 4 != 0 || id / 4 >= kSlots) give_up("GUEST FAIL: used element with id", id);
  Slot& slot = slots[id / 4];
  if (!slot.busy) give_up("GUEST FAIL: a request finished twice, slot", id / 4);
  slot.busy = false;
  return &slot;
}

void Queue::wait() {
  const volatile u32& count = interrupt_counts[vector_ - kFirstVector];
  const u32 before = count;
  avail.used_event = last_used_;
  // Over MMIO the line rises again only after an acknowledgement, so this comes before the last
  // look at the ring.
  if (acknowledge_address != 0) at<u32>(acknowledge_address) = at<u32>(acknowledge_address - 4);
  fence();
  while (used.index == last_used_ && count == before) pause();
}

void Queue::want_interrupt() {
  // Counted before the acknowledgement: over MMIO all queues share a line, and what another queue
  // raises after it keeps ours from rising a second time.
  interrupts_seen_ = interrupt_counts[vector_ - kFirstVector];
  avail.used_event = last_used_;
  if (acknowledge_address != 0) at<u32>(acknowledge_address) = at<u32>(acknowledge_address - 4);
  fence();
}

void Queue::wait_for_interrupt() {
  while (interrupt_counts[vector_ - kFirstVector] == interrupts_seen_) pause();
}

void Disk::set_up(u32 wanted, u32 processors) {
  if (const char* found = find_text(command_line(), "virtio_mmio.device=")) {
    parse_number(found);
    const u64 base = parse_number(++found);
    const u32 pin = static_cast<u32>(parse_number(++found));
    set_up_mmio(base, pin, wanted);
    return;
  }
  for (u32 slot = 0; slot < 32; ++slot) {
    if (read_pci(slot, 0) == 0x10421af4) {
      set_up_pci(slot, wanted, processors);
      return;
    }
  }
  give_up("GUEST FAIL: no disk");
}

void Disk::set_up_mmio(u64 base, u32 pin, u32 wanted) {
  const auto reg = [base](u64 offset) -> volatile u32& { return at<u32>(base + offset); };
  if (reg(0) != 0x74726976 || reg(4) != 2 || reg(8) != 2)
    give_up("GUEST FAIL: no virtio-mmio disk");
  reg(0x70) = 0;
  reg(0x70) = kAcknowledge | kDriver;
  reg(0x14) = 0;
  const u32 features = wanted_of(reg(0x10));
  reg(0x24) = 0;
  reg(0x20) = features;
  reg(0x24) = 1;
  reg(0x20) = kFeaturesHigh;
  reg(0x70) = kAcknowledge | kDriver | kFeaturesOk;
  if ((reg(0x70) & kFeaturesOk) == 0) give_up("GUEST FAIL: features refused");
  sectors = reg(0x100 + kConfigCapacity) | static_cast<u64>(reg(0x100 + kConfigCapacity + 4)) << 32;
  const u32 offered_queues = at<u16>(base + 0x100 + kConfigQueues);
  queue_count = wanted < offered_queues ? wanted : offered_queues;
  for (u32 i = 0; i < queue_count; ++i) {
    Queue& queue = queues[i];
    queue.set_up(i, kFirstVector);
    reg(0x30) = i;
    if (reg(0x34) < kRingSize) give_up("GUEST FAIL: queue size", reg(0x34));
    reg(0x38) = kRingSize;
    reg(0x80) = static_cast<u32>(address_of(queue.descriptors));
    reg(0x84) = 0;
    reg(0x90) = static_cast<u32>(address_of(&queue.avail));
    reg(0x94) = 0;
    reg(0xa0) = static_cast<u32>(address_of(&queue.used));
    reg(0xa4) = 0;
    reg(0x44) = 1;
    queue.notify_address = base + 0x50;
    queue.acknowledge_address = base + 0x64;
    queue.notify_value = i;
  }
  route_pin(pin, kFirstVector);
  reg(0x70) = kAcknowledge | kDriver | kFeaturesOk | kDriverOk;
}

void Disk::set_up_pci(u32 slot, u32 wanted, u32 processors) {
  pci = true;
  const u64 bar = read_pci(slot, 0x10) & ~0xfU;
  u64 common = 0, notify = 0, config = 0, msix = 0;
  u32 multiplier = 0;
  for (u32 cap = read_pci(slot, 0x34) & 0xff; cap != 0; cap = read_pci(slot, cap) >> 8 & 0xff) {
    const u32 head = read_pci(slot, cap);
    if ((head & 0xff) == 0x11) {
      msix = bar + (read_pci(slot, cap + 4) & ~7U);
      write_pci(slot, cap, head | 0x80000000U);  // enable
      continue;
    }
    if ((head & 0xff) != 0x09) continue;
    const u64 place = bar + read_pci(slot, cap + 8);
    switch (head >> 24) {
      case 1:
        common = place;
        break;
      case 2:
        notify = place;
        multiplier = read_pci(slot, cap + 16);
        break;
      case 4:
        config = place;
        break;
      default:
        break;
    }
  }
  if (common == 0 || notify == 0 || config == 0 || msix == 0) give_up("GUEST FAIL: capabilities");

  at<u8>(common + 20) = 0;
  at<u8>(common + 20) = kAcknowledge | kDriver;
  at<u32>(common) = 0;
  const u32 features = wanted_of(at<u32>(common + 4));
  at<u32>(common + 8) = 0;
  at<u32>(common + 12) = features;
  at<u32>(common + 8) = 1;
  at<u32>(common + 12) = kFeaturesHigh;
  at<u8>(common + 20) = kAcknowledge | kDriver | kFeaturesOk;
  if ((at<u8>(common + 20) & kFeaturesOk) == 0) give_up("GUEST FAIL: features refused");
  sectors = at<u32>(config + kConfigCapacity) |
            static_cast<u64>(at<u32>(config + kConfigCapacity + 4)) << 32;
  const u32 offered_queues = at<u16>(config + kConfigQueues);
  queue_count = wanted < offered_queues ? wanted : offered_queues;
  for (u32 i = 0; i < queue_count; ++i) {
    Queue& queue = queues[i];
    const u32 vector = kFirstVector + 1 + i;
    queue.set_up(i, vector);
    const u64 entry = msix + 16 * (i + 1);
    at<u32>(entry) = 0xfee00000U | (i % processors) << 12;
    at<u32>(entry + 4) = 0;
    at<u32>(entry + 8) = vector;
    at<u32>(entry + 12) = 0;
    at<u16>(common + 22) = static_cast<u16>(i);
    if (at<u16>(common + 24) < kRingSize) give_up("GUEST FAIL: queue size", at<u16>(common + 24));
    at<u16>(common + 24) = kRingSize;
    at<u16>(common + 26) = static_cast<u16>(i + 1);
    if (at<u16>(common + 26) != i + 1) give_up("GUEST FAIL: vector refused for queue", i);
    at<u32>(common + 32) = static_cast<u32>(address_of(queue.descriptors));
    at<u32>(common + 36) = 0;
    at<u32>(common + 40) = static_cast<u32>(address_of(&queue.avail));
    at<u32>(common + 44) = 0;
    at<u32>(common + 48) = static_cast<u32>(address_of(&queue.used));
    at<u32>(common + 52) = 0;
    at<u16>(common + 28) = 1;
    queue.notify_address = notify + static_cast<u64>(at<u16>(common + 30)) * multiplier;
    queue.notify_value = i;
  }
  at<u8>(common + 20) = kAcknowledge | kDriver | kFeaturesOk | kDriverOk;
}

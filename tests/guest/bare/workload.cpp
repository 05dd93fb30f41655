// The bare guest's work: on every queue, with several requests in flight and each processor serving
// its own queues, writes, reads that are compared, flushes, discards and zero-writes at random
// places of the queue's own stripe; then all is read back and compared, and a table of what each
// sector must hold is written behind the stripes, for the host to compare the image with.
//
// Arguments on the command line: operations=N (a queue), queues=N, cpus=1|2, seed=N; refusals=1 (of
// a read-only disk) or 2 (of a guessed raw one): only see that those writes are refused.
#include "disk.h"

namespace {

constexpr u32 kStripeSectors = 4096;
// What a sector holds: the pattern of a generation from 1 on, or:
constexpr u32 kZero = 0;
constexpr u32 kDiscarded = 0xffffffff;  // some old pattern of this sector, or zeroes
constexpr u32 kLastWords = 0x1a57;      // a generation that no request uses
constexpr u64 kWordsInSector = kSectorSize / 8;

u32 contents[kMaxQueues][kStripeSectors] __attribute__((aligned(4096)));

struct Counts {
  u64 reads, writes, flushes, discards, zeroes;
};
Counts counts[kMaxQueues];
u32 generations[kMaxQueues];
u64 random_states[kMaxQueues];
volatile u32 go, finished;
u32 processors = 1;

u64 random_number(u32 queue) {
  u64& x = random_states[queue];
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

// The host's test knows this formula too.
u64 pattern_word(u64 sector, u32 generation, u64 word) {
  const u64 seed = sector << 32 | generation;
  return word == 0 ? seed : (seed + word) * 0x9e3779b97f4a7c15UL;
}

void fill(u64* data, u64 sector, u32 generation) {
  for (u64 i = 0; i < kWordsInSector; ++i) data[i] = pattern_word(sector, generation, i);
}

void compare(const u64* data, u64 sector, u32 expected) {
  u32 generation = expected;
  if (expected == kDiscarded) {
    generation = static_cast<u32>(data[0]);
    if (data[0] == 0) generation = kZero;
  }
  for (u64 i = 0; i < kWordsInSector; ++i) {
    const u64 word = generation == kZero ? 0 : pattern_word(sector, generation, i);
    if (data[i] != word) give_up("GUEST FAIL: wrong data, sector and word", sector, i);
  }
}

u32& content_of(u32 queue, u64 sector) { return contents[queue][sector % kStripeSectors]; }

// A random range of the queue's stripe that no request in flight touches.
bool choose_range(u32 number, u64& sector, u32& sectors) {
  const u64 r = random_number(number);
  sectors = static_cast<u32>(r % 4 == 0 ? 1 + (r >> 8) % 64 : 8 * (1 + (r >> 8) % 4));
  const u64 place = (r >> 32) % (kStripeSectors - sectors);
  sector = number * kStripeSectors + (r % 2 == 0 ? place & ~7UL : place);
  for (const Slot& other : disk.queues[number].slots) {
    if (other.busy && other.operation != Operation::kFlush &&
        sector < other.sector + other.sectors && other.sector < sector + sectors) {
      return false;
    }
  }
  return true;
}

void start(u32 number, Slot& slot) {
  Queue& queue = disk.queues[number];
  u64 sector = 0;
  u32 sectors = 0;
  while (!choose_range(number, sector, sectors)) {
  }
  const u64 kind = random_number(number) % 32;
  if (kind < 14) {
    const u32 generation = ++generations[number];
    for (u32 i = 0; i < sectors; ++i) {
      fill(slot.data + i * kWordsInSector, sector + i, generation);
      content_of(number, sector + i) = generation;
    }
    queue.add(slot, Operation::kWrite, sector, sectors);
    ++counts[number].writes;
  } else if (kind < 27) {
    queue.add(slot, Operation::kRead, sector, sectors);
    ++counts[number].reads;
  } else if (kind < 28) {
    queue.add(slot, Operation::kFlush, 0, 0);
    ++counts[number].flushes;
  } else if (kind < 30) {
    for (u32 i = 0; i < sectors; ++i) {
      u32& content = content_of(number, sector + i);
      if (content != kZero) content = kDiscarded;
    }
    queue.add(slot, Operation::kDiscard, sector, sectors);
    ++counts[number].discards;
  } else {
    for (u32 i = 0; i < sectors; ++i) content_of(number, sector + i) = kZero;
    queue.add(slot, Operation::kWriteZeroes, sector, sectors);
    ++counts[number].zeroes;
  }
}

void finish(u32 number, Slot& slot) {
  if (slot.status != 0) {
    give_up("GUEST FAIL: request failed, type and status", static_cast<u64>(slot.operation),
            slot.status);
  }
  if (slot.operation != Operation::kRead) return;
  for (u32 i = 0; i < slot.sectors; ++i) {
    compare(slot.data + i * kWordsInSector, slot.sector + i, content_of(number, slot.sector + i));
  }
}

// One request, with nothing else in flight, and its interrupt waited for; gives its status.
u8 status_of(u32 number, Operation operation, u64 sector, u32 sectors) {
  Queue& queue = disk.queues[number];
  Slot& slot = queue.slots[0];
  queue.want_interrupt();
  queue.add(slot, operation, sector, sectors);
  queue.notify();
  queue.wait_for_interrupt();
  for (;;) {
    if (const Slot* done = queue.take()) return done->status;
    queue.wait();
  }
}

void run_alone(u32 number, Operation operation, u64 sector, u32 sectors) {
  const u8 status = status_of(number, operation, sector, sectors);
  if (status != 0)
    give_up("GUEST FAIL: request failed, type and status", static_cast<u64>(operation), status);
}

// Runs `operations` requests on each of the processor's queues, kSlots at a time.
void run_queues(u32 processor, u64 operations) {
  u64 started[kMaxQueues] = {}, done[kMaxQueues] = {};
  for (;;) {
    bool all_done = true, progress = false;
    u32 waiting = 0;
    for (u32 number = processor; number < disk.queue_count; number += processors) {
      Queue& queue = disk.queues[number];
      while (Slot* slot = queue.take()) {
        finish(number, *slot);
        ++done[number];
        progress = true;
      }
      bool added = false;
      for (Slot& slot : queue.slots) {
        if (slot.busy || started[number] == operations) continue;
        start(number, slot);
        ++started[number];
        added = true;
      }
      if (added) queue.notify();
      if (done[number] < operations) {
        if (all_done) waiting = number;
        all_done = false;
      }
    }
    if (all_done) return;
    if (!progress) disk.queues[waiting].wait();
  }
}

// Everything again, in order.
void read_back(u32 processor) {
  constexpr u32 kStep = kMaxData / kSectorSize;
  for (u32 number = processor; number < disk.queue_count; number += processors) {
    run_alone(number, Operation::kFlush, 0, 0);
    for (u32 offset = 0; offset < kStripeSectors; offset += kStep) {
      const u64 sector = number * kStripeSectors + offset;
      run_alone(number, Operation::kRead, sector, kStep);
      for (u32 i = 0; i < kStep; ++i) {
        compare(disk.queues[number].slots[0].data + i * kWordsInSector, sector + i,
                contents[number][offset + i]);
      }
    }
  }
}

void write_table() {
  constexpr u32 kTableSectors = sizeof contents[0] / kSectorSize;
  const u64 first = disk.queue_count * kStripeSectors;
  for (u32 number = 0; number < disk.queue_count; ++number) {
    memcpy(disk.queues[0].slots[0].data, contents[number], sizeof contents[0]);
    run_alone(0, Operation::kWrite, first + number * kTableSectors, kTableSectors);
  }
  run_alone(0, Operation::kFlush, 0, 0);
  // The last sector is written after the last flush: switching off has to take it along.
  fill(disk.queues[0].slots[0].data, disk.sectors - 1, kLastWords);
  run_alone(0, Operation::kWrite, disk.sectors - 1, 1);
  Line line;
  line << "table: queues " << u64{disk.queue_count} << " stripe " << u64{kStripeSectors}
       << " sector " << first;
  line.print();
}

void expect_refusal(Operation operation, u64 sector) {
  if (status_of(0, operation, sector, 1) == 0) {
    give_up("GUEST FAIL: not refused, type and sector", static_cast<u64>(operation), sector);
  }
}

// A read-only disk takes nothing; a raw disk whose format was guessed takes no qcow2 header. Sector
// 0 stays zero, and the rest works.
void meet_refusals(bool read_only) {
  u64* const data = disk.queues[0].slots[0].data;
  if (read_only) {
    fill(data, 0, 1);
    expect_refusal(Operation::kWrite, 0);
    expect_refusal(Operation::kDiscard, 0);
    expect_refusal(Operation::kWriteZeroes, 0);
  } else {
    data[0] = 0x03000000fb494651;  // "QFI\xfb", version 3
    for (u64 i = 1; i < kWordsInSector; ++i) data[i] = 0;
    expect_refusal(Operation::kWrite, 0);
    fill(data, 1, 1);
    run_alone(0, Operation::kWrite, 1, 1);
    run_alone(0, Operation::kFlush, 0, 0);
  }
  run_alone(0, Operation::kRead, 0, 1);
  compare(data, 0, kZero);
}

void report() {
  for (u32 number = 0; number < disk.queue_count; ++number) {
    const Counts& c = counts[number];
    const u64 vector = disk.pci ? number + 1 : 0;
    Line line;
    line << "queue " << u64{number} << ": reads " << c.reads << " writes " << c.writes
         << " flushes " << c.flushes << " discards " << c.discards << " zeroes " << c.zeroes
         << " interrupts " << u64{interrupt_counts[vector]};
    line.print();
    if (interrupt_counts[vector] == 0) give_up("GUEST FAIL: no interrupt for queue", number);
  }
}

}  // namespace

extern "C" void guest_main(u32 processor) {
  const u64 operations = argument("operations=", 400);
  enable_local_apic();
  if (processor == 0) {
    Line line;
    line << "bare guest: " << operations << " operations a queue";
    line.print();
    processors = static_cast<u32>(argument("cpus=", 1));
    disk.set_up(static_cast<u32>(argument("queues=", kMaxQueues)), processors);
    if (const u64 refusals = argument("refusals=", 0)) {
      meet_refusals(refusals == 1);
      Line passed;
      passed << "GUEST PASS";
      passed.print();
      power_off();
    }
    if (disk.sectors < u64{disk.queue_count} * (kStripeSectors + 32)) {
      give_up("GUEST FAIL: disk too small, sectors", disk.sectors);
    }
    for (u32 i = 0; i < disk.queue_count; ++i) {
      random_states[i] = (argument("seed=", 1) + i + 1) * 0x2545f4914f6cdd1dUL;
      for (u32& content : contents[i]) content = kZero;
    }
    if (processors == 2) start_second_processor();
    __atomic_store_n(&go, 1, __ATOMIC_RELEASE);
  } else {
    while (__atomic_load_n(&go, __ATOMIC_ACQUIRE) == 0) pause();
    Line line;
    line << "processor " << u64{processor} << " is up";
    line.print();
  }
  run_queues(processor, operations);
  read_back(processor);
  __atomic_fetch_add(&finished, 1, __ATOMIC_ACQ_REL);
  if (processor != 0) {
    for (;;) pause();
  }
  while (__atomic_load_n(&finished, __ATOMIC_ACQUIRE) != processors) pause();
  report();
  write_table();
  Line line;
  line << "GUEST PASS";
  line.print();
  power_off();
}

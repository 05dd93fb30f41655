// A driver for virtio-blk over both transports, for the bare guest: split rings with indirect
// descriptors and EVENT_IDX, one interrupt vector per queue over PCI and one in all over MMIO.
// Field offsets and numbers: virtio 1.2, sections 2.7, 4.1, 4.2 and 5.2.
#pragma once

#include "base.h"

constexpr u32 kRingSize = 64;
constexpr u32 kSlots = 8;            // requests in flight per queue
constexpr u32 kMaxData = 32 * 1024;  // bytes of one request
constexpr u32 kSectorSize = 512;
constexpr u32 kMaxQueues = 8;

enum class Operation : u32 { kRead = 0, kWrite = 1, kFlush = 4, kDiscard = 11, kWriteZeroes = 13 };

struct Descriptor {
  u64 address;
  u32 length;
  u16 flags;
  u16 next;
};

// One request: its place in memory and what it was.
struct Slot {
  alignas(16) Descriptor table[4];  // the indirect table
  struct {
    u32 type;
    u32 reserved;
    u64 sector;
  } header;
  struct {
    u64 sector;
    u32 count;
    u32 flags;
  } range;  // of discard and write-zeroes
  volatile u8 status;
  bool busy;
  Operation operation;
  u64 sector;
  u32 sectors;
  u64* data;  // kMaxData bytes
};

class Queue {
 public:
  void set_up(u32 number, u32 vector);
  // Puts a request into the ring without notifying. `slot` is not busy.
  void add(Slot& slot, Operation operation, u64 sector, u32 sectors);
  // Tells the device, if it wants to know.
  void notify();
  // A finished request, no longer busy, or nullptr.
  Slot* take();
  // Waits for an interrupt unless a request has finished already.
  void wait();
  // For a queue with nothing in flight: the next request's end is to interrupt, and
  // wait_for_interrupt() returns only then.
  void want_interrupt();
  void wait_for_interrupt();

  Slot slots[kSlots];
  u64 notify_address;
  u32 notify_value;
  u64 acknowledge_address;  // MMIO: the interrupt acknowledge register; status is before it

  alignas(16) Descriptor descriptors[kRingSize];
  struct {
    u16 flags;
    volatile u16 index;
    volatile u16 ring[kRingSize];
    volatile u16 used_event;
  } avail;
  alignas(4) struct {
    u16 flags;
    volatile u16 index;
    struct {
      volatile u32 id;
      volatile u32 length;
    } ring[kRingSize];
    volatile u16 avail_event;
  } used;

 private:
  u32 vector_;
  u32 interrupts_seen_;
  u16 last_used_;
  u16 notified_;  // avail.index at the last notification
};

class Disk {
 public:
  // Finds the first virtio disk (MMIO from the command line, else PCI) and makes it ready.
  // Queue i's interrupt goes to processor i modulo `processors`.
  void set_up(u32 queues, u32 processors);

  Queue queues[kMaxQueues];
  u32 queue_count;
  u64 sectors;
  bool pci;

 private:
  void set_up_pci(u32 slot, u32 queues, u32 processors);
  void set_up_mmio(u64 base, u32 pin, u32 queues);
};

// All zero at the start, like everything in .bss: nothing runs constructors here.
extern Disk disk;

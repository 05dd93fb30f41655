#include "block/exec/slab.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "block/base/mutex.h"

namespace platter::detail {
namespace {

constexpr std::size_t kSlabBytes = std::size_t{1} << 20;

struct FreeBlock {
  FreeBlock* next;
};

// Lies in a slab's first page.
struct Slab {
  Slab* next = nullptr;  // among those that have a block to give
  Slab* previous = nullptr;
  FreeBlock* returned = nullptr;
  std::byte* untouched = nullptr;  // from here on nothing was ever given
  std::size_t used = 0;            // blocks
};

constexpr std::size_t blocks_in_slab(std::size_t block_bytes) {
  return (kSlabBytes - kSlabPage) / block_bytes;
}

Slab* slab_of(std::byte* block) {
  const auto address = reinterpret_cast<std::uintptr_t>(block);
  return reinterpret_cast<Slab*>(block - address % kSlabBytes);
}

// A new slab, aligned to its size: twice as much is mapped, and the ends are given back.
Slab* map_slab() {
  void* const mapped = ::mmap(nullptr, kSlabBytes * 2, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    std::fputs("platter: out of memory\n", stderr);
    std::abort();
  }
  auto* const bytes = static_cast<std::byte*>(mapped);
  const std::size_t head =
      (kSlabBytes - reinterpret_cast<std::uintptr_t>(mapped) % kSlabBytes) % kSlabBytes;
  if (head != 0) ::munmap(bytes, head);
  ::munmap(bytes + head + kSlabBytes, kSlabBytes - head);
  Slab* const slab = ::new (bytes + head) Slab;
  slab->untouched = bytes + head + kSlabPage;
  return slab;
}

// The slabs for blocks of one size. Never destroyed: buffers may live in other static objects.
struct SizeClass {
  Mutex mutex;
  // Those that have a block to give. The mutex guards what is in them, too.
  Slab* open PLATTER_GUARDED_BY(mutex) = nullptr;

  void link(Slab* slab) PLATTER_REQUIRES(mutex) {
    slab->previous = nullptr;
    slab->next = open;
    if (open) open->previous = slab;
    open = slab;
  }
  void unlink(Slab* slab) PLATTER_REQUIRES(mutex) {
    if (slab->next) slab->next->previous = slab->previous;
    (slab->previous ? slab->previous->next : open) = slab->next;
  }
};

constinit SizeClass classes[kSlabClasses];

}  // namespace

std::byte* allocate_block(unsigned size_class) {
  SizeClass& all = classes[size_class];
  const std::size_t bytes = kSlabPage << size_class;
  const MutexLock lock(all.mutex);
  if (!all.open) all.link(map_slab());
  Slab* const slab = all.open;
  std::byte* block = nullptr;
  if (slab->returned) {
    block = reinterpret_cast<std::byte*>(slab->returned);
    slab->returned = slab->returned->next;
  } else {
    block = slab->untouched;
    slab->untouched += bytes;
  }
  if (++slab->used == blocks_in_slab(bytes)) all.unlink(slab);
  return block;
}

void free_block(std::byte* block, unsigned size_class) noexcept {
  SizeClass& all = classes[size_class];
  const MutexLock lock(all.mutex);
  Slab* const slab = slab_of(block);
  if (slab->used == blocks_in_slab(kSlabPage << size_class)) all.link(slab);
  slab->returned = ::new (block) FreeBlock{slab->returned};
  // One empty slab stays, so that a lone buffer that comes and goes does not map it every time.
  if (--slab->used == 0 && (slab->next || slab->previous)) {
    all.unlink(slab);
    ::munmap(slab, kSlabBytes);
  }
}

}  // namespace platter::detail

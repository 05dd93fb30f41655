#include "block/exec/buffer.h"

#include <array>
#include <bit>
#include <new>

#include "block/exec/slab.h"

namespace platter {
namespace {

// Size classes 4 KiB, 8 KiB, ... 2 MiB; larger buffers come from the heap.
constexpr unsigned kBufferClasses = 10;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// A pool would hide a buffer's use after its end from the sanitizers.
constexpr std::size_t kKeepBytesPerClass = 0;
constexpr bool kSlabs = false;
#else
constexpr bool kSlabs = true;
constexpr std::size_t kKeepBytesPerClass = std::size_t{4} << 20;
#endif

constexpr std::size_t class_size(unsigned cls) { return Buffer::kAlignment << cls; }

unsigned class_of(std::size_t size) {
  const std::size_t pages = (size + Buffer::kAlignment - 1) / Buffer::kAlignment;
  return static_cast<unsigned>(std::bit_width(pages - 1));
}

std::byte* allocate_aligned(std::size_t size) {
  return static_cast<std::byte*>(::operator new(size, std::align_val_t{Buffer::kAlignment}));
}
void free_aligned(std::byte* data) noexcept {
  ::operator delete(data, std::align_val_t{Buffer::kAlignment});
}

static_assert(Buffer::kAlignment == detail::kSlabPage);

constexpr bool in_slab(unsigned cls) { return kSlabs && cls < detail::kSlabClasses; }

std::byte* allocate_class(unsigned cls) {
  return in_slab(cls) ? detail::allocate_block(cls) : allocate_aligned(class_size(cls));
}
void free_class(std::byte* data, unsigned cls) noexcept {
  if (in_slab(cls)) {
    detail::free_block(data, cls);
  } else {
    free_aligned(data);
  }
}

struct FreeBuffer {
  FreeBuffer* next;
};

class BufferPool {
 public:
  ~BufferPool() {
    for (unsigned cls = 0; cls < kBufferClasses; ++cls) {
      while (std::byte* const buffer = take(cls)) free_class(buffer, cls);
    }
    dead = true;
  }
  std::byte* take(unsigned cls) {
    List& list = lists_[cls];
    FreeBuffer* buffer = list.head;
    if (!buffer) return nullptr;
    list.head = buffer->next;
    --list.count;
    return reinterpret_cast<std::byte*>(buffer);
  }
  bool give(std::byte* data, unsigned cls) noexcept {
    List& list = lists_[cls];
    if (list.count * class_size(cls) >= kKeepBytesPerClass) return false;
    list.head = ::new (data) FreeBuffer{list.head};
    ++list.count;
    return true;
  }
  static thread_local bool dead;

 private:
  struct List {
    FreeBuffer* head = nullptr;
    std::size_t count = 0;
  };
  std::array<List, kBufferClasses> lists_{};
};

thread_local bool BufferPool::dead = false;
thread_local BufferPool buffer_pool;

}  // namespace

Buffer::Buffer(std::size_t size) : size_(size) {
  if (size == 0) return;
  const unsigned cls = class_of(size);
  if (cls < kBufferClasses) {
    if (!BufferPool::dead) data_ = buffer_pool.take(cls);
    if (!data_) data_ = allocate_class(cls);
  } else {
    data_ = allocate_aligned(size);
  }
}

Buffer Buffer::zeroed(std::size_t size) {
  Buffer buffer(size);
  if (size != 0) std::memset(buffer.data(), 0, size);
  return buffer;
}

void Buffer::release() noexcept {
  if (!data_) return;
  const unsigned cls = class_of(size_);
  if (cls >= kBufferClasses) {
    free_aligned(data_);
  } else if (BufferPool::dead || !buffer_pool.give(data_, cls)) {
    free_class(data_, cls);
  }
  data_ = nullptr;
  size_ = 0;
}

}  // namespace platter

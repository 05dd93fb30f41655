#include "block/exec/frame_pool.h"

#include <array>
#include <new>

namespace platter {
namespace {

constexpr std::size_t kClassSize = 64;
constexpr std::size_t kFrameClasses = 64;  // frames up to 4 KiB
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// A pool would hide a frame's use after its end from the sanitizers.
constexpr unsigned kKeepPerClass = 0;
#else
constexpr unsigned kKeepPerClass = 256;
#endif

struct FreeFrame {
  FreeFrame* next;
};

class FramePool {
 public:
  ~FramePool() {
    for (List& list : lists_) {
      while (FreeFrame* frame = list.head) {
        list.head = frame->next;
        ::operator delete(frame);
      }
    }
    dead = true;
  }

  void* allocate(std::size_t cls) {
    List& list = lists_[cls];
    if (FreeFrame* frame = list.head) {
      list.head = frame->next;
      --list.count;
      return frame;
    }
    return ::operator new((cls + 1) * kClassSize);
  }

  void release(void* memory, std::size_t cls) noexcept {
    List& list = lists_[cls];
    if (list.count >= kKeepPerClass) {
      ::operator delete(memory);
      return;
    }
    list.head = ::new (memory) FreeFrame{list.head};
    ++list.count;
  }

  // Coroutine frames can outlive a thread's pool only in static destruction; then the heap serves.
  static thread_local bool dead;

 private:
  struct List {
    FreeFrame* head = nullptr;
    unsigned count = 0;
  };
  std::array<List, kFrameClasses> lists_{};
};

thread_local bool FramePool::dead = false;
thread_local FramePool frame_pool;

}  // namespace

void* allocate_frame(std::size_t size) {
  const std::size_t cls = (size - 1) / kClassSize;
  if (cls >= kFrameClasses) return ::operator new(size);
  if (FramePool::dead) return ::operator new((cls + 1) * kClassSize);
  return frame_pool.allocate(cls);
}

void free_frame(void* frame, std::size_t size) noexcept {
  const std::size_t cls = (size - 1) / kClassSize;
  if (cls >= kFrameClasses || FramePool::dead) {
    ::operator delete(frame);
    return;
  }
  frame_pool.release(frame, cls);
}

}  // namespace platter

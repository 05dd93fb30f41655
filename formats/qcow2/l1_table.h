// The active L1 table in memory, in host byte order. Of a table that is mostly zeroes (a large,
// empty disk) only the pages with other entries take up memory.
//
// Threads: entries may be loaded anywhere while one thread stores.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace platter::qcow2 {

class L1Table {
 public:
  L1Table() = default;
  // `size` entries, all zero.
  explicit L1Table(std::uint64_t size) : size_(size) {
    // calloc() leaves large tables to the kernel, which gives memory for a page when it is written.
    entries_.reset(static_cast<std::uint64_t*>(std::calloc(size + 1, sizeof(std::uint64_t))));
    if (!entries_) throw std::bad_alloc();
  }

  std::uint64_t size() const { return size_; }
  std::uint64_t load(std::uint64_t i) const { return std::atomic_ref(entries_.get()[i]).load(); }
  void store(std::uint64_t i, std::uint64_t entry) {
    std::atomic_ref(entries_.get()[i]).store(entry);
  }
  // Of a table that nobody else sees yet.
  void fill(std::uint64_t i, std::uint64_t entry) {
    if (entry != 0) entries_.get()[i] = entry;
  }

 private:
  struct Free {
    void operator()(std::uint64_t* entries) const { std::free(entries); }
  };
  std::uint64_t size_ = 0;
  std::unique_ptr<std::uint64_t, Free> entries_;
};

}  // namespace platter::qcow2

#include "formats/qcow2/table_cache.h"

#include <algorithm>
#include <bit>

#include "block/base/checked.h"

namespace platter::qcow2 {
namespace {

// Smallest piece that is written back: a page, or a sector of small tables.
constexpr std::uint64_t kMinGranule = 512;
constexpr std::size_t kMaxWrites = 32;
constexpr std::uint64_t kMaxMerged = 1 << 20;

}  // namespace

void TableCache::configure(Config config, BlockNode& file,
                           std::function<std::uint64_t(std::uint64_t)> locate,
                           std::function<Task<Result<void>>()> clean) {
  slices_.clear();
  spare_.clear();
  limbo_.clear();
  dirty_.clear();
  index_.reset();
  hand_ = 0;
  config_ = config;
  granule_ = std::max(kMinGranule, config.slice_bytes / 64);
  file_ = &file;
  locate_ = std::move(locate);
  clean_ = std::move(clean);
  resize(config.slice_count);
}

void TableCache::resize(std::uint64_t slice_count) {
  std::unique_ptr<Slice*, Free> index(
      static_cast<Slice**>(std::calloc(std::max<std::uint64_t>(slice_count, 1), sizeof(Slice*))));
  if (!index) std::abort();
  if (index_) {
    std::copy_n(index_.get(), std::min(slice_count, config_.slice_count), index.get());
  }
  index_ = std::move(index);
  config_.slice_count = slice_count;
}

void TableCache::publish(Slice& slice) {
  slice.ready = true;
  slice.used.store(true, std::memory_order_relaxed);
  std::atomic_ref(index_.get()[slice.index]).store(&slice);
}

TableCache::Slice* TableCache::obtain(std::uint64_t index) {
  while (!limbo_.empty() && readers_->passed(limbo_.front().barrier)) {
    spare_.push_back(limbo_.front().slice);
    limbo_.pop_front();
  }
  Slice* slice = nullptr;
  if (!spare_.empty()) {
    slice = spare_.back();
    spare_.pop_back();
  } else {
    slices_.push_back(std::make_unique<Slice>());
    slice = slices_.back().get();
  }
  if (slice->data.size() == 0) slice->data = Buffer(config_.slice_bytes);
  slice->index = index;
  slice->dirty = slice->writing = 0;
  slice->ready = false;
  return slice;
}

void TableCache::evict(Slice& slice) {
  std::atomic_ref(index_.get()[slice.index]).store(nullptr);
  slice.ready = false;
  if (readers_) {
    limbo_.push_back({&slice, readers_->barrier()});
  } else {
    spare_.push_back(&slice);
  }
}

TableCache::Slice* TableCache::pick_victim() {
  // Twice around: the first time clears the marks of use.
  for (std::size_t step = 0; step < slices_.size() * 2; ++step) {
    hand_ = (hand_ + 1) % slices_.size();
    Slice& slice = *slices_[hand_];
    if (!evictable(slice)) continue;
    if (!slice.used.exchange(false, std::memory_order_relaxed)) return &slice;
  }
  return nullptr;
}

Task<Result<TableCache::Pin>> TableCache::load(std::uint64_t index) {
  bool cleaned = false;
  while (true) {
    UniqueMutexLock lock(mutex());
    if (index >= config_.slice_count) co_return Pin();
    if (Slice* slice = std::atomic_ref(index_.get()[index]).load()) {
      slice->used.store(true, std::memory_order_relaxed);
      co_return Pin(slice);
    }
    if (const auto busy = loading_.find(index); busy != loading_.end()) {
      co_await busy->second->waiters.wait(lock);
      continue;
    }
    const std::uint64_t host = locate_(index);
    if (host == 0) co_return Pin();
    if (resident() >= config_.capacity) {
      if (Slice* victim = pick_victim()) {
        evict(*victim);
      } else if (!cleaned && !dirty_.empty()) {
        lock.unlock();
        cleaned = true;
        auto cleaning = clean_();
        auto clean = co_await cleaning;
        // A reader is not to blame when it fails: what is dirty stays, and the next flush says so.
        static_cast<void>(clean);
        continue;
      }
      // Otherwise all are pinned, being written, or cannot be written: one more than planned.
    }
    Slice* slice = obtain(index);
    loading_.emplace(index, slice);
    lock.unlock();

    if (loads_) loads_();
    PLATTER_FAULT(*file_, config_.load_event);
    auto fetched = co_await file_->read(host, slice->data.iov());

    lock.lock();
    loading_.erase(index);
    slice->waiters.notify_all();
    const bool moved = locate_(index) != host;
    if (!fetched || moved) {
      spare_.push_back(slice);
      PLATTER_CO_TRY(fetched);
      continue;
    }
    slice->host = host;
    publish(*slice);
    co_return Pin(slice);
  }
}

Task<void> TableCache::make_room() {
  {
    MutexLock lock(mutex());
    if (dirty_.size() < config_.capacity / 2 || resident() < config_.capacity) co_return;
  }
  auto cleaning = clean_();
  auto clean = co_await cleaning;
  // What is dirty stays when it fails, and the next flush says so.
  static_cast<void>(clean);
}

TableCache::Slice* TableCache::add_zeroed(std::uint64_t index, std::uint64_t host) {
  if (resident() >= config_.capacity) {
    if (Slice* victim = pick_victim()) evict(*victim);
  }
  Slice* slice = obtain(index);
  std::memset(slice->data.data(), 0, slice->data.size());
  slice->host = host;
  publish(*slice);
  return slice;
}

void TableCache::mark_dirty(Slice& slice, std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t first = offset / granule_;
  const std::uint64_t last = (offset + length - 1) / granule_;
  const std::uint64_t count = last - first + 1;
  slice.dirty |= (count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << first;
  if (!slice.listed) {
    slice.listed = true;
    dirty_.push_back(&slice);
  }
}

bool TableCache::unwritten(std::uint64_t first, std::uint64_t count) const {
  for (std::uint64_t i = first; i < first + count; ++i) {
    const Slice* const slice = peek(i);
    if (slice && (slice->dirty != 0 || slice->writing != 0)) return true;
  }
  return false;
}

std::vector<TableCache::WriteBack> TableCache::take_dirty() {
  std::vector<WriteBack> batch;
  batch.reserve(dirty_.size());
  for (Slice* slice : dirty_) {
    slice->listed = false;
    if (slice->dirty == 0) continue;
    const auto first = static_cast<std::uint64_t>(std::countr_zero(slice->dirty));
    const auto end = static_cast<std::uint64_t>(std::bit_width(slice->dirty));
    WriteBack one;
    one.slice = slice;
    one.pin = Pin(slice);
    one.granules = slice->dirty;
    one.host = slice->host + first * granule_;
    // Clean granules between dirty ones go along: they are as on disk.
    one.copy = Buffer((end - first) * granule_);
    std::memcpy(one.copy.data(), slice->data.data() + first * granule_, one.copy.size());
    slice->writing = slice->dirty;
    slice->dirty = 0;
    batch.push_back(std::move(one));
  }
  dirty_.clear();
  return batch;
}

Task<Result<void>> TableCache::write(std::vector<WriteBack> batch) {
  std::sort(batch.begin(), batch.end(),
            [](const WriteBack& a, const WriteBack& b) { return a.host < b.host; });
  struct Group {
    std::size_t begin, end;
    std::vector<iovec> segments;
  };
  std::vector<Group> groups;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const bool joins = i != 0 && batch[i].host == batch[i - 1].host + batch[i - 1].copy.size() &&
                       bytes < kMaxMerged;
    if (!joins) {
      groups.push_back({i, i, {}});
      bytes = 0;
    }
    bytes += batch[i].copy.size();
    groups.back().end = i + 1;
    groups.back().segments.push_back({batch[i].copy.data(), batch[i].copy.size()});
  }
  std::vector<Task<Result<void>>> writes(groups.size());
  Result<void> result;
  for (std::size_t started = 0, done = 0; done < groups.size(); ++done) {
    for (; started < groups.size() && started - done < kMaxWrites; ++started) {
      const Group& group = groups[started];
      writes[started] = file_->write(batch[group.begin].host, IoVec(group.segments));
    }
    auto one = co_await writes[done];
    MutexLock lock(mutex());
    for (std::size_t i = groups[done].begin; i < groups[done].end; ++i) {
      if (one) {
        batch[i].slice->writing = 0;
      } else {
        restore(batch[i]);
      }
    }
    if (!one && result) result = std::move(one);
  }
  co_return result;
}

void TableCache::restore(const WriteBack& one) {
  one.slice->writing = 0;
  one.slice->dirty |= one.granules;
  if (!one.slice->listed) {
    one.slice->listed = true;
    dirty_.push_back(one.slice);
  }
}

void TableCache::put_back(std::vector<WriteBack> batch) {
  for (const WriteBack& one : batch) restore(one);
}

void TableCache::drop(std::uint64_t first, std::uint64_t count) {
  for (std::uint64_t i = first; i < first + count && i < config_.slice_count; ++i) {
    Slice* slice = std::atomic_ref(index_.get()[i]).load();
    if (!slice) continue;
    slice->dirty = 0;
    evict(*slice);
  }
  std::erase_if(dirty_, [](Slice* slice) PLATTER_REQUIRES(metadata_mutex) {
    if (slice->dirty == 0) slice->listed = false;
    return slice->dirty == 0;
  });
}

void TableCache::relocate(std::uint64_t first, std::uint64_t count, std::uint64_t host) {
  for (std::uint64_t i = 0; i < count && first + i < config_.slice_count; ++i) {
    if (Slice* slice = std::atomic_ref(index_.get()[first + i]).load()) {
      slice->host = host + i * config_.slice_bytes;
    }
  }
}

bool TableCache::holds(std::uint64_t first, std::uint64_t count) const {
  for (std::uint64_t i = first; i < first + count && i < config_.slice_count; ++i) {
    if (std::atomic_ref(index_.get()[i]).load()) return true;
  }
  return false;
}

void TableCache::give_up(std::uint64_t first, std::uint64_t count) {
  for (std::uint64_t i = first; i < first + count && i < config_.slice_count; ++i) {
    Slice* const slice = std::atomic_ref(index_.get()[i]).load();
    if (slice && evictable(*slice)) evict(*slice);
  }
}

void TableCache::shed_unused() {
  for (const auto& slice : slices_) {
    if (!evictable(*slice)) continue;
    if (!slice->used.exchange(false, std::memory_order_relaxed)) evict(*slice);
  }
  // The memory of those that nobody can look at any more; the others' goes at the next call.
  while (!limbo_.empty() && readers_->passed(limbo_.front().barrier)) {
    spare_.push_back(limbo_.front().slice);
    limbo_.pop_front();
  }
  for (Slice* slice : spare_) slice->data = Buffer();
}

}  // namespace platter::qcow2

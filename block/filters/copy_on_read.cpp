// copy-on-read: a filter that keeps what is read from a backing image in the image itself.
//
// Option: file (a node, or the options of one). What the image has allocated is read straight
// through; the rest is read in whole clusters, written back, and only then handed out.
//
// Threads: any. Members are immutable after open; RangeLock guards itself: a copy holds its
// clusters exclusively, whatever else changes them holds them shared.

#include <algorithm>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/exec/sync.h"
#include "block/node/graph.h"
#include "block/node/registry.h"

namespace platter {
namespace {

// What is copied at a time, at most (whole clusters).
constexpr std::uint64_t kMaxCopy = std::uint64_t{1} << 20;
constexpr std::uint64_t kDefaultCluster = std::uint64_t{64} << 10;

class CopyOnReadDriver : public Driver {
 public:
  CopyOnReadDriver(Edge file, bool read_only) : file_(std::move(file)), read_only_(read_only) {
    const std::uint64_t cluster = file_->skip_filters().driver().info().cluster_size;
    cluster_ = is_power_of_two(cluster) ? cluster : kDefaultCluster;
  }

  std::uint64_t size() const override { return file_->size(); }
  Limits limits() const override {
    // The node below pads and splits.
    Limits limits = file_->limits();
    limits.request_alignment = 1;
    limits.native_fua = true;
    return limits;
  }

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    if (read_only_) return file_->read(offset, iov, flags);
    return read_and_keep(offset, iov, flags);
  }

  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    RangeLock::Hold hold = shared(offset, iov.size());
    auto acquired = hold.acquire();
    co_await acquired;
    auto written = co_await file_->write(offset, iov, flags);
    co_return written;
  }

  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override {
    RangeLock::Hold hold = shared(offset, length);
    auto acquired = hold.acquire();
    co_await acquired;
    auto zeroed = co_await file_->write_zeroes(offset, length, flags);
    co_return zeroed;
  }

  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    RangeLock::Hold hold = shared(offset, length);
    auto acquired = hold.acquire();
    co_await acquired;
    auto discarded = co_await file_->discard(offset, length);
    co_return discarded;
  }

  Task<Result<void>> do_flush() override { return file_->flush(); }
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    return file_->extent(offset, length);
  }
  Task<Result<void>> do_resize(ResizeRequest request) override { return file_->resize(request); }

  Task<Result<void>> do_set_permissions(Permissions cumulative) override {
    // Copies leave what is read as it was.
    if (!read_only_ && (cumulative.need & perm::kConsistentRead) != 0) {
      cumulative.need |= perm::kWriteUnchanged;
    }
    return file_.set_permissions(cumulative);
  }

  std::vector<Edge*> children() override { return {&file_}; }
  BlockNode* storage() override { return file_.get(); }
  BlockNode* filtered() override { return file_.get(); }
  std::optional<std::uint64_t> allocated_size() override {
    return file_->driver().allocated_size();
  }
  void commit_reopen() override { read_only_ = file_->read_only(); }

 private:
  RangeLock::Hold shared(std::uint64_t offset, std::uint64_t length) {
    const std::uint64_t start = align_down(offset, cluster_);
    return {ranges_, start, align_up(offset + length, cluster_) - start, RangeLock::Mode::kShared};
  }

  Task<Result<void>> read_and_keep(std::uint64_t offset, IoVec iov, ReadFlags flags) {
    while (!iov.empty()) {
      auto extent = co_await file_->extent(offset, iov.size());
      PLATTER_CO_TRY(extent);
      std::uint64_t length = extent->length;
      if (extent->kind == ExtentKind::kUnallocated) {
        length = std::min(length, kMaxCopy);
        auto kept = co_await copy(offset, iov.first(length), flags);
        PLATTER_CO_TRY(kept);
      } else {
        auto read = co_await file_->read(offset, iov.first(length), flags);
        PLATTER_CO_TRY(read);
      }
      offset += length;
      iov = iov.from(length);
    }
    co_return {};
  }

  // Reads the clusters around `iov` and writes back those that are still not allocated.
  Task<Result<void>> copy(std::uint64_t offset, IoVec iov, ReadFlags flags) {
    const std::uint64_t start = align_down(offset, cluster_);
    const std::uint64_t whole = align_up(offset + iov.size(), cluster_);
    RangeLock::Hold hold(ranges_, start, whole - start, RangeLock::Mode::kExclusive);
    auto acquired = hold.acquire();
    co_await acquired;
    const std::uint64_t size = file_->size();
    if (!range_within(offset, iov.size(), size)) {
      // The disk has become shorter since it was asked what lies here; its own read says so.
      auto read = co_await file_->read(offset, iov, flags);
      co_return read;
    }
    const std::uint64_t end = std::min(whole, size);
    const Buffer clusters(end - start);
    auto read = co_await file_->read(start, clusters.iov(), flags);
    PLATTER_CO_TRY(read);
    for (std::uint64_t at = start; at < end;) {
      auto extent = co_await file_->extent(at, end - at);
      PLATTER_CO_TRY(extent);
      if (extent->kind == ExtentKind::kUnallocated) {
        const std::span<std::byte> bytes = clusters.span(at - start, extent->length);
        PLATTER_FAULT(*file_, FaultEvent::kCorWrite);
        auto written = co_await keep(at, bytes);
        PLATTER_CO_TRY(written);
      }
      at += extent->length;
    }
    iov.copy_from(clusters.data() + (offset - start));
    co_return {};
  }

  Task<Result<void>> keep(std::uint64_t offset, std::span<std::byte> bytes) {
    if (is_zero(bytes)) return file_->write_zeroes(offset, bytes.size());
    return file_->write(offset, IoVec(bytes), WriteFlags{.unchanged = true});
  }

  Edge file_;
  bool read_only_;
  std::uint64_t cluster_ = kDefaultCluster;
  RangeLock ranges_;
};

Task<Result<std::unique_ptr<Driver>>> open_copy_on_read(OpenContext& context) {
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto file = co_await context.open_child("file", none);
  PLATTER_CO_TRY(file);
  co_return std::make_unique<CopyOnReadDriver>(std::move(*file), context.flags.read_only);
}

const RegisterDriver registered_copy_on_read{
    DriverType{.name = "copy-on-read", .filter = true, .open = open_copy_on_read}};

}  // namespace
}  // namespace platter

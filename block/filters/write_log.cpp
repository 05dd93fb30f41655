#include "block/filters/write_log.h"

#include <algorithm>

#include "block/node/registry.h"

namespace platter {

std::size_t WriteLog::moments() const {
  const MutexLock lock(mutex_);
  return moments_;
}

void WriteLog::mark(std::string text) {
  Entry entry;
  entry.kind = Kind::kMark;
  entry.text = std::move(text);
  begin(std::move(entry));
}

void WriteLog::clear() {
  const MutexLock lock(mutex_);
  entries_.clear();
  moments_ = 0;
}

std::size_t WriteLog::begin(Entry entry) {
  const MutexLock lock(mutex_);
  entry.begin = moments_++;
  entries_.push_back(std::move(entry));
  return entries_.size() - 1;
}

void WriteLog::end(std::size_t index, bool failed) {
  const MutexLock lock(mutex_);
  entries_[index].end = moments_++;
  entries_[index].failed = failed;
}

bool WriteLog::durable(const Entry& entry, std::size_t cut) const {
  // What failed may have been done in part.
  if (entry.end == kNever || entry.end >= cut || entry.failed) return false;
  if (entry.fua) return true;
  for (const Entry& other : entries_) {
    if (other.kind == Kind::kFlush && other.disk == entry.disk && !other.failed &&
        other.begin > entry.end && other.end < cut)
      return true;
  }
  return false;
}

std::vector<std::size_t> WriteLog::durable_from() const {
  std::vector<std::size_t> from(entries_.size(), kNever);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (entry.end == kNever || entry.failed) continue;
    if (entry.fua) from[i] = entry.end + 1;
    // Flushes of one disk may overlap: the one that ends first counts.
    for (std::size_t j = i + 1; j < entries_.size() && entries_[j].begin < from[i]; ++j) {
      const Entry& flush = entries_[j];
      if (flush.kind == Kind::kFlush && flush.disk == entry.disk && !flush.failed &&
          flush.end != kNever && flush.begin > entry.end)
        from[i] = std::min(from[i], flush.end + 1);
    }
  }
  return from;
}

namespace {

class WriteLogDriver : public Driver {
 public:
  WriteLogDriver(Edge file, std::shared_ptr<WriteLog> log, unsigned disk)
      : file_(std::move(file)), log_(std::move(log)), disk_(disk) {}

  std::uint64_t size() const override { return file_->size(); }
  Limits limits() const override {
    Limits limits = file_->limits();
    limits.native_fua = true;
    return limits;
  }
  bool can_grow() const override { return file_->driver().can_grow(); }
  bool listens_to_events() const override { return file_->listens_to_events(); }
  Task<void> do_announce(FaultEvent event) override { return file_->announce(event); }

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    return file_->read(offset, iov, flags);
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    WriteLog::Entry entry{
        .kind = WriteLog::Kind::kWrite, .offset = offset, .length = iov.size(), .fua = flags.fua};
    entry.data.resize(iov.size());
    iov.copy_to(entry.data.data());
    entry.disk = disk_;
    const std::size_t index = log_->begin(std::move(entry));
    auto written = co_await file_->write(offset, iov, flags);
    log_->end(index, !written);
    co_return written;
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override {
    WriteLog::Entry entry{
        .kind = WriteLog::Kind::kZeroes, .offset = offset, .length = length, .fua = flags.fua};
    entry.disk = disk_;
    const std::size_t index = log_->begin(std::move(entry));
    auto zeroed = co_await file_->write_zeroes(offset, length, flags);
    log_->end(index, !zeroed);
    co_return zeroed;
  }
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    WriteLog::Entry entry{.kind = WriteLog::Kind::kDiscard, .offset = offset, .length = length};
    // Below us are disks whose discarded ranges read as zeroes.
    entry.zero_on_discard = true;
    entry.disk = disk_;
    const std::size_t index = log_->begin(std::move(entry));
    auto discarded = co_await file_->discard(offset, length);
    log_->end(index, !discarded);
    co_return discarded;
  }
  Task<Result<void>> do_flush() override {
    WriteLog::Entry entry{.kind = WriteLog::Kind::kFlush};
    entry.disk = disk_;
    const std::size_t index = log_->begin(std::move(entry));
    auto flushed = co_await file_->flush();
    log_->end(index, !flushed);
    co_return flushed;
  }
  Task<Result<void>> do_resize(ResizeRequest request) override {
    WriteLog::Entry entry{.kind = WriteLog::Kind::kResize, .length = request.size};
    entry.disk = disk_;
    const std::size_t index = log_->begin(std::move(entry));
    auto resized = co_await file_->resize(request);
    log_->end(index, !resized);
    co_return resized;
  }
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    return file_->extent(offset, length);
  }
  Task<Result<void>> do_set_permissions(Permissions cumulative) override {
    return file_.set_permissions(cumulative);
  }

  std::vector<Edge*> children() override { return {&file_}; }
  BlockNode* storage() override { return file_.get(); }
  BlockNode* filtered() override { return file_.get(); }
  std::optional<std::uint64_t> allocated_size() override {
    return file_->driver().allocated_size();
  }

 private:
  // Immutable after open; the log guards itself.
  Edge file_;
  const std::shared_ptr<WriteLog> log_;
  const unsigned disk_;
};

}  // namespace

Task<Result<NodePtr>> make_write_log_node(std::string node_name, NodePtr below,
                                          std::shared_ptr<WriteLog> log, unsigned disk) {
  static const DriverType type{.name = "write_log", .filter = true};
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto file =
      co_await Edge::attach(std::move(below), fmt::format("node '{}' as 'file'", node_name), none);
  PLATTER_CO_TRY(file);
  auto driver = std::make_unique<WriteLogDriver>(std::move(*file), std::move(log), disk);
  co_return BlockNode::create(type, std::move(driver), std::move(node_name), "",
                              OpenFlags{.read_only = false, .discard_unmap = true});
}

}  // namespace platter

#include "formats/qcow2/header_io.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kAtomic = kHeaderSwitch;
constexpr std::uint64_t kWindow = 65536;  // what is looked at of a larger first cluster

struct Range {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::uint64_t end() const { return offset + length; }
};

// Where the parts of a header on disk lie.
struct Shape {
  std::uint64_t fields_end = 0;
  std::uint64_t area_end = 0;  // of the extensions, their end marker with them
  Range name;
  std::vector<Range> extensions;             // with their heads, in order
  std::optional<std::size_t> feature_names;  // which of these
};

// nullopt: no header, or none whose parts can be told apart.
std::optional<Shape> shape_of(std::span<const std::byte> head) {
  if (head.size() < kAtomic || load_be<std::uint32_t>(head.data()) != kMagic) return std::nullopt;
  Shape shape;
  const auto version = load_be<std::uint32_t>(head.data() + 4);
  shape.name = {.offset = load_be<std::uint64_t>(head.data() + 8),
                .length = load_be<std::uint32_t>(head.data() + 16)};
  shape.fields_end = kHeaderV2Size;
  if (version >= 3) shape.fields_end = load_be<std::uint32_t>(&head[100]);
  if (!range_within(shape.name.offset, shape.name.length, head.size())) return std::nullopt;
  const std::uint64_t limit = shape.name.offset != 0 ? shape.name.offset : head.size();
  std::uint64_t at = shape.fields_end;
  bool ended = false;
  while (!ended && limit >= 8 && at <= limit - 8) {
    const auto type = load_be<std::uint32_t>(&head[at]);
    const std::uint64_t length = align_up<std::uint64_t>(load_be<std::uint32_t>(&head[at + 4]), 8);
    if (type == extension::kEnd) {
      at += 8;
      ended = true;
      continue;
    }
    if (length > limit - at - 8) return std::nullopt;
    if (type == extension::kFeatureNames) shape.feature_names = shape.extensions.size();
    shape.extensions.push_back({at, 8 + length});
    at += 8 + length;
  }
  shape.area_end = at;
  // Extensions that only the name's place ends stay where they are, and so does the name.
  if (!ended && shape.name.offset != 0) return std::nullopt;
  return shape;
}

bool overlap(Range a, Range b) {
  return a.length != 0 && b.length != 0 && a.offset < b.end() && b.offset < a.end();
}
// The part that is not in the first sector.
Range behind(Range range) {
  const std::uint64_t from = std::max(range.offset, kAtomic);
  return {from, range.end() > from ? range.end() - from : 0};
}

class HeaderWriter {
 public:
  HeaderWriter(BlockNode& file, std::uint64_t window) : file_(file), now_(window), next_(window) {}

  Task<Result<void>> write(const Header& header) {
    auto read = co_await read_padded(file_, 0, now_.span());
    PLATTER_CO_TRY(read);
    const Range area{0, header_area_size(header)};
    std::optional<Shape> old = shape_of(now_.span());
    const std::uint64_t name_length = header.backing_file.size();
    if (!old || area.length + name_length > next_.size()) {
      auto bytes = encode_header(header);
      PLATTER_CO_TRY(bytes);
      std::memcpy(next_.data(), bytes->data(), std::min(next_.size(), bytes->size()));
      auto written = co_await finish();
      co_return written;
    }
    if (overlap(behind(area), old->name)) {
      auto moved = co_await move_name(*old, std::max(area.end(), old->name.end()) + name_length);
      PLATTER_CO_TRY(moved);
    }
    const std::uint64_t name_at = place_name(header, area.end(), *old);
    auto bytes = encode_header(header, name_at);
    PLATTER_CO_TRY(bytes);
    std::memcpy(next_.data(), now_.data(), next_.size());
    std::memcpy(next_.data(), bytes->data(), area.length);
    std::memcpy(next_.data() + name_at, bytes->data() + name_at, name_length);
    const Range shown = behind({old->fields_end, old->area_end - old->fields_end});
    if (shown.length != 0 &&
        std::memcmp(now_.data() + shown.offset, next_.data() + shown.offset, shown.length) != 0) {
      auto dropped = co_await drop_feature_names(*old);
      PLATTER_CO_TRY(dropped);
      if (!*dropped) {
        auto moved = co_await move_extensions(*old, std::max(area.end(), name_at + name_length));
        PLATTER_CO_TRY(moved);
      }
    }
    auto written = co_await finish();
    co_return written;
  }

 private:
  // Where the new name goes: where it is, or to a place that the header on disk does not show.
  std::uint64_t place_name(const Header& header, std::uint64_t from, const Shape& old) const {
    const Range usual{from, header.backing_file.size()};
    if (usual.length == old.name.length && old.name.offset >= from &&
        std::memcmp(now_.data() + old.name.offset, header.backing_file.data(), usual.length) == 0)
      return old.name.offset;
    const Range extensions{old.fields_end, old.area_end - old.fields_end};
    if (!overlap(behind(usual), old.name) && !overlap(behind(usual), behind(extensions)))
      return from;
    const std::uint64_t other =
        std::max(from, align_up<std::uint64_t>(std::max(old.name.end(), old.area_end), 8));
    return other + usual.length <= next_.size() ? other : from;
  }

  // The header on disk keeps its name elsewhere; if there is room.
  Task<Result<void>> move_name(Shape& old, std::uint64_t to) {
    to = align_up<std::uint64_t>(std::max(to, kAtomic), 8);
    if (to + old.name.length > next_.size()) co_return {};
    std::memcpy(next_.data(), now_.data(), next_.size());
    std::memcpy(next_.data() + to, now_.data() + old.name.offset, old.name.length);
    store_be(next_.data() + 8, to);
    auto done = co_await finish();
    if (done) done = co_await file_.flush();
    old.name.offset = to;
    co_return done;
  }

  // The header on disk does without the feature names, and so without anything of the extensions
  // behind the first sector; if the others fit there.
  Task<Result<bool>> drop_feature_names(const Shape& old) {
    if (!old.feature_names) co_return false;
    std::uint64_t at = old.fields_end;
    Buffer sector(kAtomic);
    std::memcpy(sector.data(), now_.data(), kAtomic);
    for (std::size_t i = 0; i < old.extensions.size(); ++i) {
      if (i == *old.feature_names) continue;
      const Range& one = old.extensions[i];
      if (at + one.length + 8 > kAtomic) co_return false;
      std::memcpy(sector.data() + at, now_.data() + one.offset, one.length);
      at += one.length;
    }
    if (at + 8 > kAtomic) co_return false;
    std::memset(sector.data() + at, 0, kAtomic - at);
    auto done = co_await file_.write(0, sector.iov());
    if (done) done = co_await file_.flush();
    PLATTER_CO_TRY(done);
    std::memcpy(now_.data(), sector.data(), kAtomic);
    co_return true;
  }

  // The header on disk has its extensions, and the name behind them, at `from` or later; if there
  // is room. Version 3 gives their place as header_length: until the new header is there, readers
  // take what lies before them for fields that they do not know.
  Task<Result<void>> move_extensions(const Shape& old, std::uint64_t from) {
    if (load_be<std::uint32_t>(now_.data() + 4) < 3) co_return {};
    const std::uint64_t to =
        align_up(std::max({from, old.area_end, old.name.end(), kAtomic}), kAtomic);
    const std::uint64_t length = old.area_end - old.fields_end;
    const std::uint64_t name_to = to + align_up<std::uint64_t>(length, 8) + 8;
    const std::uint64_t end = align_up(name_to + old.name.length, kAtomic);
    if (end > next_.size()) co_return {};
    std::memset(next_.data() + to, 0, end - to);
    std::memcpy(next_.data() + to, now_.data() + old.fields_end, length);
    std::memcpy(next_.data() + name_to, now_.data() + old.name.offset, old.name.length);
    Buffer sector(kAtomic);
    std::memcpy(sector.data(), now_.data(), kAtomic);
    if (old.fields_end < kAtomic)
      std::memset(sector.data() + old.fields_end, 0, kAtomic - old.fields_end);
    store_be(sector.data() + 100, static_cast<std::uint32_t>(to));
    if (old.name.length != 0) store_be(sector.data() + 8, name_to);
    auto done = co_await file_.write(to, IoVec(next_.span(to, end - to)));
    if (done) done = co_await file_.flush();
    if (done) done = co_await file_.write(0, sector.iov());
    if (done) done = co_await file_.flush();
    PLATTER_CO_TRY(done);
    std::memcpy(now_.data() + to, next_.data() + to, end - to);
    std::memcpy(now_.data(), sector.data(), kAtomic);
    co_return {};
  }

  // From now_ to next_: what lies behind the first sector, then that.
  Task<Result<void>> finish() {
    std::uint64_t end = next_.size();
    while (end > kAtomic && now_.data()[end - 1] == next_.data()[end - 1]) --end;
    if (end > kAtomic) {
      end = std::min<std::uint64_t>(align_up(end, kAtomic), next_.size());
      auto written = co_await file_.write(kAtomic, IoVec(next_.span(kAtomic, end - kAtomic)));
      if (written) written = co_await file_.flush();
      PLATTER_CO_TRY(written);
    }
    auto switched = co_await file_.write(0, IoVec(next_.span(0, kAtomic)));
    PLATTER_CO_TRY(switched);
    std::memcpy(now_.data(), next_.data(), next_.size());
    co_return {};
  }

  BlockNode& file_;
  Buffer now_;  // what is on disk
  Buffer next_;
};

}  // namespace

Result<void> require_refcount_table(const Header& header) {
  if (header.refcount_table_fault.empty()) return {};
  return fail(EINVAL, "{}", header.refcount_table_fault);
}

Task<Result<void>> put_header(BlockNode& file, const Header& header) {
  HeaderWriter writer(file, std::min(header.cluster_size(), kWindow));
  auto written = co_await writer.write(header);
  co_return written;
}

}  // namespace platter::qcow2

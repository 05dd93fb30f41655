#include <fmt/format.h>

#include "block/jobs/stream.h"
#include "powercut/operation.h"

namespace platter::powercut {
namespace {

// Runs the tasks' starters one after another until one fails.
#define TRY_STEP(call)                \
  do {                                \
    auto step_done = co_await (call); \
    PLATTER_CO_TRY(step_done);        \
  } while (false)

using Done = Task<Result<void>>;

// About half a cluster, whole sectors.
std::uint64_t half(std::uint64_t cluster) { return cluster / 2 / kSector * kSector; }

Done fill_some(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(0, 4 * c));
  TRY_STEP(g.write(7 * c, 2 * c));
  TRY_STEP(g.write(20 * c, 3 * c));
  co_return {};
}

Done allocate(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(30 * c, 2 * c));
  TRY_STEP(g.write(c, kSector));
  TRY_STEP(g.write(40 * c + half(c), c));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(40 * c, kSector));
  TRY_STEP(g.write(60 * c, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(70 * c, c));
  co_return {};
}

Done fill_and_snap(Guest& g) {
  TRY_STEP(fill_some(g));
  TRY_STEP(g.snapshot("first"));
  co_return {};
}
Done overwrite(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(c + half(c), c));
  TRY_STEP(g.write(8 * c, c));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(8 * c, kSector));
  TRY_STEP(g.write(21 * c, kSector));
  TRY_STEP(g.flush());
  co_return {};
}

Done nothing(Guest&) { co_return {}; }
Done write_over_backing(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(2 * c + half(c), kSector));
  TRY_STEP(g.write(5 * c, 2 * c + half(c)));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(2 * c, kSector));
  // The backing image ends in the middle of a cluster.
  TRY_STEP(g.write(23 * c, kSector));
  TRY_STEP(g.write_zeroes(9 * c, c, true));
  TRY_STEP(g.discard(5 * c, c));
  TRY_STEP(g.flush());
  co_return {};
}

Done fill_packed(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(fill_some(g));
  TRY_STEP(g.write_compressed(10 * c, 4 * c));
  co_return {};
}
Done write_packed(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write_compressed(30 * c, 3 * c));
  TRY_STEP(g.flush());
  // Over packed, over plain, a part of a packed one.
  TRY_STEP(g.write_compressed(11 * c, 2 * c));
  TRY_STEP(g.write_compressed(c, c));
  TRY_STEP(g.write(10 * c, kSector));
  TRY_STEP(g.write(31 * c, c));
  TRY_STEP(g.flush());
  TRY_STEP(g.write_compressed(50 * c, 2 * c));
  TRY_STEP(g.flush());
  co_return {};
}

Done discard_and_reuse(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.discard(c, 2 * c));
  TRY_STEP(g.discard(20 * c, c));
  TRY_STEP(g.write(30 * c, c));
  TRY_STEP(g.flush());
  // What was freed may be used now.
  TRY_STEP(g.write(31 * c, 3 * c));
  TRY_STEP(g.discard(7 * c, 2 * c));
  TRY_STEP(g.write(7 * c, std::max(half(c), kSector)));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(50 * c, 2 * c));
  TRY_STEP(g.flush());
  co_return {};
}

Done zeroes(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write_zeroes(c, 2 * c, true));
  TRY_STEP(g.write_zeroes(7 * c, c, false));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(7 * c, kSector));
  TRY_STEP(g.write(2 * c, kSector));
  TRY_STEP(g.write_zeroes(20 * c, c + kSector, false));
  TRY_STEP(g.write_zeroes(40 * c, c, true));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(20 * c, c));
  TRY_STEP(g.flush());
  co_return {};
}

Done many_tables(Guest& g) {
  const std::uint64_t covered = g.cluster() / 8 * g.cluster();  // by one L2 table
  TRY_STEP(g.write(covered, g.cluster()));
  TRY_STEP(g.write(2 * covered - kSector, 2 * kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(3 * covered, kSector));
  TRY_STEP(g.write_zeroes(3 * covered + g.cluster(), g.cluster(), true));
  TRY_STEP(g.flush());
  co_return {};
}
// A table shared with a snapshot is copied before it is changed.
Done many_tables_after_snapshot(Guest& g) {
  const std::uint64_t covered = g.cluster() / 8 * g.cluster();
  TRY_STEP(g.write(covered, g.cluster()));
  TRY_STEP(g.snapshot("first"));
  co_return {};
}

// Until the counts' own space is almost used up.
Done fill_counts(Guest& g) {
  const std::uint64_t c = g.cluster();
  // A block counts c/8 clusters, a table has c/8 entries.
  const std::uint64_t counted = c * c / 8 * (c == 512 ? c / 8 : 1);
  const std::uint64_t written = counted / 100 * 96 / c * c;
  for (std::uint64_t at = 0; at < written; at += 64 * c)
    TRY_STEP(g.write(at, std::min(64 * c, written - at)));
  co_return {};
}
Done grow_counts(Guest& g) {
  const std::uint64_t c = g.cluster();
  const std::uint64_t from = g.size() - 600 * c;
  for (std::uint64_t i = 0; i < 3; ++i) {
    TRY_STEP(g.write(from + i * 40 * c, 40 * c));
    TRY_STEP(g.flush());
  }
  co_return {};
}

Done snap(Guest& g) {
  TRY_STEP(g.write(30 * g.cluster(), kSector));
  TRY_STEP(g.snapshot("second"));
  TRY_STEP(g.write(30 * g.cluster(), kSector));
  TRY_STEP(g.flush());
  co_return {};
}
Done fill_snap_and_change(Guest& g) {
  TRY_STEP(fill_and_snap(g));
  TRY_STEP(overwrite(g));
  TRY_STEP(g.write(50 * g.cluster(), g.cluster()));
  co_return {};
}
Done apply(Guest& g) {
  TRY_STEP(g.apply("first"));
  TRY_STEP(g.write(g.cluster(), kSector));
  TRY_STEP(g.flush());
  co_return {};
}
Done remove(Guest& g) {
  TRY_STEP(g.remove("first"));
  // What was the snapshot's may be used now.
  TRY_STEP(g.write(60 * g.cluster(), 4 * g.cluster()));
  TRY_STEP(g.write(8 * g.cluster(), kSector));
  TRY_STEP(g.flush());
  co_return {};
}
Done several_snapshots(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.snapshot("second"));
  TRY_STEP(g.write(c, kSector));
  TRY_STEP(g.snapshot("third"));
  TRY_STEP(g.remove("first"));
  TRY_STEP(g.write(2 * c, 3 * c));
  TRY_STEP(g.apply("second"));
  TRY_STEP(g.remove("third"));
  TRY_STEP(g.write(c, kSector));
  TRY_STEP(g.flush());
  co_return {};
}

Done grow(Guest& g) {
  const std::uint64_t old = g.size();
  const std::uint64_t covered = g.cluster() / 8 * g.cluster();
  // Enough for a larger L1 table where clusters are small.
  TRY_STEP(g.resize(old + 70 * covered / (g.cluster() == 512 ? 1 : 35)));
  TRY_STEP(g.write(old - kSector, 4 * kSector));
  TRY_STEP(g.write(g.size() - kSector, kSector));
  TRY_STEP(g.flush());
  co_return {};
}
Done fill_all(Guest& g) {
  TRY_STEP(fill_some(g));
  TRY_STEP(g.write(g.size() - 10 * g.cluster(), 10 * g.cluster()));
  co_return {};
}
Done shrink(Guest& g) {
  const std::uint64_t old = g.size();
  TRY_STEP(g.resize(old - 5 * g.cluster() - kSector));
  TRY_STEP(g.write(50 * g.cluster(), 2 * g.cluster()));
  TRY_STEP(g.flush());
  TRY_STEP(g.resize(old));
  TRY_STEP(g.write(old - kSector, kSector));
  TRY_STEP(g.flush());
  co_return {};
}

BitmapAbility& bitmaps_of(Guest& g) { return *g.node().driver().bitmaps(); }

Done fill_marked(Guest& g) {
  TRY_STEP(fill_some(g));
  TRY_STEP(bitmaps_of(g).add(kMarks, 512, true));
  TRY_STEP(bitmaps_of(g).add("other", 4096, false));
  co_return {};
}
Done change_bitmaps(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(30 * c, kSector));
  TRY_STEP(bitmaps_of(g).add("new", 512, true));
  TRY_STEP(g.write(c, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(40 * c, c));
  auto marked = co_await bitmaps_of(g).contents(kMarks);
  PLATTER_CO_TRY(marked);
  TRY_STEP(bitmaps_of(g).merge("other", *marked));
  TRY_STEP(g.write_zeroes(7 * c, c, true));
  TRY_STEP(bitmaps_of(g).set_enabled("new", false));
  TRY_STEP(bitmaps_of(g).remove("other"));
  // What was freed may be used now.
  TRY_STEP(g.write(60 * c, 4 * c));
  TRY_STEP(bitmaps_of(g).clear("new"));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(70 * c, kSector));
  co_return {};
}
Done resize_marked(Guest& g) {
  const std::uint64_t old = g.size();
  TRY_STEP(g.write(30 * g.cluster(), kSector));
  TRY_STEP(g.resize(old + 3000 * g.cluster()));
  TRY_STEP(g.write(old, kSector));
  TRY_STEP(g.resize(old + 10 * g.cluster()));
  TRY_STEP(g.write(50 * g.cluster(), kSector));
  TRY_STEP(g.flush());
  co_return {};
}

Done change_overlay(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(2 * c, 2 * c));
  TRY_STEP(g.write(6 * c, kSector));
  TRY_STEP(g.write_zeroes(10 * c, c, true));
  TRY_STEP(g.write(40 * c, c));
  co_return {};
}

// The image is written to while it is streamed.
Done stream_in_use(Guest& g) {
  const std::uint64_t c = g.cluster();
  StreamOptions options;
  options.in_flight = 2;
  auto streaming = stream(g.node(), options);
  Result<void> written = co_await g.write(c, kSector);
  if (written) written = co_await g.write(12 * c + half(c), 2 * c);
  if (written) written = co_await g.write_zeroes(17 * c, c, true);
  if (written) written = co_await g.flush();
  if (written) written = co_await g.write(22 * c, kSector);
  auto streamed = co_await streaming;
  PLATTER_CO_TRY(written);
  PLATTER_CO_TRY(streamed);
  TRY_STEP(g.write(5 * c, kSector));
  TRY_STEP(g.flush());
  co_return {};
}

Done subclusters(Guest& g) {
  const std::uint64_t c = g.cluster();
  const std::uint64_t sub = c / 32;
  TRY_STEP(g.write(30 * c + 3 * sub, sub));
  TRY_STEP(g.write(30 * c + 9 * sub + kSector, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(30 * c, 2 * sub));
  TRY_STEP(g.write_zeroes(c + 4 * sub, 5 * sub, true));
  TRY_STEP(g.discard(2 * c + sub, 7 * sub));
  TRY_STEP(g.write(c + 5 * sub, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.write_zeroes(7 * c, c, true));
  TRY_STEP(g.write(7 * c + 31 * sub, 2 * sub));
  TRY_STEP(g.flush());
  co_return {};
}
Done fill_subclusters_and_snap(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(fill_some(g));
  TRY_STEP(g.write(30 * c + 12 * (c / 32), kSector));
  TRY_STEP(g.snapshot("first"));
  co_return {};
}

Done amend(Guest& g, std::string_view text) {
  auto options = Options::parse_keyval(text);
  PLATTER_CO_TRY(options);
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  auto amended = co_await g.node().driver().amender()->amend(*options, silent);
  PLATTER_CO_TRY(amended);
  TRY_STEP(g.write(30 * g.cluster(), 2 * g.cluster()));
  TRY_STEP(g.flush());
  co_return {};
}
Done upgrade(Guest& g) { return amend(g, "compat=1.1"); }
Done downgrade(Guest& g) { return amend(g, "compat=0.10"); }
Done widen_counts(Guest& g) { return amend(g, "refcount_bits=64"); }

Done mixed(Guest& g) {
  const std::uint64_t c = g.cluster();
  const std::uint64_t sectors = g.size() / kSector;
  bool taken = true;  // by fill_and_snap
  for (int i = 0; i < 40; ++i) {
    const std::uint64_t offset = g.random() % sectors * kSector;
    const std::uint64_t most = std::min<std::uint64_t>(5 * c, g.size() - offset);
    const std::uint64_t length = (1 + g.random() % (most / kSector)) * kSector;
    const std::uint64_t first = offset / c * c;
    switch (g.random() % 14) {
      case 0:
      case 1:
        TRY_STEP(g.write_compressed(first, std::min(2 * c, g.size() - first)));
        break;
      case 2:
        TRY_STEP(g.discard(offset, length));
        break;
      case 3:
        TRY_STEP(g.write_zeroes(offset, length, g.random() % 2 == 0));
        break;
      case 4:
        if (taken) {
          TRY_STEP(g.remove("first"));
        } else {
          TRY_STEP(g.snapshot("first"));
        }
        taken = !taken;
        break;
      case 5:
        if (taken && g.random() % 2 == 0) TRY_STEP(g.apply("first"));
        break;
      case 6:
      case 7:
        TRY_STEP(g.flush());
        break;
      default:
        TRY_STEP(g.write(offset, length));
        break;
    }
  }
  co_return {};
}

bool counts_can_grow(const Shape& shape) { return shape.version >= 3 && shape.cluster <= 4096; }
bool has_subclusters(const Shape& shape) { return shape.version >= 3 && shape.cluster == 65536; }
bool is_version_2(const Shape& shape) { return shape.version == 2; }
bool is_lazy(const Shape& shape) { return shape.lazy; }
bool is_version_3(const Shape& shape) { return shape.version >= 3; }

constexpr const char* kCommit[] = {"commit", "-q", "--image-opts", "TOP"};
constexpr const char* kRebase[] = {"rebase", "--image-opts", "-b", "memory:powercut-other",
                                   "-F",     "raw",          "TOP"};
constexpr const char* kStream[] = {"stream", "-q", "--image-opts", "TOP"};

using Kind = Operation::Kind;
using Backing = Operation::Backing;

const Operation kOperations[] = {
    {.name = "Create", .prepare = nothing, .kind = Kind::kCreate},
    {.name = "CreatePreallocated",
     .prepare = nothing,
     .create = "preallocation=metadata",
     .kind = Kind::kCreate},
    {.name = "AllocatingWrite", .prepare = fill_some, .act = allocate},
    {.name = "OverwriteAfterSnapshot", .prepare = fill_and_snap, .act = overwrite},
    {.name = "PartialWriteOverBacking",
     .prepare = nothing,
     .act = write_over_backing,
     .backing = Backing::kRaw},
    {.name = "CompressedWrite", .prepare = fill_packed, .act = write_packed},
    {.name = "Discard", .prepare = fill_some, .act = discard_and_reuse},
    {.name = "WriteZeroes", .prepare = fill_some, .act = zeroes},
    {.name = "L2Growth", .prepare = nothing, .act = many_tables, .tables = 4},
    {.name = "L2GrowthAfterSnapshot",
     .prepare = many_tables_after_snapshot,
     .act = many_tables,
     .tables = 4},
    {.name = "RefcountGrowth",
     .prepare = fill_counts,
     .act = grow_counts,
     .create = "refcount_bits=64",
     .clusters = 4096 + 1024,
     .fits = counts_can_grow},
    {.name = "SnapshotCreate", .prepare = fill_and_snap, .act = snap, .flags_may_lag = true},
    {.name = "SnapshotApply", .prepare = fill_snap_and_change, .act = apply, .flags_may_lag = true},
    {.name = "SnapshotDelete",
     .prepare = fill_snap_and_change,
     .act = remove,
     .flags_may_lag = true},
    {.name = "SeveralSnapshots",
     .prepare = fill_snap_and_change,
     .act = several_snapshots,
     .flags_may_lag = true},
    {.name = "ResizeGrow", .prepare = fill_all, .act = grow},
    {.name = "ResizeShrink", .prepare = fill_all, .act = shrink},
    {.name = "Bitmaps", .prepare = fill_marked, .act = change_bitmaps, .fits = is_version_3},
    {.name = "BitmapsResized", .prepare = fill_marked, .act = resize_marked, .fits = is_version_3},
    {.name = "Commit",
     .prepare = change_overlay,
     .command = kCommit,
     .backing = Backing::kOverlaid},
    {.name = "Rebase", .prepare = change_overlay, .command = kRebase, .backing = Backing::kRaw},
    {.name = "Stream", .prepare = change_overlay, .command = kStream, .backing = Backing::kRaw},
    {.name = "StreamInUse",
     .prepare = change_overlay,
     .act = stream_in_use,
     .backing = Backing::kRaw},
    {.name = "Repair", .prepare = fill_snap_and_change, .kind = Kind::kDamaged},
    {.name = "RepairOfTheRefcountTable", .prepare = fill_snap_and_change, .kind = Kind::kRebuilt},
    {.name = "OpenDirty",
     .prepare = fill_snap_and_change,
     .act = overwrite,
     .kind = Kind::kDirty,
     .fits = is_lazy},
    {.name = "Subclusters",
     .prepare = fill_subclusters_and_snap,
     .act = subclusters,
     .create = "extended_l2=on",
     .fits = has_subclusters},
    {.name = "SubclustersOverBacking",
     .prepare = nothing,
     .act = subclusters,
     .create = "extended_l2=on",
     .backing = Backing::kRaw,
     .fits = has_subclusters},
    {.name = "AmendUpgrade", .prepare = fill_snap_and_change, .act = upgrade, .fits = is_version_2},
    {.name = "AmendDowngrade",
     .prepare = fill_snap_and_change,
     .act = downgrade,
     .fits = is_version_3},
    {.name = "AmendRefcounts",
     .prepare = fill_snap_and_change,
     .act = widen_counts,
     .fits = is_version_3},
    {.name = "Mixed", .prepare = fill_and_snap, .act = mixed, .flags_may_lag = true},
};

constexpr Shape kShapes[] = {
    {"v2c512", 2, 512, false},    {"v2c4k", 2, 4096, false},    {"v2c64k", 2, 65536, false},
    {"v3c512", 3, 512, false},    {"v3c4k", 3, 4096, false},    {"v3c64k", 3, 65536, false},
    {"v3c512lazy", 3, 512, true}, {"v3c4klazy", 3, 4096, true}, {"v3c64klazy", 3, 65536, true},
};

}  // namespace

std::string Shape::create_options() const {
  return fmt::format("cluster_size={},compat={},lazy_refcounts={}", cluster,
                     version == 2 ? "0.10" : "1.1", lazy ? "on" : "off");
}

std::span<const Shape> all_shapes() { return kShapes; }
std::span<const Operation> all_operations() { return kOperations; }

}  // namespace platter::powercut

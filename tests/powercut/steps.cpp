#include "powercut/steps.h"

#include <fmt/format.h>

#include "block/jobs/stream.h"
#include "powercut/operation.h"

namespace platter::powercut {
namespace {

// About half a cluster, whole sectors.
std::uint64_t half(std::uint64_t cluster) { return cluster / 2 / kSector * kSector; }

Done amend(Guest& g, std::string_view text) {
  auto options = Options::parse_keyval(text);
  PLATTER_CO_TRY(options);
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  auto amended = co_await g.node().driver().amender()->amend(*options, false, silent);
  PLATTER_CO_TRY(amended);
  TRY_STEP(g.write(30 * g.cluster(), 2 * g.cluster()));
  TRY_STEP(g.flush());
  co_return {};
}

}  // namespace

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
Done fill_two_snapshots(Guest& g) {
  TRY_STEP(fill_and_snap(g));
  TRY_STEP(g.write(8 * g.cluster(), kSector));
  TRY_STEP(g.snapshot("second"));
  TRY_STEP(overwrite(g));
  co_return {};
}
Done snap_again(Guest& g) {
  TRY_STEP(g.snapshot("third"));
  TRY_STEP(g.remove("second"));
  TRY_STEP(g.write(30 * g.cluster(), 2 * g.cluster()));
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
Done rename(Guest& g) {
  TRY_STEP(g.rename("first", "third"));
  TRY_STEP(g.write(40 * g.cluster(), kSector));
  // In place of the one that was the first.
  TRY_STEP(g.rename("second", "third"));
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
// Past the end of an L2 table, so that space comes in more than one piece where clusters are small.
Done grow_preallocated(Guest& g) {
  const std::uint64_t old = g.size();
  TRY_STEP(g.resize(old + 70 * g.cluster(), Preallocation::kFull));
  TRY_STEP(g.write(old + g.cluster() - kSector, 2 * kSector));
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

// The backing image is longer then.
Done fill_and_shrink(Guest& g) {
  TRY_STEP(g.write(2 * g.cluster(), g.cluster()));
  TRY_STEP(g.resize(8 * g.cluster() + kSector));
  co_return {};
}
Done grow_over_backing(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.resize(12 * c));
  TRY_STEP(g.write(11 * c, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.resize(96 * c));
  TRY_STEP(g.write(8 * c + kSector, kSector));
  TRY_STEP(g.flush());
  co_return {};
}

Done fill_all_and_snap(Guest& g) {
  TRY_STEP(fill_all(g));
  TRY_STEP(g.snapshot("first"));
  TRY_STEP(g.write(g.size() - 3 * g.cluster(), kSector));
  co_return {};
}
// The VM state stays in the active tables, behind the disk's end.
Done fill_all_and_apply_vm_state(Guest& g) {
  TRY_STEP(fill_all(g));
  TRY_STEP(g.save_vm_state(3));
  TRY_STEP(g.snapshot("first"));
  TRY_STEP(g.apply("first"));
  co_return {};
}
Done grow_and_apply(Guest& g) {
  TRY_STEP(grow(g));
  TRY_STEP(g.snapshot("second"));
  TRY_STEP(g.apply("first"));
  TRY_STEP(g.write(g.size() - 2 * g.cluster(), kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.apply("second"));
  TRY_STEP(g.write(g.size() - 2 * kSector, kSector));
  TRY_STEP(g.flush());
  co_return {};
}
Done shrink_and_apply(Guest& g) {
  const std::uint64_t old = g.size();
  TRY_STEP(g.resize(old - 5 * g.cluster() - kSector));
  TRY_STEP(g.write(50 * g.cluster(), 2 * g.cluster()));
  TRY_STEP(g.snapshot("second"));
  TRY_STEP(g.flush());
  TRY_STEP(g.apply("first"));
  TRY_STEP(g.write(old - kSector, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.remove("first"));
  TRY_STEP(g.resize(old - 2 * g.cluster()));
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

Done upgrade(Guest& g) { return amend(g, "compat=1.1"); }
Done downgrade(Guest& g) { return amend(g, "compat=0.10"); }
// Zero clusters with and without space, of the disk alone and shared with a snapshot.
Done zero_and_snap(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(0, 4 * c));
  // What is free then is not empty.
  TRY_STEP(g.write_compressed(30 * c, 12 * c));
  TRY_STEP(g.write(30 * c, 12 * c));
  TRY_STEP(g.flush());
  TRY_STEP(g.write_zeroes(c, c, false));
  TRY_STEP(g.write_zeroes(9 * c, 2 * c, true));
  TRY_STEP(g.snapshot("first"));
  TRY_STEP(g.write(9 * c, kSector));
  TRY_STEP(g.write(20 * c, 2 * c));
  TRY_STEP(g.write_zeroes(20 * c, c, false));
  TRY_STEP(g.write_zeroes(14 * c, c, true));
  co_return {};
}
Done widen_counts(Guest& g) { return amend(g, "refcount_bits=64"); }
Done narrow_counts(Guest& g) { return amend(g, "refcount_bits=2"); }
Done switch_lazy(Guest& g) {
  TRY_STEP(g.write(60 * g.cluster(), kSector));
  TRY_STEP(amend(g, "lazy_refcounts=on"));
  TRY_STEP(g.discard(8 * g.cluster(), g.cluster()));
  TRY_STEP(g.write(31 * g.cluster(), 4 * g.cluster()));
  TRY_STEP(amend(g, "lazy_refcounts=off"));
  co_return {};
}

namespace {

// Slot 6 lies in two sectors of the header.
constexpr const char* kSlotInTwoSectors = "6";

Done add_new_key(Guest& g, std::string_view slot, bool force, const char* lost) {
  const std::string options =
      fmt::format("encrypt.state=active,encrypt.new-secret={},encrypt.iter-time=0{}{}", kNewKey,
                  slot.empty() ? "" : ",encrypt.keyslot=", slot);
  auto done = co_await g.change_keys(options, force, kNewKey, lost);
  co_return done;
}
// Requests go on.
Done write_on(Guest& g) {
  TRY_STEP(g.write(30 * g.cluster(), kSector));
  TRY_STEP(g.flush());
  co_return {};
}

}  // namespace

Done fill_with_two_keys(Guest& g) {
  TRY_STEP(fill_some(g));
  TRY_STEP(add_new_key(g, kSlotInTwoSectors, false, nullptr));
  co_return {};
}
Done fill_with_eight_keys(Guest& g) {
  TRY_STEP(fill_some(g));
  for (int i = 0; i < 7; ++i) TRY_STEP(add_new_key(g, "", false, nullptr));
  co_return {};
}
Done add_key(Guest& g) {
  TRY_STEP(add_new_key(g, "", false, nullptr));
  TRY_STEP(write_on(g));
  co_return {};
}
Done add_key_in_two_sectors(Guest& g) {
  TRY_STEP(add_new_key(g, kSlotInTwoSectors, false, nullptr));
  TRY_STEP(write_on(g));
  co_return {};
}
Done erase_key(Guest& g) {
  const std::string options =
      fmt::format("encrypt.state=inactive,encrypt.keyslot={}", kSlotInTwoSectors);
  TRY_STEP(g.change_keys(options, false, nullptr, kNewKey));
  TRY_STEP(write_on(g));
  co_return {};
}
Done erase_first_key(Guest& g) {
  const std::string options = fmt::format("encrypt.state=inactive,encrypt.old-secret={}", kOldKey);
  TRY_STEP(g.change_keys(options, false, nullptr, kOldKey));
  TRY_STEP(write_on(g));
  co_return {};
}
Done overwrite_first_key(Guest& g) {
  TRY_STEP(add_new_key(g, "0", true, kOldKey));
  TRY_STEP(write_on(g));
  co_return {};
}

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

}  // namespace platter::powercut

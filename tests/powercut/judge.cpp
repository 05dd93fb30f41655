// Whether an image is as a cut may leave it.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "block/crypto/secret.h"
#include "block/node/dirty_bitmap.h"
#include "block/node/open_state.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/storage_io.h"
#include "powercut/rig.h"

namespace platter::powercut {
namespace {

using Kind = Operation::Kind;

// One in so many states is looked at in these ways too, which cost more than the rest.
constexpr std::uint64_t kFullyOneIn = 16;
constexpr std::uint64_t kSnapshotsOneIn = 4;
constexpr std::uint64_t kGoOnOneIn = 8;
constexpr std::uint64_t kLargestReadFully = 4 << 20;

struct Findings {
  std::uint64_t errors = 0;
  std::uint64_t leaks = 0;
  std::uint64_t lagging_flags = 0;  // among the errors: flags "refcount is one" that are missing
  std::string lines;
};

Task<Result<Findings>> check(BlockNode& node, bool fix_leaks = false) {
  Findings findings;
  CheckRequest request;
  request.fix_leaks = fix_leaks;
  request.report = [&findings](std::string_view line) {
    if (line.find("OFLAG_COPIED") != std::string_view::npos && line.ends_with("refcount=1"))
      ++findings.lagging_flags;
    if (findings.lines.size() < 2000) findings.lines += fmt::format("\n  {}", line);
  };
  auto checked = co_await node.driver().checker()->check(request);
  PLATTER_CO_TRY(checked);
  findings.errors = checked->corruptions + checked->check_errors;
  findings.leaks = checked->leaks;
  co_return std::move(findings);
}

}  // namespace

Task<std::string> check_wrong(BlockNode& node, bool flags_may_lag, bool leaks_allowed) {
  auto found = co_await check(node);
  if (!found) co_return found.error().message();
  if (!leaks_allowed && found->leaks != 0) co_return "leaks:" + found->lines;
  if (found->errors == 0) co_return std::string();
  if (!flags_may_lag || found->errors != found->lagging_flags)
    co_return fmt::format("{} errors:{}", found->errors, found->lines);
  // Only flags: they go with the leaks.
  auto repaired = co_await check(node, true);
  if (!repaired) co_return repaired.error().message();
  auto again = co_await check(node);
  if (!again) co_return again.error().message();
  if (again->errors != 0) co_return "errors that a repair of leaks leaves:" + again->lines;
  co_return std::string();
}

namespace {

std::string snapshot_list_wrong(BlockNode& node, const History& history, std::size_t cut) {
  std::map<std::string, unsigned> present;
  for (const SnapshotInfo& info : node.driver().snapshots()->list()) ++present[info.name];
  for (const auto& [name, count] : present) {
    bool may = false;
    for (const SnapshotRecord& one : history.snapshots())
      may = may || (one.name == name && one.created_begin < cut &&
                    (one.removed_end == kNever || one.removed_end > cut));
    // Snapshots of before the recording have no moment.
    for (const SnapshotRecord& one : history.snapshots())
      may = may || (one.name == name && one.created_end == 0 &&
                    (one.removed_end == kNever || one.removed_end > cut));
    if (!may || count > 1) return fmt::format("{} snapshots '{}'", count, name);
  }
  for (const SnapshotRecord& one : history.snapshots()) {
    if (one.created_end <= cut && one.created_end != kNever && one.removed_begin >= cut &&
        !present.contains(one.name))
      return fmt::format("snapshot '{}' is gone", one.name);
    const bool renamed = !one.renamed_from.empty() && one.created_begin < cut;
    if (renamed && one.removed_begin >= cut && !present.contains(one.renamed_from) &&
        !present.contains(one.name))
      return fmt::format("snapshot '{}' is lost, on its way to become '{}'", one.renamed_from,
                         one.name);
  }
  return {};
}

// Whether what was done to snapshots' names allows `one` to be there beside `names`. (Of one that
// is renamed in place of another, one is there and never both, nor none.)
bool fits_names(const SnapshotRecord& one, const History& history,
                const std::vector<std::string>& names) {
  const auto there = [&names](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (!one.renamed_from.empty() && there(one.renamed_from)) return false;
  for (const SnapshotRecord& other : history.snapshots()) {
    const bool in_its_place = !other.renamed_from.empty() && other.name == one.name &&
                              other.created_begin == one.removed_begin;
    if (in_its_place && !there(other.renamed_from)) return false;
  }
  return true;
}

// What was there when the recording began.
Stamp stamp_before(const History& history, std::uint64_t sector) {
  Stamp stamp = history.first_stamp(sector);
  const auto known = history.sectors().find(sector);
  if (known == history.sectors().end()) return stamp;
  for (const History::Value& value : known->second) {
    if (value.end == 0) stamp = value.stamp;
  }
  return stamp;
}

// A bitmap that says it can be trusted has marked every sector that has changed.
Task<std::string> marks_wrong(BlockNode& node, const History& history) {
  BitmapAbility& bitmaps = *node.driver().bitmaps();
  for (const BitmapInfo& info : bitmaps.list()) {
    if (info.inconsistent) continue;
    auto contents = co_await bitmaps.contents(info.name);
    if (!contents) co_return fmt::format("bitmap '{}': {}", info.name, contents.error().message());
    if (info.name != kMarks) continue;
    auto stamps = co_await read_stamps(node, history);
    if (!stamps) co_return stamps.error().message();
    for (const auto& [sector, stamp] : *stamps) {
      if (stamp != stamp_before(history, sector) && !(*contents)->get(sector * kSector))
        co_return fmt::format("sector {} was written and is not marked", sector);
    }
  }
  co_return std::string();
}

// Bitmaps whose changes were noted are as those left them.
Task<std::string> bitmaps_wrong(BlockNode& node, const History& history, std::size_t cut) {
  std::set<std::string> names;
  for (const BitmapRecord& one : history.bitmaps()) names.insert(one.name);
  for (const BitmapInfo& info : node.driver().bitmaps()->list()) {
    if (names.erase(info.name) == 0) continue;
    std::shared_ptr<const DirtyBitmap> held;
    if (!info.inconsistent) {
      auto contents = co_await node.driver().bitmaps()->contents(info.name);
      if (!contents)
        co_return fmt::format("bitmap '{}': {}", info.name, contents.error().message());
      held = std::move(*contents);
    }
    if (!history.bitmap_allowed(info.name, held.get(), info.enabled, info.inconsistent, cut)) {
      co_return fmt::format("bitmap '{}' is {}, {}, and has {} marks", info.name,
                            info.enabled ? "enabled" : "disabled",
                            info.inconsistent ? "lost" : "whole", held ? held->count() : 0);
    }
  }
  for (const std::string& name : names) {
    if (!history.bitmap_allowed(name, nullptr, false, false, cut))
      co_return fmt::format("bitmap '{}' is gone", name);
  }
  co_return std::string();
}

// The snapshots' contents, in an image that is not open.
Task<std::string> snapshots_wrong(const std::string& options, const History& history,
                                  std::size_t cut, std::vector<std::string> names) {
  for (const std::string& name : names) {
    auto opened = co_await open_image(options, false);
    if (!opened) co_return opened.error().message();
    Edge node = std::move(*opened);
    auto loaded = co_await node->driver().snapshots()->load(name);
    if (!loaded) co_return loaded.error().message();
    auto stamps = co_await read_stamps(*node, history);
    if (!stamps) co_return fmt::format("snapshot '{}': {}", name, stamps.error().message());
    bool matches = false;
    for (const SnapshotRecord& one : history.snapshots()) {
      if (one.name != name || (one.created_begin >= cut && one.created_end != 0)) continue;
      if (!fits_names(one, history, names)) continue;
      bool same = true;
      for (const auto& [sector, stamp] : *stamps) {
        const auto known = one.stamps.find(sector);
        same = same &&
               stamp == (known != one.stamps.end() ? known->second : history.first_stamp(sector));
      }
      matches = matches || same;
    }
    auto closed = co_await node.detach();
    if (!closed) co_return closed.error().message();
    if (!matches) co_return fmt::format("snapshot '{}' holds something else", name);
  }
  co_return std::string();
}

// The guest goes on: what it writes now harms nothing that is there.
Task<std::string> go_on(Edge node, const std::string& options, const History& history,
                        const Shape& shape, std::uint64_t pick, bool flags_may_lag, bool resizes) {
  const std::uint64_t size = node->size();
  auto before = co_await read_stamps(*node, history);
  if (!before) co_return before.error().message();
  History later(size, history.backed());
  for (const auto& [sector, stamp] : *before) later.note(sector * kSector, kSector, stamp, 0, 0);
  for (const std::uint64_t sector : history.all_spoiled()) later.spoil(sector);
  Guest guest(std::move(node), later, nullptr, shape.cluster, static_cast<unsigned>(pick));
  // What was cut off is not there again when the disk grows.
  if (resizes) {
    auto grown = co_await guest.resize(size + 9 * shape.cluster);
    if (!grown) co_return grown.error().message();
  }
  for (int i = 0; i < 6; ++i) {
    const std::uint64_t at = guest.random() % (std::min(size, 90 * shape.cluster) / kSector);
    const std::uint64_t most = std::min(size - at * kSector, 3 * shape.cluster);
    auto written = co_await guest.write(at * kSector, most);
    if (!written) co_return written.error().message();
    if (i % 3 != 2) continue;
    auto flushed = co_await guest.flush();
    if (!flushed) co_return flushed.error().message();
  }
  std::string wrong = co_await check_wrong(guest.node(), flags_may_lag);
  if (!wrong.empty()) co_return "after more writes: " + wrong;
  auto closed = co_await guest.close();
  if (!closed) co_return closed.error().message();
  auto again = co_await open_image(options, true);
  if (!again) co_return again.error().message();
  Edge reopened = std::move(*again);
  wrong = co_await find_wrong(*reopened, later, kNever, false);
  if (!wrong.empty()) co_return "after more writes: " + wrong;
  closed = co_await reopened.detach();
  if (!closed) co_return closed.error().message();
  co_return std::string();
}

Task<std::string> base_wrong() {
  auto opened = co_await open_image(base_options(), true);
  if (!opened) co_return opened.error().message();
  Edge node = std::move(*opened);
  std::string wrong = co_await check_wrong(*node, false);
  auto closed = co_await node.detach();
  if (wrong.empty() && !closed) wrong = closed.error().message();
  co_return std::move(wrong);
}

Task<std::string> mend(const std::string& options) {
  auto opened = co_await open_image(options, true, true);
  if (!opened) co_return opened.error().message();
  Edge node = std::move(*opened);
  const CheckRequest request{.fix_leaks = true, .fix_errors = true, .report = {}};
  auto repaired = co_await node->driver().checker()->check(request);
  if (!repaired) co_return repaired.error().message();
  auto closed = co_await node.detach();
  if (!closed) co_return closed.error().message();
  co_return std::string();
}

// A slot that counts as active and that nobody can open would let the last good one be erased.
Task<std::string> slots_wrong() {
  BlockNode& file = *find_node(ground_name(0));
  auto header = co_await qcow2::read_header(file, qcow2::TableBounds::kInFile);
  if (!header) co_return header.error().message();
  auto luks = co_await qcow2::read_encryption_header(file, *header);
  if (!luks) co_return luks.error().message();
  for (std::size_t slot = 0; slot < luks->slots.size(); ++slot) {
    bool opens = !luks->slots[slot].active;
    for (const char* secret : {kOldKey, kNewKey}) {
      if (opens) break;
      auto passphrase = crypto::find_secret(secret);
      if (!passphrase) co_return passphrase.error().message();
      auto key = co_await crypto::try_luks_slot(file, header->extensions.encryption->offset, *luks,
                                                slot, std::move(*passphrase));
      if (!key) co_return key.error().message();
      opens = key->has_value();
    }
    if (!opens) co_return fmt::format("slot {} is active, and no passphrase opens it", slot);
  }
  co_return std::string();
}

// Which passphrases open it; `options` are then those with one that does.
Task<std::string> keys_wrong(const Operation& operation, const History& history, std::size_t cut,
                             std::string& options) {
  bool any = false;
  for (const char* secret : {kOldKey, kNewKey}) {
    const std::string with = top_options(operation, secret);
    auto opened = co_await open_image(with, false);
    if (!opened && opened.error().code() != EACCES) co_return opened.error().message();
    if (!history.key_allowed(secret, secret == kOldKey, opened.has_value(), cut))
      co_return fmt::format("{} {}", secret, opened ? "opens it" : "does not open it");
    if (!opened) continue;
    auto closed = co_await opened->detach();
    if (!closed) co_return closed.error().message();
    if (!any) options = with;
    any = true;
  }
  co_return any ? std::string() : std::string("no passphrase opens it");
}

Task<std::string> judge_task(const Operation& operation, const Shape& shape, const History& history,
                             std::size_t cut, bool complete, std::uint64_t pick) {
  std::string options = top_options(operation);
  const bool lag = operation.flags_may_lag && shape.version < 3;
  std::string wrong;
  // Once a repair has ended, it need not be done again.
  if (operation.repairs() && (history.repaired() == kNever || cut <= history.repaired())) {
    wrong = co_await mend(options);
    if (!wrong.empty()) co_return "repairing: " + wrong;
  }
  if (!history.keys().empty()) {
    wrong = co_await keys_wrong(operation, history, cut, options);
    if (wrong.empty()) wrong = co_await slots_wrong();
    if (!wrong.empty()) co_return std::move(wrong);
  }
  auto opened = co_await open_image(options, true);
  if (!opened) {
    // Until it is whole, a new image is none.
    if (operation.creates() && !complete) co_return std::string();
    co_return opened.error().message();
  }
  Edge node = std::move(*opened);
  // Without a cut and without a fault nothing is lost, space included.
  const bool undisturbed = complete && cut != kNever && !operation.repairs();
  wrong = co_await check_wrong(*node, lag, !undisturbed);
  if (!wrong.empty()) co_return std::move(wrong);
  const bool fully = pick % kFullyOneIn == 0 && node->size() <= kLargestReadFully;
  wrong = co_await find_wrong(*node, history, cut, fully);
  if (!wrong.empty()) co_return std::move(wrong);
  wrong = snapshot_list_wrong(*node, history, cut);
  if (!wrong.empty()) co_return std::move(wrong);
  wrong = co_await marks_wrong(*node, history);
  if (!wrong.empty()) co_return std::move(wrong);
  wrong = co_await bitmaps_wrong(*node, history, cut);
  if (!wrong.empty()) co_return std::move(wrong);
  std::vector<std::string> names;
  for (const SnapshotInfo& info : node->driver().snapshots()->list()) names.push_back(info.name);
  if (operation.resizes || pick / kFullyOneIn % kGoOnOneIn == 0) {
    wrong = co_await go_on(std::move(node), options, history, shape, pick, lag, operation.resizes);
  } else {
    auto closed = co_await node.detach();
    if (!closed) wrong = closed.error().message();
  }
  if (!wrong.empty()) co_return std::move(wrong);
  if (operation.has_middle()) {
    wrong = co_await base_wrong();
    if (!wrong.empty()) co_return "the backing image: " + wrong;
  }
  if (pick / kFullyOneIn / kGoOnOneIn % kSnapshotsOneIn == 0)
    wrong = co_await snapshots_wrong(options, history, cut, std::move(names));
  co_return std::move(wrong);
}

}  // namespace

std::string judge(const Operation& operation, const Shape& shape, const History& history,
                  std::size_t cut, bool complete, std::uint64_t pick) {
  return run([&] { return judge_task(operation, shape, history, cut, complete, pick); });
}

}  // namespace platter::powercut

// What a state after a cut may show of what the crowd has done.
#include <fmt/format.h>

#include <algorithm>

#include "powercut/crowd.h"
#include "powercut/rig.h"

namespace platter::powercut::crowd {

// What is wrong with what a sector shows, if it may show any change from `from` on.
std::string find_wrong(std::span<const std::byte> shown, std::uint64_t sector,
                       const std::vector<Change>& changes, std::size_t from, std::size_t cut) {
  const auto stamp = get_stamp(shown, sector);
  for (std::size_t i = from; i < changes.size(); ++i)
    if ((i == from || changes[i].begun < cut) && stamp == changes[i].stamp) return {};
  return fmt::format("sector {} of {} shows {}, at least {} was promised\n", sector, kSectors,
                     stamp ? fmt::format("{}", *stamp) : "what nobody wrote to it",
                     changes[from].stamp);
}

namespace {

// The last change for which `settled` is true (the first one always is).
std::size_t last_of(const std::vector<Change>& changes, const auto& settled) {
  std::size_t last = 0;
  for (std::size_t i = 1; i < changes.size(); ++i)
    if (settled(changes[i])) last = i;
  return last;
}

// As the guest saw the disk at one moment between the begin and the end of taking it.
Task<std::string> contents_wrong(const Evidence& evidence, std::size_t cut,
                                 const SnapshotRecord& snapshot) {
  auto opened = co_await open_image(evidence.options, false);
  if (!opened) co_return opened.error().message();
  Edge node = std::move(*opened);
  auto done = co_await node->driver().snapshots()->load(snapshot.name);
  if (!done) co_return done.error().message();
  std::vector<std::byte> now(kDisk);
  done = co_await node->read(0, IoVec(std::span(now)));
  if (!done) co_return done.error().message();
  std::string wrong;
  const std::size_t taken =
      snapshot.created_end == kNever ? cut : std::min(cut, snapshot.created_end + 1);
  for (std::uint64_t s = 0; s < kSectors; ++s) {
    const std::vector<Change>& changes = evidence.changes[s];
    const std::size_t from = last_of(
        changes, [&](const Change& change) { return change.done < snapshot.created_begin; });
    wrong += find_wrong(std::span(now).subspan(s * kSector, kSector), s, changes, from, taken);
  }
  done = co_await node.detach();
  if (!done) co_return done.error().message();
  if (!wrong.empty()) wrong = fmt::format("snapshot '{}': {}", snapshot.name, wrong);
  co_return std::move(wrong);
}

// Those that were taken and not removed are there, and no others.
std::string list_wrong(const Evidence& evidence, const std::vector<SnapshotInfo>& list,
                       std::size_t cut) {
  for (const SnapshotInfo& info : list) {
    const auto known = std::ranges::find(evidence.snapshots, info.name, &SnapshotRecord::name);
    if (known == evidence.snapshots.end() || known->created_begin >= cut ||
        known->removed_end <= cut)
      return fmt::format("there is a snapshot '{}'", info.name);
  }
  for (const SnapshotRecord& one : evidence.snapshots) {
    if (one.created_end <= cut && one.removed_begin >= cut &&
        std::ranges::find(list, one.name, &SnapshotInfo::name) == list.end())
      return fmt::format("there is no snapshot '{}'", one.name);
  }
  return {};
}

}  // namespace

Task<std::string> judge(const Evidence& evidence, std::size_t cut, std::uint64_t pick) {
  auto opened = co_await open_image(evidence.options, true);
  if (!opened) co_return opened.error().message();
  Edge node = std::move(*opened);
  std::string wrong = co_await check_wrong(*node, false, evidence.leaks_allowed);
  if (!wrong.empty()) co_return std::move(wrong);
  std::vector<std::byte> now(kDisk);
  auto got = co_await node->read(0, IoVec(std::span(now)));
  if (!got) co_return got.error().message();
  for (std::uint64_t s = 0; s < kSectors; ++s) {
    const std::vector<Change>& changes = evidence.changes[s];
    const std::size_t from =
        last_of(changes, [&](const Change& change) { return change.durable <= cut; });
    wrong += find_wrong(std::span(now).subspan(s * kSector, kSector), s, changes, from, cut);
  }
  const std::vector<SnapshotInfo> list = node->driver().snapshots()->list();
  if (wrong.empty()) wrong = list_wrong(evidence, list, cut);
  if (!wrong.empty()) co_return std::move(wrong);
  // The guest goes on.
  const std::uint64_t sector = pick % kSectors;
  std::vector<std::byte> data(kSector);
  put_stamp(data, 77, sector);
  auto done = co_await node->write(sector * kSector, IoVec(std::span(data)));
  if (done) done = co_await node->flush();
  if (!done) co_return done.error().message();
  wrong = co_await check_wrong(*node, false);
  if (!wrong.empty()) co_return "after a write: " + wrong;
  auto closed = co_await node.detach();
  if (!closed) co_return closed.error().message();
  const std::uint64_t look = pick / kSectors;
  if (!list.empty() && look % 2 == 0) {
    const std::string& name = list[look / 2 % list.size()].name;
    const auto known = std::ranges::find(evidence.snapshots, name, &SnapshotRecord::name);
    wrong = co_await contents_wrong(evidence, cut, *known);
  }
  co_return std::move(wrong);
}

}  // namespace platter::powercut::crowd

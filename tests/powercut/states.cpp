// Which states are tried. For each write in turn: the moment at which it has just begun, in every
// way in which it and the writes before it that no flush has confirmed may have come through, if
// these ways are few, else in a sample of them. States without that write are those of the moment
// before. What a flush has confirmed is tried by itself.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <unordered_set>

#include "powercut/rig.h"

namespace platter::powercut {
namespace {

using Entry = WriteLog::Entry;

class Explorer {
 public:
  Explorer(const Trial& trial, Budget budget)
      : trial_(trial),
        entries_(trial.log.entries()),
        durable_from_(trial.log.durable_from()),
        budget_(budget),
        random_(budget.seed) {
    for (unsigned i = 0; i < trial.before.size(); ++i) {
      disks_.push_back(std::make_unique<StateDisk>(trial.before[i]));
      grounds_.add(make_state_node(ground_name(i), *disks_.back()));
    }
  }

  std::uint64_t explore() {
    std::vector<std::size_t> writes;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (sectors_of(entries_[i]) != 0) writes.push_back(i);
    }
    for (std::size_t i = 0; i < entries_.size() && failed_.empty(); ++i) {
      if (sectors_of(entries_[i]) == 0) continue;
      // Just before: what is certain by now, and nothing else.
      const bool first_after_flush = i == 0 || sectors_of(entries_[i - 1]) == 0;
      if (first_after_flush) {
        gather(entries_[i].begin);
        try_one(entries_[i].begin, {}, false);
      }
      gather(entries_[i].begin + 1);
      const std::uint64_t left = budget_.states > states_ ? budget_.states - states_ : 0;
      const std::uint64_t writes_left = writes.size() - done_++;
      try_moment(entries_[i].begin + 1, std::max<std::uint64_t>(left / writes_left, 4));
    }
    const std::size_t end = trial_.log.moments();
    gather(end);
    if (failed_.empty()) try_one(end, {}, false);
    if (failed_.empty()) try_one(end, {}, true);
    if (!failed_.empty()) ADD_FAILURE() << trial_.name << ": " << failed_;
    return states_;
  }

 private:
  // Settles what a cut at `cut` leaves for certain, as far as nothing uncertain comes before it;
  // the rest is pending_, in order.
  void gather(std::size_t cut) {
    pending_.clear();
    std::vector<bool> blocked(disks_.size());
    while (settled_ < entries_.size() && entries_[settled_].begin < cut &&
           (sectors_of(entries_[settled_]) == 0 || durable_from_[settled_] <= cut)) {
      const Entry& entry = entries_[settled_];
      if (sectors_of(entry) != 0) disks_[entry.disk]->settle(entry);
      ++settled_;
    }
    sectors_ = 0;
    newest_ = 0;
    for (std::size_t i = settled_; i < entries_.size() && entries_[i].begin < cut; ++i) {
      const std::uint64_t sectors = sectors_of(entries_[i]);
      if (sectors == 0) continue;
      pending_.push_back(i);
      if (durable_from_[i] > cut) newest_ = sectors_, sectors_ += sectors;
    }
  }

  // `keep` says of each sector of what is pending and uncertain, in order, whether it is there;
  // empty: all or none of them.
  void try_one(std::size_t cut, const std::vector<bool>& keep, bool all) {
    // The same moment is not tried twice in the same state.
    std::uint64_t hash = std::hash<std::vector<bool>>()(keep) * 2 + (all ? 1 : 0);
    if (!seen_.insert(hash ^ (cut * 0x9e3779b97f4a7c15)).second) return;
    ++states_;
    for (const auto& disk : disks_) disk->reset();
    std::size_t at = 0;
    for (const std::size_t i : pending_) {
      const Entry& entry = entries_[i];
      const bool sure = durable_from_[i] <= cut;
      const auto fate = [&](std::uint64_t sector) {
        return sure || (keep.empty() ? all : keep[at + sector]);
      };
      disks_[entry.disk]->apply(entry, fate);
      if (!sure) at += sectors_of(entry);
    }
    const std::string wrong = trial_.judge(cut, cut == trial_.log.moments(), random_());
    if (!wrong.empty()) failed_ = describe(cut, keep, all) + wrong;
  }

  void try_moment(std::size_t cut, std::uint64_t most) {
    seen_.clear();
    const std::uint64_t newest_sectors = sectors_ - newest_;
    const std::uint64_t target = states_ + most;
    // Every state there is: each sector of the newest with each of the others.
    if (sectors_ < 20 && (std::uint64_t{1} << sectors_) <= most + most / 2) {
      for (std::uint64_t bits = 0; bits < std::uint64_t{1} << sectors_ && failed_.empty(); ++bits) {
        if (bits >> newest_ == 0) continue;
        std::vector<bool> keep(sectors_);
        for (std::uint64_t s = 0; s < sectors_; ++s) keep[s] = ((bits >> s) & 1) != 0;
        try_one(cut, keep, false);
      }
      return;
    }
    // Every subset of whole writes, if these are few.
    const std::vector<std::uint64_t> ends = uncertain_ends();
    const std::size_t others = ends.size() - 1;
    if (others < 20 && (std::uint64_t{1} << others) <= most) {
      for (std::uint64_t bits = 0; bits < std::uint64_t{1} << others && failed_.empty(); ++bits) {
        std::vector<bool> keep(sectors_, true);
        for (std::size_t w = 0; w < others; ++w) {
          if (((bits >> w) & 1) == 0)
            std::fill(keep.begin() + static_cast<std::ptrdiff_t>(w == 0 ? 0 : ends[w - 1]),
                      keep.begin() + static_cast<std::ptrdiff_t>(ends[w]), false);
        }
        try_one(cut, keep, false);
      }
    }
    for (std::uint64_t tries = 0; states_ < target && tries < 3 * most && failed_.empty();
         ++tries) {
      std::vector<bool> keep(sectors_);
      std::size_t from = 0;
      for (const std::uint64_t end : ends) {
        // None of a write, all of it, some sectors, its start or its end.
        const std::uint64_t kind = random_() % 6;
        const std::uint64_t edge = from + random_() % (end - from);
        for (std::size_t s = from; s < end; ++s) {
          keep[s] = kind == 0 || kind == 1 ? kind == 1
                    : kind == 2            ? s <= edge
                    : kind == 3            ? s >= edge
                                           : random_() % 2 == 0;
        }
        from = end;
      }
      const bool any = std::any_of(keep.end() - static_cast<std::ptrdiff_t>(newest_sectors),
                                   keep.end(), [](bool kept) { return kept; });
      if (!any) keep[newest_ + random_() % newest_sectors] = true;
      try_one(cut, keep, false);
    }
  }

  // Where each uncertain write's sectors end, counted over all of them.
  std::vector<std::uint64_t> uncertain_ends() const {
    std::vector<std::uint64_t> ends;
    std::uint64_t sum = 0;
    for (const std::size_t i : pending_) {
      // The newest is uncertain, so that whatever is pending after a durable one counts.
      if (sectors_ == sum) break;
      if (durable_now(i)) continue;
      sum += sectors_of(entries_[i]);
      ends.push_back(sum);
    }
    return ends;
  }
  bool durable_now(std::size_t i) const {
    return durable_from_[i] <= entries_[pending_.back()].begin + 1;
  }

  std::string describe(std::size_t cut, const std::vector<bool>& keep, bool all) const {
    std::string text = fmt::format("seed {}, cut at moment {} of {}, state {}:", budget_.seed, cut,
                                   trial_.log.moments(), states_);
    std::size_t at = 0;
    for (const std::size_t i : pending_) {
      const Entry& entry = entries_[i];
      const char* const names[] = {"write", "zeroes", "discard", "flush", "resize", "mark"};
      text += fmt::format("\n  disk {} {} of {:#x} at {:#x}, sectors kept: ", entry.disk,
                          names[static_cast<std::size_t>(entry.kind)], entry.length, entry.offset);
      if (durable_from_[i] <= cut) {
        text += "all, for certain";
        continue;
      }
      for (std::uint64_t s = 0; s < sectors_of(entry); ++s)
        text += (keep.empty() ? all : keep[at + s]) ? '1' : '0';
      at += sectors_of(entry);
    }
    return text + "\n";
  }

  const Trial& trial_;
  const std::vector<Entry>& entries_;
  const std::vector<std::size_t> durable_from_;
  const Budget budget_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<StateDisk>> disks_;
  Grounds grounds_;
  std::size_t settled_ = 0;           // entries before this are settled
  std::vector<std::size_t> pending_;  // entries after them that a cut now may concern
  std::uint64_t sectors_ = 0;         // of those that are uncertain
  std::uint64_t newest_ = 0;          // the first sector of the newest of these
  std::uint64_t done_ = 0;
  std::uint64_t states_ = 0;
  std::unordered_set<std::uint64_t> seen_;
  std::string failed_;
};

}  // namespace

std::uint64_t try_states(const Trial& trial, Budget budget) {
  Explorer explorer(trial, budget);
  return explorer.explore();
}

std::uint64_t try_states(const Operation& operation, const Shape& shape, const Recording& recording,
                         Budget budget) {
  const Trial trial{.name = shape.name,
                    .before = recording.before,
                    .log = *recording.log,
                    .judge = [&](std::size_t cut, bool complete, std::uint64_t pick) {
                      return judge(operation, shape, recording.history, cut, complete, pick);
                    }};
  return try_states(trial, budget);
}

}  // namespace platter::powercut

// The comparing pass of the checker: references against refcounts on disk; and the two repairs,
// of single refcounts and of the whole structure.
#include <algorithm>
#include <cstring>

#include "block/base/bytes.h"
#include "formats/qcow2/checker.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/header_io.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {

Task<Result<void>> Checker::load_refcount_table() {
  // (That all counts are zero, the comparison counts.)
  if (const auto there = require_refcount_table(header_); !there) {
    say("ERROR {}", there.error().message());
  }
  auto table = co_await read_table(file_, "refcount table", header_.refcount_table_offset,
                                   header_.refcount_table_bytes() / 8);
  PLATTER_CO_TRY(table);
  refcount_table_ = std::move(*table);
  co_return Result<void>{};
}

// One cluster whose refcount and references differ. True when the block was changed.
bool Checker::compare_cluster(std::uint64_t cluster, std::byte* block, Fix fix, bool adopt) {
  const std::uint64_t index = g_.refblock_index(cluster);
  const std::uint64_t refcount = block ? refcount_get(g_, block, index) : 0;
  const std::uint64_t references = counts_.get(cluster);
  mismatch_ = true;
  if (const auto fresh = fresh_.find(cluster); fresh != fresh_.end() && fresh->second != 0) {
    return false;  // will be counted
  }
  bool mend = false;
  if (refcount == 0) {
    need_rebuild_ = true;
  } else {
    mend = refcount > references ? fix.leaks : fix.errors;
  }
  say("{} cluster {} refcount={} reference={}",
      mend                    ? "Repairing"
      : refcount < references ? "ERROR"
                              : "Leaked",
      cluster, refcount, references);
  if (!mend) {
    ++(refcount < references ? result_.corruptions : result_.leaks);
    if (adopt) counts_.set(cluster, refcount);
    return false;
  }
  refcount_set(g_, block, index, references);
  ++(refcount < references ? result_.corruptions_fixed : result_.leaks_fixed);
  return true;
}

bool Checker::compare_block(std::uint64_t block_index, std::span<std::byte> block, Fix fix,
                            bool adopt) {
  bool changed = false;
  const std::uint64_t start = block_index << g_.refblock_bits();
  const std::uint64_t end = std::min(start + g_.refblock_entries(), counts_.clusters());
  std::uint64_t highest = 0;
  for (std::uint64_t piece = start; piece < end;) {
    const std::uint64_t piece_end =
        std::min(end, (piece / RefcountMap::kChunk + 1) * RefcountMap::kChunk);
    for (std::uint64_t cluster = piece; cluster < piece_end; ++cluster) {
      const std::uint64_t refcount =
          g_.refcount_order == 4 ? load_be<std::uint16_t>(block.data() + (cluster - start) * 2)
                                 : refcount_get(g_, block.data(), cluster - start);
      const std::uint64_t count = counts_.get(cluster);
      if ((refcount | count) != 0) highest = cluster;
      if (refcount == count) [[likely]]
        continue;
      if (compare_cluster(cluster, block.data(), fix, adopt)) changed = true;
    }
    piece = piece_end;
  }
  highest_cluster_ = std::max(highest_cluster_, highest);
  return changed;
}

void Checker::compare_missing_block(std::uint64_t block_index, Fix fix, bool adopt) {
  const std::uint64_t start = block_index << g_.refblock_bits();
  const std::uint64_t end = std::min(start + g_.refblock_entries(), counts_.clusters());
  for (std::uint64_t cluster = start; cluster < end; ++cluster) {
    if (cluster % RefcountMap::kChunk == 0 || cluster == start) {
      // Nothing is referenced in a piece that has no memory.
      if (counts_.chunk(cluster / RefcountMap::kChunk).empty()) {
        cluster = (cluster / RefcountMap::kChunk + 1) * RefcountMap::kChunk - 1;
        continue;
      }
    }
    if (counts_.get(cluster) == 0) continue;
    highest_cluster_ = std::max(highest_cluster_, cluster);
    compare_cluster(cluster, nullptr, fix, adopt);
  }
}

Task<Result<void>> Checker::compare(Fix fix, bool adopt) {
  highest_cluster_ = 0;
  mismatch_ = false;
  const std::uint64_t blocks = div_round_up(counts_.clusters(), g_.refblock_entries());
  std::vector<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(blocks, refcount_table_.size()); ++i) {
    const std::uint64_t offset = refcount_table_[i] & kRefTableOffsetMask;
    if (offset != 0 && g_.in_cluster(offset) == 0) offsets.push_back(offset);
  }
  TableStream stream(file_, g_.cluster_size(), offsets);
  Result<void> outcome;
  for (std::uint64_t i = 0; i < blocks && outcome; ++i) {
    if (outcome = go_on(); !outcome) break;
    const std::uint64_t offset =
        i < refcount_table_.size() ? refcount_table_[i] & kRefTableOffsetMask : 0;
    if (offset == 0) {
      compare_missing_block(i, fix, adopt);
      continue;
    }
    Result<void> read;
    std::span<std::byte> block;
    if (g_.in_cluster(offset) != 0) {
      read = fail(EIO, "its refcount block is not cluster aligned");
    } else {
      auto table = co_await stream.next();
      read = std::move(table.read);
      block = table.data;
    }
    if (!read) {
      const std::uint64_t first = i << g_.refblock_bits();
      const std::uint64_t end = std::min(first + g_.refblock_entries(), counts_.clusters());
      say("Can't get refcount for cluster {} to {}: {}", first, end - 1, read.error().message());
      result_.check_errors += end - first;
      continue;
    }
    if (compare_block(i, block, fix, adopt)) outcome = co_await write_table(offset, block);
  }
  co_await stream.stop();
  co_return outcome;
}

// Where `clusters` free clusters lie: behind everything where the file can grow or is long enough,
// otherwise in the first gap; 0: nowhere. Entries that lead outside the file shall not lead to what
// is put there, neither when they are left nor while they wait to be mended.
std::uint64_t Checker::find_free(std::uint64_t clusters) const {
  const std::uint64_t highest = std::max({counts_.end(), outside_.end(), std::uint64_t{1}});
  if (file_.driver().can_grow() || highest + clusters <= file_.size() >> g_.cluster_bits) {
    return highest;
  }
  std::uint64_t run = 0;
  for (std::uint64_t cluster = 1; cluster < highest; ++cluster) {
    run = counts_.get(cluster) == 0 ? run + 1 : 0;
    if (run == clusters) return cluster + 1 - clusters;
  }
  return 0;
}

// Writes a new refcount structure from the references in memory into clusters that nobody
// references, and only then lets the header point to it.
Task<Result<void>> Checker::rebuild() {
  const auto used_blocks = [this] {
    std::vector<bool> used(div_round_up(counts_.clusters(), g_.refblock_entries()));
    for (std::uint64_t c = 0; c < counts_.clusters();) {
      const RefcountMap::Chunk& chunk = counts_.chunk(c / RefcountMap::kChunk);
      const std::uint64_t end = (c / RefcountMap::kChunk + 1) * RefcountMap::kChunk;
      if (!chunk.empty()) {
        for (; c < std::min(end, counts_.clusters()); ++c) {
          if (chunk.get(c % RefcountMap::kChunk) != 0) used[c >> g_.refblock_bits()] = true;
        }
      }
      c = end;
    }
    return used;
  };
  // The file becomes longer: what is left leading outside leads into it then.
  const std::uint64_t outside_end = outside_.end();
  for (std::uint64_t c = 0; c < outside_end; ++c) {
    if (const std::uint64_t n = outside_.get(c); n != 0) counts_.set(c, n);
  }
  std::vector<bool> used = used_blocks();
  // The new structure counts itself: repeat until its own size is among what it covers.
  std::uint64_t blocks = 0;
  std::uint64_t table_clusters = 0;
  std::uint64_t start = 0;
  for (;;) {
    const std::uint64_t size = std::max<std::uint64_t>(blocks + table_clusters, 1);
    start = find_free(size);
    if (start == 0) co_return fail(ENOSPC, "no {} free clusters in a row", size);
    std::vector<bool> with_new = used;
    const std::uint64_t last = (start + size - 1) >> g_.refblock_bits();
    if (with_new.size() <= last) with_new.resize(last + 1);
    for (std::uint64_t b = start >> g_.refblock_bits(); b <= last; ++b) with_new[b] = true;
    const auto need =
        static_cast<std::uint64_t>(std::count(with_new.begin(), with_new.end(), true));
    const std::uint64_t table = g_.clusters_for(with_new.size() * 8);
    if (need == blocks && table == table_clusters) {
      used = std::move(with_new);
      break;
    }
    blocks = std::max(need, blocks);
    table_clusters = std::max(table, table_clusters);
    if (blocks > need || table_clusters > table) {
      used = std::move(with_new);
      break;
    }
  }
  if (table_clusters << g_.cluster_bits > kMaxRefTableBytes) {
    co_return fail(EFBIG, "a refcount table of {} clusters would be too large", table_clusters);
  }
  for (std::uint64_t i = 0; i < blocks + table_clusters; ++i) counts_.set(start + i, 1);

  std::vector<std::uint64_t> table(table_clusters << (g_.cluster_bits - 3));
  std::vector<std::byte> block(g_.cluster_size());
  std::uint64_t next = start + table_clusters;
  for (std::uint64_t b = 0; b < used.size(); ++b) {
    if (!used[b]) continue;
    const Result<void> on = go_on();
    PLATTER_CO_TRY(on);
    std::fill(block.begin(), block.end(), std::byte{0});
    const std::uint64_t first = b << g_.refblock_bits();
    const std::uint64_t end = std::min(first + g_.refblock_entries(), counts_.clusters());
    for (std::uint64_t c = first; c < end; ++c) {
      if (const std::uint64_t n = counts_.get(c); n != 0)
        refcount_set(g_, block.data(), c - first, n);
    }
    table[b] = next++ << g_.cluster_bits;
    auto written = co_await write_table(table[b], block);
    PLATTER_CO_TRY(written);
  }
  std::vector<std::byte> bytes(table.size() * 8);
  for (std::size_t i = 0; i < table.size(); ++i) store_be(bytes.data() + i * 8, table[i]);
  auto step = co_await write_table(start << g_.cluster_bits, bytes);
  PLATTER_CO_TRY(step);
  header_.refcount_table_offset = start << g_.cluster_bits;
  header_.refcount_table_clusters = static_cast<std::uint32_t>(table_clusters);
  header_.refcount_table_fault.clear();
  step = co_await write_header();
  PLATTER_CO_TRY(step);
  refcount_table_ = std::move(table);
  co_return Result<void>{};
}

}  // namespace platter::qcow2

// References: what the L2 tables of an L1 table refer to, for snapshots, which share them.
//
// The tables are read from the file. So they must not change meanwhile: those of a snapshot never
// do, and those of the disk do not while their L1 entries lack the flag "refcount is one" and what
// had changed before is written back.
//
// Threads: a call belongs to one coroutine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "formats/qcow2/core.h"
#include "formats/qcow2/refcount_map.h"
#include "formats/qcow2/refcounts.h"

namespace platter::qcow2 {

// Adds to `map` one reference to each L2 table in `l1`, and one to each cluster that an entry of
// such a table refers to. A reference to what lies outside the file, or where no refcount block
// counts, is an error; so the map is not larger than what the image can have.
Task<Result<void>> count_references(Core& core, const Refcounts& refcounts,
                                    std::span<const std::uint64_t> l1, RefcountMap& map);
// Adds a reference to each of `clusters` clusters from `first` on; errors as above.
Result<void> count_clusters(Core& core, const Refcounts& refcounts, RefcountMap& map,
                            std::uint64_t first, std::uint64_t clusters);

// Takes the flags "refcount is one" out of the entries of an L2 table; false: there was none.
bool clear_copied(const Geometry& g, std::span<std::byte> table);
// The same for all tables in `l1`, in the file. Not flushed.
Task<Result<void>> clear_copied_in_file(Core& core, std::span<const std::uint64_t> l1);

}  // namespace platter::qcow2

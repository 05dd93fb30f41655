// What is done to an image before it is repaired, or before an operation meets it: things that old
// programs and broken ones have left in images. Each leaves alone what it cannot find.
//
// Threads: one.
#pragma once

#include "block/adapters/memory.h"
#include "powercut/history.h"
#include "powercut/operation.h"

namespace platter::powercut {

// One refcount is too low, one too high; and the refcount table leads nowhere, too.
void wrong_counts(MemoryDisk& disk, const Shape& shape, History& history);
void lost_counts(MemoryDisk& disk, const Shape& shape, History& history);
// Entries that map what is behind the end of the disk: one leads to its own table, and one out of
// the file.
void overlapped_table(MemoryDisk& disk, const Shape& shape, History& history);
// The snapshot table lies in the first sector of data that the disk and a snapshot share. (See
// fill_snap_and_change().)
void table_in_data(MemoryDisk& disk, const Shape& shape, History& history);
// The entries of the snapshot table lack all extra data.
void old_snapshots(MemoryDisk& disk, const Shape& shape, History& history);

}  // namespace platter::powercut

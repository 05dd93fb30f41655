// What operations are made of: what the disk holds before, and what is done then. Each gives the
// first error.
#pragma once

#include "powercut/guest.h"

namespace platter::powercut {

// Runs the tasks' starters one after another until one fails.
#define TRY_STEP(call)                \
  do {                                \
    auto step_done = co_await (call); \
    PLATTER_CO_TRY(step_done);        \
  } while (false)

using Done = Task<Result<void>>;

Done fill_some(Guest& g);
Done allocate(Guest& g);
Done fill_and_snap(Guest& g);
Done overwrite(Guest& g);
Done nothing(Guest& g);
Done write_over_backing(Guest& g);
Done fill_packed(Guest& g);
Done write_packed(Guest& g);
Done discard_and_reuse(Guest& g);
Done zeroes(Guest& g);
Done many_tables(Guest& g);
Done many_tables_after_snapshot(Guest& g);
Done fill_counts(Guest& g);
Done grow_counts(Guest& g);
Done snap(Guest& g);
Done fill_two_snapshots(Guest& g);
Done snap_again(Guest& g);
Done fill_snap_and_change(Guest& g);
Done apply(Guest& g);
Done remove(Guest& g);
Done rename(Guest& g);
Done several_snapshots(Guest& g);
Done grow(Guest& g);
Done grow_preallocated(Guest& g);
Done fill_all(Guest& g);
Done shrink(Guest& g);
Done fill_and_shrink(Guest& g);
Done grow_over_backing(Guest& g);
Done fill_all_and_snap(Guest& g);
Done fill_all_and_apply_vm_state(Guest& g);
Done grow_and_apply(Guest& g);
Done shrink_and_apply(Guest& g);
Done fill_marked(Guest& g);
Done change_bitmaps(Guest& g);
Done merge_bitmaps(Guest& g);
Done fill_unmarked(Guest& g);
Done change_unmarked(Guest& g);
Done resize_marked(Guest& g);
Done change_overlay(Guest& g);
Done stream_in_use(Guest& g);
Done subclusters(Guest& g);
Done fill_subclusters_and_snap(Guest& g);
Done upgrade(Guest& g);
Done downgrade(Guest& g);
Done zero_and_snap(Guest& g);
Done widen_counts(Guest& g);
Done narrow_counts(Guest& g);
Done switch_lazy(Guest& g);
Done mixed(Guest& g);
Done add_key(Guest& g);
Done add_key_in_two_sectors(Guest& g);
Done erase_key(Guest& g);
Done erase_first_key(Guest& g);
Done overwrite_first_key(Guest& g);
Done fill_with_two_keys(Guest& g);
Done fill_with_eight_keys(Guest& g);

}  // namespace platter::powercut

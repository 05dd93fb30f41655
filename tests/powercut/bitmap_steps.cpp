// The steps of operations on bitmaps.
#include "powercut/operation.h"
#include "powercut/steps.h"

namespace platter::powercut {

Done fill_marked(Guest& g) {
  TRY_STEP(fill_some(g));
  TRY_STEP(g.add_bitmap(kMarks, 512, true));
  TRY_STEP(g.add_bitmap("other", 4096, false));
  co_return {};
}

Done change_bitmaps(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(30 * c, kSector));
  TRY_STEP(g.add_bitmap("new", 512, true));
  TRY_STEP(g.write(c, kSector));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(40 * c, c));
  TRY_STEP(g.merge_bitmap("other", kMarks));
  TRY_STEP(g.write_zeroes(7 * c, c, true));
  TRY_STEP(g.enable_bitmap("new", false));
  TRY_STEP(g.remove_bitmap("other"));
  // What was freed may be used now.
  TRY_STEP(g.write(60 * c, 4 * c));
  TRY_STEP(g.clear_bitmap("new"));
  TRY_STEP(g.flush());
  TRY_STEP(g.write(70 * c, kSector));
  co_return {};
}

// One that is not enabled takes up what others have marked, and is enabled for a while.
Done merge_bitmaps(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(30 * c, kSector));
  TRY_STEP(g.merge_bitmap("other", kMarks));
  TRY_STEP(g.write(32 * c, c));
  TRY_STEP(g.enable_bitmap("other", true));
  TRY_STEP(g.write(50 * c, 2 * c));
  TRY_STEP(g.flush());
  TRY_STEP(g.discard(20 * c, c));
  TRY_STEP(g.enable_bitmap("other", false));
  TRY_STEP(g.merge_bitmap("other", kMarks));
  TRY_STEP(g.write(60 * c, 4 * c));
  TRY_STEP(g.clear_bitmap("other"));
  TRY_STEP(g.merge_bitmap(kMarks, "other"));
  TRY_STEP(g.write(70 * c, kSector));
  TRY_STEP(g.flush());
  co_return {};
}

// None is enabled, so that writes do not wait for what bitmaps have to say.
Done fill_unmarked(Guest& g) {
  TRY_STEP(fill_some(g));
  TRY_STEP(g.add_bitmap("first", 512, false));
  TRY_STEP(g.add_bitmap("other", 4096, false));
  co_return {};
}
Done change_unmarked(Guest& g) {
  const std::uint64_t c = g.cluster();
  TRY_STEP(g.write(30 * c, kSector));
  TRY_STEP(g.add_bitmap("new", 512, false));
  TRY_STEP(g.write(40 * c, c));
  TRY_STEP(g.merge_bitmap("new", "first"));
  TRY_STEP(g.remove_bitmap("first"));
  TRY_STEP(g.write(60 * c, 4 * c));
  TRY_STEP(g.clear_bitmap("other"));
  TRY_STEP(g.flush());
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

}  // namespace platter::powercut

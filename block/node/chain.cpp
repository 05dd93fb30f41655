#include <algorithm>

#include "block/node/node.h"

namespace platter {

Task<Result<ChainExtent>> chain_extent(BlockNode& top, BlockNode* base, std::uint64_t offset,
                                       std::uint64_t length, bool shallow) {
  ChainExtent result{.offset = offset, .length = length};
  BlockNode* const stop = base ? &base->skip_filters() : nullptr;
  BlockNode* node = &top.skip_filters();
  if (offset >= node->size() || length == 0) {
    co_return fail(EINVAL, "no extent at offset {}: the end is at {}", offset, node->size());
  }
  result.length = std::min(length, node->size() - offset);
  if (node == stop) co_return result;

  for (;; ++result.depth) {
    if (offset >= node->size()) {
      // The layer above deferred to this one, which is shorter: the zeroes behind its end count as
      // this layer's.
      result.present = true;
      result.zero = true;
      co_return result;
    }
    auto asked = co_await node->extent(offset, result.length);
    PLATTER_CO_TRY(asked);
    const Extent& extent = *asked;
    result.length = extent.length;
    if (extent.kind != ExtentKind::kUnallocated) {
      result.present = true;
      result.zero = extent.kind == ExtentKind::kZero;
      result.data = !result.zero;
      result.compressed = extent.kind == ExtentKind::kCompressed;
      result.node = extent.node;
      result.host_offset = extent.host_offset;
      if (extent.maybe_hole && extent.kind == ExtentKind::kData && extent.node &&
          extent.has_host_offset() && !shallow) {
        // An answer from below is a refinement: without one, data it is.
        auto below = co_await extent.node->extent(extent.host_offset, extent.length);
        if (below) {
          result.length = std::min(result.length, below->length);
          result.zero = below->kind == ExtentKind::kZero || below->kind == ExtentKind::kUnallocated;
        } else if (extent.host_offset >= extent.node->size()) {
          result.zero = true;
        }
      }
      co_return result;
    }
    BlockNode* below = node->backing();
    if (below) below = &below->skip_filters();
    if (!below) {
      result.zero = true;
      result.node = extent.node;
      result.host_offset = extent.host_offset;
      co_return result;
    }
    if (below == stop) co_return result;
    // Without a node it tells, where the layer below proves to be shorter, of space that is
    // preallocated in this one.
    result.host_offset = extent.host_offset;
    node = below;
    // Up to where the layer below ends it may hold something; the rest is another piece.
    if (offset < node->size()) result.length = std::min(result.length, node->size() - offset);
  }
}

}  // namespace platter

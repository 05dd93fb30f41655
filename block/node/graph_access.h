// What the parts of the graph code share: the only friend of BlockNode and Edge.
//
// Threads: the control executor.
#pragma once

#include <memory>
#include <string>

#include "block/node/node.h"

namespace platter {

struct GraphAccess {
  // Whether `user` may have `wanted` beside the other users (all but `except`).
  static Result<void> check_rights(BlockNode& node, const Edge* except, const std::string& user,
                                   Permissions wanted);
  // The union of needs and intersection of what is shared: all edges but `except`, and `wanted`.
  static Permissions cumulative(BlockNode& node, const Edge* except, const Permissions* wanted);
  static Task<Result<void>> push_rights(BlockNode& node, Permissions rights);

  static void set_flags(BlockNode& node, OpenFlags flags) {
    node.flags_ = flags;
    node.refresh();
  }
  static void set_probed(BlockNode& node) {
    node.probed_ = true;
    node.refresh();
  }
  static const Permissions& rights(const BlockNode& node) { return node.cumulative_; }
  static const std::vector<Edge*>& parents(const BlockNode& node) { return node.parents_; }
};

}  // namespace platter

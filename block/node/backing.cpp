// The edge between an image and its backing image.
#include "block/node/graph.h"

namespace platter {

Edge* backing_edge(BlockNode& node) {
  for (Edge* child : node.driver().children()) {
    if (child != nullptr && *child && child->get() == node.backing()) return child;
  }
  return nullptr;
}

Task<Result<void>> replace_backing(BlockNode& node, NodePtr backing) {
  Edge* const edge = backing_edge(node);
  if (edge == nullptr) co_return fail(EINVAL, "node '{}' has no backing node", node.node_name());
  Edge next;
  if (backing) {
    auto attached = co_await Edge::attach(std::move(backing), edge->user(), edge->permissions());
    PLATTER_CO_TRY(attached);
    next = std::move(*attached);
  }
  auto drained = node.drain();
  co_await drained;
  Edge old = std::move(*edge);
  *edge = std::move(next);
  node.undrain();
  // Closes what nobody else uses, down to where the new backing node holds on.
  auto detached = co_await old.detach();
  co_return detached;
}

}  // namespace platter

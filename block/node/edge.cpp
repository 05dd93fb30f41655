#include <algorithm>
#include <utility>

#include "block/node/graph_access.h"
#include "block/node/nesting.h"
#include "block/node/node.h"

namespace platter {

using detail::nested_too_deep;
using detail::Nesting;
using detail::YieldIf;

Result<void> GraphAccess::check_rights(BlockNode& node, const Edge* except, const std::string& user,
                                       Permissions wanted) {
  if (node.flags_.read_only && (wanted.need & (perm::kWrite | perm::kResize)) != 0) {
    const std::string rights = permission_names(wanted.need & (perm::kWrite | perm::kResize));
    return std::unexpected<Error>(
        Error(EACCES, fmt::format("{} needs {} on node '{}', which is read-only", user, rights,
                                  node.node_name_))
            .as(ErrorKind::kReadOnlyNode));
  }
  for (const Edge* other : node.parents_) {
    if (other == except) continue;
    if (const std::uint32_t refused = wanted.need & ~other->permissions_.shared) {
      return fail(EPERM, "Conflicts with use by {}, which does not allow '{}' on node '{}', to {}",
                  other->user_, permission_names(refused), node.node_name_, user);
    }
    if (const std::uint32_t refused = other->permissions_.need & ~wanted.shared) {
      return fail(EPERM,
                  "Conflicts with use by {}, which uses '{}' on node '{}', which {} does not allow",
                  other->user_, permission_names(refused), node.node_name_, user);
    }
  }
  return {};
}

Permissions GraphAccess::cumulative(BlockNode& node, const Edge* except,
                                    const Permissions* wanted) {
  Permissions sum;
  if (wanted) sum = *wanted;
  for (const Edge* other : node.parents_) {
    if (other == except) continue;
    sum.need |= other->permissions_.need;
    sum.shared &= other->permissions_.shared;
  }
  return sum;
}

Task<Result<void>> GraphAccess::push_rights(BlockNode& node, Permissions rights) {
  if (rights.need == node.cumulative_.need && rights.shared == node.cumulative_.shared)
    co_return {};
  auto set = co_await node.driver_->do_set_permissions(rights);
  PLATTER_CO_TRY(set);
  node.cumulative_ = rights;
  co_return {};
}

Edge::Edge(Edge&& other) noexcept
    : node_(std::move(other.node_)),
      user_(std::move(other.user_)),
      permissions_(other.permissions_) {
  if (node_) std::ranges::replace(node_->parents_, &other, this);
}

Edge& Edge::operator=(Edge&& other) noexcept {
  if (this == &other) return *this;
  abandon();
  node_ = std::move(other.node_);
  user_ = std::move(other.user_);
  permissions_ = other.permissions_;
  if (node_) std::ranges::replace(node_->parents_, &other, this);
  return *this;
}

Edge::~Edge() { abandon(); }

void Edge::abandon() noexcept {
  if (!node_) return;
  std::erase(node_->parents_, this);
  // The last owner of a node destroys its driver, whose edges come here again: a list instead of
  // recursion, so that a long chain does not overflow the stack.
  static thread_local std::vector<NodePtr>* doomed = nullptr;
  if (doomed) {
    doomed->push_back(std::move(node_));
    return;
  }
  std::vector<NodePtr> list;
  doomed = &list;
  list.push_back(std::move(node_));
  while (!list.empty()) {
    const NodePtr next = std::move(list.back());
    list.pop_back();
  }
  doomed = nullptr;
}

Task<Result<Edge>> Edge::attach(NodePtr node, std::string user, Permissions permissions) {
  const bool deep = nested_too_deep();
  const Nesting nested;
  return attach_task(std::move(node), std::move(user), permissions, deep);
}

Task<Result<Edge>> Edge::attach_task(NodePtr node, std::string user, Permissions permissions,
                                     bool yield) {
  co_await YieldIf{yield};
  auto guard = co_await node->permissions_mutex_.lock();
  const Result<void> allowed = GraphAccess::check_rights(*node, nullptr, user, permissions);
  PLATTER_CO_TRY(allowed);
  auto pushed = co_await GraphAccess::push_rights(
      *node, GraphAccess::cumulative(*node, nullptr, &permissions));
  PLATTER_CO_TRY(pushed);
  Edge edge;
  edge.user_ = std::move(user);
  edge.permissions_ = permissions;
  node->parents_.push_back(&edge);
  edge.node_ = node;
  guard.unlock();
  co_return std::move(edge);
}

Task<Result<void>> Edge::set_permissions(Permissions permissions) {
  const bool deep = nested_too_deep();
  const Nesting nested;
  return set_permissions_task(permissions, deep);
}

Task<Result<void>> Edge::set_permissions_task(Permissions permissions, bool yield) {
  co_await YieldIf{yield};
  const NodePtr node = node_;
  auto guard = co_await node->permissions_mutex_.lock();
  const Result<void> allowed = GraphAccess::check_rights(*node, this, user_, permissions);
  PLATTER_CO_TRY(allowed);
  auto pushed =
      co_await GraphAccess::push_rights(*node, GraphAccess::cumulative(*node, this, &permissions));
  PLATTER_CO_TRY(pushed);
  permissions_ = permissions;
  co_return {};
}

Task<Result<void>> Edge::detach() {
  const bool deep = nested_too_deep();
  const Nesting nested;
  return detach_task(deep);
}

Task<Result<void>> Edge::detach_task(bool yield) {
  if (!node_) co_return {};
  const NodePtr node = std::exchange(node_, nullptr);
  std::erase(node->parents_, this);
  co_await YieldIf{yield};
  if (node->parents_.empty()) {
    auto closed = co_await node->close();
    co_return closed;
  }
  auto guard = co_await node->permissions_mutex_.lock();
  // Giving rights back cannot conflict with anybody; a driver that fails to keeps too many.
  auto pushed =
      co_await GraphAccess::push_rights(*node, GraphAccess::cumulative(*node, nullptr, nullptr));
  static_cast<void>(pushed);
  co_return {};
}

}  // namespace platter

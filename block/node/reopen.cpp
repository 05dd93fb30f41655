// Reopening a node: another mode for it and the storage below it.
#include <ranges>

#include "block/node/graph_access.h"
#include "block/node/open_state.h"
#include "block/node/transaction.h"

namespace platter {
namespace {

// A node of those below the one that is named.
struct Part {
  BlockNode* node;
  Edge* parent;  // the edge it is reached by; nullptr for the first
  OpenFlags flags;
  bool drained = false;
  bool prepared = false;
  std::optional<Permissions> old_rights = std::nullopt;  // of `parent`, once changed
};

// Formats hold the rights on their file that their own mode calls for; filters and raw hand down
// what their users hold.
bool chooses_rights(const BlockNode& node) {
  return !node.type().filter && node.type().name != "raw";
}

std::vector<Part> plan(BlockNode& node, OpenFlags flags) {
  std::vector<Part> parts{{.node = &node, .parent = nullptr, .flags = flags}};
  // (By index: the list grows while it is walked.)
  for (std::size_t i = 0; i < parts.size(); ++i) {
    BlockNode* const backing = parts[i].node->backing();
    for (Edge* child : parts[i].node->driver().children()) {
      if (!*child || child->get() == backing) continue;
      parts.push_back(
          {.node = child->get(), .parent = child, .flags = detail::storage_flags(parts[i].flags)});
    }
  }
  return parts;
}

Task<Result<void>> change_rights(Part& part, const BlockNode& above) {
  if (!part.parent || !chooses_rights(above)) co_return {};
  constexpr std::uint32_t kWriting = perm::kWrite | perm::kWriteUnchanged | perm::kResize;
  Permissions wanted = part.parent->permissions();
  wanted.need &= ~kWriting;
  if (!part.flags.read_only) wanted.need |= perm::kWrite | perm::kResize;
  if (wanted.need == part.parent->permissions().need) co_return {};
  const Permissions old = part.parent->permissions();
  auto changed = co_await part.parent->set_permissions(wanted);
  PLATTER_CO_TRY(changed);
  part.old_rights = old;
  co_return {};
}

BlockNode& above_of(const std::vector<Part>& parts, const Part& part) {
  for (const Part& other : parts) {
    for (const Edge* child : other.node->driver().children()) {
      if (child == part.parent) return *other.node;
    }
  }
  return *parts.front().node;
}

Task<Result<void>> prepare_drivers(std::vector<Part>& parts) {
  for (Part& part : parts) {
    const std::uint32_t writing =
        GraphAccess::rights(*part.node).need & (perm::kWrite | perm::kResize);
    if (!part.parent && part.flags.read_only && writing != 0) {
      co_return fail(EPERM, "Read-only block node '{}' cannot support read-write users",
                     part.node->node_name());
    }
    auto drained = part.node->drain();
    co_await drained;
    part.drained = true;
    // A format that turns read-only writes back what it holds here, while its file still lets it:
    // the file is drained only afterwards.
    auto prepared = co_await part.node->driver().prepare_reopen(part.flags);
    PLATTER_CO_TRY(prepared);
    part.prepared = true;
  }
  co_return {};
}

class ReopenStep : public TransactionStep {
 public:
  ReopenStep(BlockNode& node, OpenFlags flags) : node_(node), flags_(flags) {}

  Task<Result<void>> prepare() override {
    parts_ = plan(node_, flags_);
    auto preparing = prepare_drivers(parts_);
    auto prepared = co_await preparing;
    PLATTER_CO_TRY(prepared);
    // The new mode counts from here, so that rights may be taken; bottom up, since a driver whose
    // child has become writable may write at its commit.
    for (const Part& part : parts_) {
      old_flags_.push_back(part.node->flags());
      GraphAccess::set_flags(*part.node, part.flags);
    }
    for (Part& part : parts_ | std::views::reverse) {
      auto changing = change_rights(part, above_of(parts_, part));
      auto changed = co_await changing;
      PLATTER_CO_TRY(changed);
    }
    co_return {};
  }

  void commit() override {
    for (const Part& part : parts_ | std::views::reverse) part.node->driver().commit_reopen();
    // Limits may differ now (cache.direct).
    for (const Part& part : parts_) GraphAccess::set_flags(*part.node, part.flags);
  }

  Task<void> abort() override {
    for (std::size_t i = 0; i < old_flags_.size(); ++i)
      GraphAccess::set_flags(*parts_[i].node, old_flags_[i]);
    for (const Part& part : parts_ | std::views::reverse) {
      if (part.old_rights) {
        auto restored = co_await part.parent->set_permissions(*part.old_rights);
        static_cast<void>(restored);
      }
      if (part.prepared) part.node->driver().abort_reopen();
    }
  }

  void undrain() override {
    for (const Part& part : parts_ | std::views::reverse) {
      if (part.drained) part.node->undrain();
    }
  }

 private:
  BlockNode& node_;
  const OpenFlags flags_;
  std::vector<Part> parts_;
  std::vector<OpenFlags> old_flags_;  // of those that have the new ones
};

}  // namespace

void Transaction::reopen(BlockNode& node, OpenFlags flags) {
  steps_.push_back(std::make_unique<ReopenStep>(node, flags));
}

}  // namespace platter

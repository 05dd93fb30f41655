#include "block/node/graph_access.h"
#include "block/node/open_state.h"

namespace platter {
namespace {

struct Step {
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

std::vector<Step> plan(BlockNode& node, OpenFlags flags) {
  std::vector<Step> steps{{.node = &node, .parent = nullptr, .flags = flags}};
  // (By index: the list grows while it is walked.)
  for (std::size_t i = 0; i < steps.size(); ++i) {
    BlockNode* const backing = steps[i].node->backing();
    for (Edge* child : steps[i].node->driver().children()) {
      if (!*child || child->get() == backing) continue;
      steps.push_back(
          {.node = child->get(), .parent = child, .flags = detail::storage_flags(steps[i].flags)});
    }
  }
  return steps;
}

Task<Result<void>> change_rights(Step& step, const BlockNode& above) {
  if (!step.parent || !chooses_rights(above)) co_return {};
  constexpr std::uint32_t kWriting = perm::kWrite | perm::kWriteUnchanged | perm::kResize;
  Permissions wanted = step.parent->permissions();
  wanted.need &= ~kWriting;
  if (!step.flags.read_only) wanted.need |= perm::kWrite | perm::kResize;
  if (wanted.need == step.parent->permissions().need) co_return {};
  const Permissions old = step.parent->permissions();
  auto changed = co_await step.parent->set_permissions(wanted);
  PLATTER_CO_TRY(changed);
  step.old_rights = old;
  co_return {};
}

BlockNode& above_of(const std::vector<Step>& steps, const Step& step) {
  for (const Step& other : steps) {
    for (const Edge* child : other.node->driver().children()) {
      if (child == step.parent) return *other.node;
    }
  }
  return *steps.front().node;
}

Task<Result<void>> prepare(std::vector<Step>& steps) {
  for (Step& step : steps) {
    const std::uint32_t writing =
        GraphAccess::rights(*step.node).need & (perm::kWrite | perm::kResize);
    if (!step.parent && step.flags.read_only && writing != 0) {
      co_return fail(EPERM, "node '{}' cannot become read-only: {} is in use",
                     step.node->node_name(), permission_names(writing));
    }
    auto drained = step.node->drain();
    co_await drained;
    step.drained = true;
    // A format that turns read-only writes back what it holds here, while its file still lets it:
    // the file is drained only afterwards.
    auto prepared = co_await step.node->driver().prepare_reopen(step.flags);
    PLATTER_CO_TRY(prepared);
    step.prepared = true;
  }
  co_return {};
}

}  // namespace

Task<Result<void>> reopen(BlockNode& node, OpenFlags flags) {
  std::vector<Step> steps = plan(node, flags);
  Result<void> result;
  {
    auto prepared = prepare(steps);
    result = co_await prepared;
  }
  std::vector<OpenFlags> old_flags;
  for (const Step& step : steps) old_flags.push_back(step.node->flags());
  if (result) {
    // The new mode counts from here, so that rights may be taken; bottom up, since a driver whose
    // child has become writable may write at its commit.
    for (const Step& step : steps) GraphAccess::set_flags(*step.node, step.flags);
    for (auto step = steps.rbegin(); step != steps.rend() && result; ++step) {
      auto changed = change_rights(*step, above_of(steps, *step));
      result = co_await changed;
    }
  }
  if (result) {
    for (auto step = steps.rbegin(); step != steps.rend(); ++step)
      step->node->driver().commit_reopen();
    // Limits may differ now (cache.direct).
    for (const Step& step : steps) GraphAccess::set_flags(*step.node, step.flags);
  } else {
    for (std::size_t i = 0; i < steps.size(); ++i)
      GraphAccess::set_flags(*steps[i].node, old_flags[i]);
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      if (step->old_rights) {
        auto restored = co_await step->parent->set_permissions(*step->old_rights);
        static_cast<void>(restored);
      }
      if (step->prepared) step->node->driver().abort_reopen();
    }
  }
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (step->drained) step->node->undrain();
  }
  co_return result;
}

}  // namespace platter

#include "block/jobs/stream.h"

#include <filesystem>
#include <string>

#include "block/jobs/copy.h"
#include "block/node/graph.h"
#include "block/node/transaction.h"

namespace platter {
namespace {

Result<void> check_snapshots(BlockNode& top) {
  SnapshotAbility* const snapshots = top.driver().snapshots();
  if (snapshots == nullptr || snapshots->list().empty()) return {};
  return fail(ENOTSUP, "Image has internal snapshots, which would lose what they show from below");
}

// How `top` has to name `base`, which `above` stands on: as `above` does, if that names the same
// file from where `top` is; else in full.
std::string name_for(BlockNode& top, BlockNode& above, BlockNode& base) {
  const BackingAbility* reference = above.driver().backing_reference();
  const std::string stored = reference != nullptr ? reference->backing_filename() : "";
  if (!stored.empty()) {
    const Result<std::string> from_above = resolve_backing(above.filename(), stored);
    const Result<std::string> from_top = resolve_backing(top.filename(), stored);
    if (from_above && from_top && *from_above == *from_top && *from_above == base.filename())
      return stored;
  }
  if (!protocol_prefix(base.filename()).empty() || base.filename().empty()) return base.filename();
  std::error_code error;
  const std::filesystem::path full = std::filesystem::absolute(base.filename(), error);
  return error ? base.filename() : full.string();
}

// The node whose backing node `base` is; nullptr: `base` is not in the chain of `top`.
BlockNode* above_of(BlockNode& top, const BlockNode* base) {
  for (BlockNode* node = &top; node != nullptr; node = node->backing()) {
    if (node->backing() == base) return node;
  }
  return nullptr;
}

Task<Result<void>> copy_up(BlockNode& top, const StreamOptions& options) {
  const CopySource source{
      .node = &top, .target_offset = 0, .length = top.size(), .base = options.base};
  CopyOptions copying;
  copying.mode = CopyOptions::Mode::kTakeUp;
  copying.in_flight = options.in_flight;
  copying.bytes_per_second = options.bytes_per_second;
  copying.progress = options.progress;
  copying.cancelled = options.cancelled;
  auto copied = co_await copy(std::span(&source, 1), top, copying);
  PLATTER_CO_TRY(copied);
  // Before the image says that it stands on its own, its data is there.
  auto flushed = co_await top.flush();
  co_return flushed;
}

// Writes the new reference into the image.
Task<Result<void>> name_backing(BlockNode& top, std::string name, std::string format) {
  // One may have been taken since the copying began, also one that is still being taken.
  const auto no_snapshots = [&top] { return check_snapshots(top); };
  const std::function<Result<void>()> allowed(no_snapshots);
  auto changed = co_await top.driver().backing_reference()->change_backing(name, format, allowed);
  if (changed) co_return {};
  if (changed.error().code() == ENOSPC) changed = fail(ENOSPC, "No space left in the file header");
  co_return forward_error(changed, "Could not change the backing file to '{}'", name);
}

Task<Result<void>> stream_held(BlockNode& top, const StreamOptions& options) {
  if (top.backing() == nullptr && options.base == nullptr) co_return {};
  if (top.driver().backing_reference() == nullptr)
    co_return fail(ENOTSUP, "Format driver '{}' has no backing reference", top.driver_name());
  BlockNode* const above = above_of(top, options.base);
  if (above == nullptr)
    co_return fail(EINVAL, "'{}' is not in the backing chain", options.base->filename());
  if (above == &top) co_return {};
  const Result<void> allowed = check_snapshots(top);
  PLATTER_CO_TRY(allowed);
  auto copied = co_await copy_up(top, options);
  PLATTER_CO_TRY(copied);

  NodePtr base;
  std::string name;
  std::string format;
  if (options.base != nullptr) {
    base = options.base->shared_from_this();
    name = name_for(top, *above, *options.base);
    format = options.base->driver_name();
  }
  Transaction transaction;
  transaction.replace_backing(top, std::move(base));
  auto write_name = [&] { return name_backing(top, name, format); };
  auto changed = co_await transaction.commit(write_name);
  co_return changed;
}

}  // namespace

Task<Result<void>> stream(BlockNode& node, const StreamOptions& options) {
  BlockNode& top = node.skip_filters();
  const Permissions rights{.need = perm::kConsistentRead | perm::kWriteUnchanged,
                           .shared = perm::kAll};
  auto edge = co_await Edge::attach(top.shared_from_this(), "stream", rights);
  PLATTER_CO_TRY(edge);
  Result<void> result = co_await stream_held(top, options);
  const Result<void> detached = co_await edge->detach();
  if (result && !detached) result = detached;
  co_return result;
}

}  // namespace platter

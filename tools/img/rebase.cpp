// rebase: puts an image on another backing file.
#include <cerrno>
#include <functional>
#include <utility>

#include "block/jobs/copy.h"
#include "tools/img/cancel.h"
#include "tools/img/chain_verb.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

// Copies into `top` what it shows now and would not show on `after`, which is in the chain or not.
Task<Result<void>> keep_contents(BlockNode& top, BlockNode* after, bool in_chain,
                                 Progress& progress) {
  const CopySource source{
      .node = &top, .target_offset = 0, .length = top.size(), .base = in_chain ? after : nullptr};
  CopyOptions options;
  options.mode = CopyOptions::Mode::kKeepDifferences;
  options.new_backing = after;
  options.progress = [&](std::uint64_t done) { progress.update(done, source.length); };
  options.cancelled = Cancellation::flag();
  const Result<void> kept = co_await copy(std::span(&source, 1), top, options);
  if (Cancellation::ended(kept)) {
    co_return fail_naming(top.filename(), ECANCELED,
                          "rebase cancelled: '{}' reads as before, on its old backing file",
                          top.filename());
  }
  co_return kept;
}

// The image below `top` that `filename` names in full; nullptr: none.
BlockNode* in_chain(BlockNode& top, const std::string& filename) {
  for (BlockNode* node = top.backing(); node != nullptr; node = node->backing()) {
    if (same_file(node->filename(), filename)) return node;
  }
  return nullptr;
}

Task<Result<void>> change_reference(BlockNode& top, const ChainOptions& arguments) {
  const std::string name = arguments.backing.value_or("");
  BackingAbility* reference = top.driver().backing_reference();
  Result<void> changed = fail_errno(ENOTSUP);
  if (reference != nullptr) {
    if (!name.empty() && !arguments.backing_format) {
      changed = fail(EINVAL, "backing format must be specified");
    } else {
      std::string format;
      if (!name.empty()) format = *arguments.backing_format;
      const std::function<Result<void>()> always;
      changed = co_await reference->change_backing(name, format, always);
    }
  }
  if (changed) co_return {};
  if (changed.error().code() == ENOSPC) changed = fail(ENOSPC, "No space left in the file header");
  co_return forward_error(changed, "Could not change the backing file to '{}'", name);
}

Task<Result<void>> rebase_node(BlockNode& top, const ChainOptions& arguments, Progress& progress) {
  if (arguments.unsafe) {
    const Result<void> changed = co_await change_reference(top, arguments);
    if (changed) progress.finish();
    co_return changed;
  }
  Edge opened;
  BlockNode* after = nullptr;
  const std::string name = arguments.backing.value_or("");
  if (!name.empty()) {
    const Result<std::string> full = resolve_backing(top.filename(), name);
    PLATTER_CO_TRY(full);
    after = in_chain(top, *full);
    if (after == nullptr) {
      OpenSpec spec;
      spec.filename = *full;
      spec.format = arguments.backing_format;
      spec.cache = arguments.common.source_cache;
      spec.flags.force_share = arguments.common.force_share;
      Result<Edge> edge = co_await open_image(std::move(spec));
      if (!edge) {
        co_return forward_error(edge, "Could not open new backing file '{}'", name);
      }
      opened = std::move(*edge);
      after = opened.get();
    }
  }
  Result<void> result;
  if (after == nullptr || after != top.backing()) {
    result = co_await keep_contents(top, after, after != nullptr && !opened, progress);
  }
  if (result) result = co_await top.flush();
  if (result) result = co_await change_reference(top, arguments);
  if (result) progress.finish();
  if (opened) {
    const Result<void> closed = co_await opened.detach();
    if (result && !closed) result = closed;
  }
  co_return result;
}

Task<Result<void>> rebase_with_progress(BlockNode& top, const ChainOptions& arguments) {
  if (arguments.backing_format && find_driver(*arguments.backing_format) == nullptr) {
    co_return fail(EINVAL, "Invalid format name: '{}'", *arguments.backing_format);
  }
  Progress progress(arguments.common.progress && !arguments.common.quiet);
  progress.start();
  co_return co_await rebase_node(top, arguments, progress);
}

}  // namespace

int run_rebase(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'F', nullptr, true},
                                    {'b', nullptr, true},
                                    {'u', nullptr},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {'t', nullptr, true},
                                    {'T', nullptr, true},
                                    {'U', "force-share"},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  const ChainVerb verb{.flags = kFlags, .work = rebase_with_progress, .needs_backing = true};
  return run_chain_verb(argc, argv, verb);
}

}  // namespace platter::img

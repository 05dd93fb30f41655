// commit: moves what an overlay holds into an image below it.
#include <algorithm>

#include "block/jobs/copy.h"
#include "block/node/transaction.h"
#include "tools/img/cancel.h"
#include "tools/img/chain_verb.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

// While the overlay's contents arrive in the base it is writable, and those who stand on it let it
// change: what `top` reads stays the same all the time, and what lies between them is given up.
Task<Result<void>> change_base(BlockNode& top, BlockNode& base, OpenFlags flags) {
  Permissions rights = Permissions::reader();
  if (!flags.read_only) rights.shared = perm::kAll;
  Transaction transaction;
  for (BlockNode* node = &top; node != &base; node = node->backing()) {
    Edge* const edge = backing_edge(*node);
    if (edge == nullptr) co_return fail(EINVAL, "node '{}' has no backing node", node->node_name());
    transaction.set_permissions(*edge, rights);
  }
  transaction.reopen(base, flags);
  auto changed = co_await transaction.commit();
  co_return changed;
}

Task<Result<void>> copy_down(BlockNode& top, BlockNode& base, const ChainOptions& arguments) {
  Result<Edge> writer =
      co_await Edge::attach(base.shared_from_this(), "commit", Permissions::writer());
  PLATTER_CO_TRY(writer);
  Result<void> result;
  if (base.size() < top.size()) {
    ResizeRequest request;
    request.size = top.size();
    result = co_await base.resize(request);
  }
  if (result) {
    Progress progress(arguments.common.progress && !arguments.common.quiet);
    progress.start();
    const CopySource source{.node = &top, .target_offset = 0, .length = top.size(), .base = &base};
    CopyOptions options;
    options.keep_unallocated = true;
    options.bytes_per_second = arguments.rate;
    options.progress = [&](std::uint64_t done) { progress.update(done, source.length); };
    options.cancelled = Cancellation::flag();
    result = co_await copy(std::span(&source, 1), base, options);
    if (result) result = co_await base.flush();
    if (result) progress.finish();
  }
  const Result<void> detached = co_await writer->detach();
  if (result && !detached) result = detached;
  co_return result;
}

Task<Result<void>> commit_node(BlockNode& top, const ChainOptions& arguments) {
  if (top.backing() == nullptr && !arguments.backing) {
    co_return fail(EINVAL, "Image does not have a backing file");
  }
  BlockNode* base = arguments.backing ? find_in_chain(top, *arguments.backing) : top.backing();
  if (base == nullptr) {
    co_return fail_naming(arguments.filename, ENOENT,
                          "Did not find '{}' in the backing chain of '{}'", *arguments.backing,
                          arguments.filename);
  }
  const OpenFlags old_flags = base->flags();
  OpenFlags flags = top.flags();
  flags.read_only = false;
  Result<void> result = co_await change_base(top, *base, flags);
  PLATTER_CO_TRY(result);
  result = co_await copy_down(top, *base, arguments);
  if (Cancellation::ended(result)) {
    result = fail_naming(arguments.filename, ECANCELED,
                         "commit cancelled: '{}' holds all it did, '{}' a part of it",
                         arguments.filename, base->filename());
  }
  const Result<void> restored = co_await change_base(top, *base, old_flags);
  if (result && !restored) result = restored;
  PLATTER_CO_TRY(result);
  // Where -b was given, the overlay stands on an image that is no longer what it was: only its own
  // data is right.
  const bool keep = arguments.keep || arguments.backing;
  BackingAbility* reference = top.driver().backing_reference();
  if (!keep && reference != nullptr) {
    result = co_await reference->make_empty();
    if (result) result = co_await top.flush();
    if (!result) co_return forward_error(result, "Could not empty {}", arguments.filename);
  }
  co_return result;
}

}  // namespace

int run_commit(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'t', nullptr, true},
                                    {'b', nullptr, true},
                                    {'r', nullptr, true},
                                    {'d', nullptr},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  const ChainVerb verb{
      .flags = kFlags, .work = commit_node, .done = "Image committed.\n", .discards = true};
  return run_chain_verb(argc, argv, verb);
}

}  // namespace platter::img

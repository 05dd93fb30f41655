#include <cerrno>

#include "block/node/open_state.h"

namespace platter {
namespace {

// The code of a chain that is too long, and of nothing else that keeps an image from being opened:
// it has said where, and does not need "Could not open backing file" from each image above.
constexpr int kChainTooLong = EMLINK;

std::string user_name(const OpenContext& context, std::string_view role) {
  return fmt::format("node '{}' as '{}'", context.node_name, role);
}

Result<NodePtr> referenced_node(const std::string& name) {
  NodePtr node = find_node(name);
  if (!node) return fail(ENODEV, "Cannot find device='{}' nor node-name='{}'", name, name);
  return node;
}

Task<Result<Edge>> attach_child(const OpenContext& context, NodePtr node, std::string_view role,
                                Permissions permissions, bool fresh) {
  if (context.flags.force_share) permissions.shared = perm::kAll;
  auto edge = co_await Edge::attach(node, user_name(context, role), permissions);
  if (!edge && fresh) {
    auto closed = co_await detail::close_unattached(std::move(node));
    static_cast<void>(closed);
  }
  co_return edge;
}

// That opening `filename` below the node of `state` does not lead back to the node or one above it.
Result<void> check_no_loop(const detail::OpenState* state, std::string_view what,
                           const std::string& filename) {
  if (filename.empty()) return {};
  const detail::FileIdentity identity = detail::FileIdentity::of(filename);
  for (; state; state = state->overlay) {
    if (state->identity == identity)
      return fail(ELOOP, "{} '{}' creates an infinite loop", what, filename);
  }
  return {};
}

}  // namespace

Task<Result<Edge>> OpenContext::open_child(std::string_view name, Permissions permissions) {
  if (name == "file" && state && state->preopened && *state->preopened) {
    // Attached anew before the probe's hold goes, so that the node stays open.
    auto edge = co_await attach_child(*this, state->preopened->node(), name, permissions, false);
    auto given_up = co_await state->preopened->detach();
    static_cast<void>(given_up);
    co_return edge;
  }
  if (const auto reference = options.take_string(name)) {
    const Result<NodePtr> node = referenced_node(*reference);
    PLATTER_CO_TRY(node);
    auto edge = co_await attach_child(*this, *node, name, permissions, false);
    co_return edge;
  }
  detail::NodeRequest request{.options = options.take_child(name),
                              .format = {},
                              .flags = detail::storage_flags(flags),
                              .role = detail::Role::kStorage,
                              .display = {},
                              .depth = depth,
                              .overlay = nullptr};
  if (request.options.empty()) {
    co_return fail(EINVAL, "A block device must be specified for \"{}\"", name);
  }
  // A node's own "file" (a filter's "image") is where its identity comes from; what lies beside it
  // is another file.
  if (name != "file" && name != "image") {
    const Result<void> straight =
        check_no_loop(state, "Child file", detail::bottom_filename(request.options));
    PLATTER_CO_TRY(straight);
  }
  auto node = co_await detail::open_new_node(std::move(request));
  PLATTER_CO_TRY(node);
  auto edge = co_await attach_child(*this, *node, name, permissions, true);
  co_return edge;
}

Task<Result<Edge>> OpenContext::open_backing(std::string stored_filename,
                                             std::string stored_format) {
  const std::string* const given = options.peek("backing");
  if (given && given->empty()) {
    options.take_string("backing");
    co_return Edge();
  }
  if (flags.no_backing) co_return Edge();
  if (const auto reference = options.take_string("backing")) {
    const Result<NodePtr> node = referenced_node(*reference);
    if (!node) co_return forward_error(node, "Could not open backing file");
    auto edge = co_await attach_child(*this, *node, "backing", Permissions::reader(), false);
    co_return edge;
  }
  Options beside = options.take_child("backing");
  if (stored_filename.empty() && beside.empty()) co_return Edge();
  const auto in_context = [](const auto& failed) {
    if (failed.error().code() == kChainTooLong) return forward_error(failed);
    return forward_error(failed, "Could not open backing file");
  };
  if (depth + 1 >= kMaxChain) {
    const std::string text =
        fmt::format("Could not open the backing file of '{}': the chain is longer than {} images",
                    filename, kMaxChain);
    co_return std::unexpected(Error(kChainTooLong, text));
  }

  std::string backing_name;
  const bool named_beside =
      beside.has("filename") || beside.has("file") || beside.has_child("file");
  if (!named_beside && !stored_filename.empty()) {
    const std::string& overlay =
        state && !state->base_name.empty() ? state->base_name : this->filename;
    Result<std::string> resolved = resolve_backing(overlay, stored_filename);
    if (!resolved) co_return in_context(resolved);
    backing_name = std::move(*resolved);
  }
  if (beside.has("driver")) stored_format.clear();
  Result<Options> composed = detail::compose_options(backing_name, beside, stored_format);
  if (!composed) co_return in_context(composed);

  const Result<void> straight =
      check_no_loop(state, "Backing file", detail::bottom_filename(*composed));
  PLATTER_CO_TRY(straight);

  detail::NodeRequest request{.options = std::move(*composed),
                              .format = std::move(stored_format),
                              .flags = detail::backing_flags(flags),
                              .role = detail::Role::kBacking,
                              .display = backing_name,
                              .depth = depth + 1,
                              .overlay = state};
  auto node = co_await detail::open_new_node(std::move(request));
  if (!node) co_return in_context(node);
  auto edge = co_await attach_child(*this, *node, "backing", Permissions::reader(), true);
  if (!edge) co_return in_context(edge);
  co_return edge;
}

Result<std::string> resolve_backing(std::string_view overlay_filename, std::string_view stored) {
  if (stored.starts_with('/') || !protocol_prefix(stored).empty()) return std::string(stored);
  if (overlay_filename.starts_with("json:")) {
    return fail(EINVAL, "Cannot use relative backing file names for '{}'", overlay_filename);
  }
  std::size_t directory = overlay_filename.rfind('/');
  if (directory == std::string_view::npos && !protocol_prefix(overlay_filename).empty()) {
    directory = overlay_filename.find(':');
  }
  if (directory == std::string_view::npos) return std::string(stored);
  return std::string(overlay_filename.substr(0, directory + 1)) + std::string(stored);
}

}  // namespace platter

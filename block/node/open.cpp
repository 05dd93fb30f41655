#include "block/exec/buffer.h"
#include "block/node/foreign_format.h"
#include "block/node/graph_access.h"
#include "block/node/nesting.h"
#include "block/node/open_plain.h"
#include "block/node/open_state.h"

namespace platter {
namespace detail {
namespace {

bool has_prefix_of(const DriverType& type, std::string_view filename) {
  return std::ranges::any_of(type.prefixes,
                             [&](std::string_view prefix) { return filename.starts_with(prefix); });
}

Task<Result<std::unique_ptr<Driver>>> start_open(const DriverType& type, OpenContext& context) {
  const Nesting nested;
  return type.open(context);
}

// Opens what is below a node of yet unknown format, and guesses the format from its start.
Task<Result<const DriverType*>> probe_below(Options& options, const NodeRequest& request,
                                            OpenFlags flags, Edge& file) {
  NodeRequest below{.options = options.take_child("file"),
                    .format = {},
                    .flags = storage_flags(flags),
                    .role = Role::kStorage,
                    .display = {},
                    .depth = request.depth,
                    .overlay = nullptr};
  NodePtr node;
  if (const auto reference = options.take_string("file")) {
    node = find_node(*reference);
    if (!node) {
      co_return fail(ENODEV, "Cannot find device='{}' nor node-name='{}'", *reference, *reference);
    }
  } else {
    if (const auto filename = options.take_string("filename"))
      below.options.set("filename", *filename);
    if (!below.options.has("filename") && !below.options.has("driver")) {
      co_return fail(EINVAL, "Must specify either driver or file");
    }
    auto opened = co_await open_new_node(std::move(below));
    PLATTER_CO_TRY(opened);
    node = *opened;
  }
  const Permissions nothing_yet{.need = 0, .shared = perm::kAll};
  auto attached = co_await Edge::attach(node, "the format probe", nothing_yet);
  PLATTER_CO_TRY(attached);
  file = std::move(*attached);

  const std::size_t length = std::min<std::uint64_t>(kProbeSize, file->size());
  const Buffer head(length);
  auto read = co_await file->read(0, head.iov());
  if (!read) co_return forward_error(read, "Could not read image for determining its format");
  const DriverType* type = probe_format(head.span(), file->filename());
  const DriverType* const raw = find_driver("raw");
  if (!type || type == raw) {
    // The bytes of a container are nobody's disk.
    if (const auto foreign = foreign_format(head.span(), file->filename())) {
      co_return fail(ENOTSUP, "'{}' is a {} image, a format that is not supported",
                     file->filename(), *foreign);
    }
    type = raw;
  }
  if (!type) co_return fail(ENOENT, "Could not determine image format: No compatible driver found");
  co_return type;
}

Task<void> put_away(Edge& file) {
  if (!file) co_return;
  auto detached = co_await file.detach();
  static_cast<void>(detached);
}

// A new node's driver: the one that is named, or the protocol of the filename, or what the contents
// below look like, which is then open as `file`.
Task<Result<const DriverType*>> choose_driver(Options& options, const NodeRequest& request,
                                              const std::optional<std::string>& name,
                                              OpenFlags flags, Edge& file) {
  if (name) {
    const DriverType* const type = find_driver(*name);
    if (!type || !type->open) co_return fail(EINVAL, "Unknown driver '{}'", *name);
    co_return type;
  }
  const std::string* const filename = options.peek("filename");
  const DriverType* const protocol = filename ? protocol_for(*filename) : nullptr;
  if (filename && !protocol)
    co_return fail(EINVAL, "Unknown protocol '{}'", protocol_prefix(*filename));
  if (request.role == Role::kStorage) {
    if (!protocol) co_return fail(EINVAL, "Must specify either driver or file");
    co_return protocol;
  }
  auto guessed = co_await probe_below(options, request, flags, file);
  if (!guessed) co_await put_away(file);
  co_return guessed;
}

// "driver=qcow2" with a plain filename: the name is the file below.
void pass_filename_down(const DriverType& type, Options& options) {
  const std::string* const filename = options.peek("filename");
  if (!filename || has_prefix_of(type, *filename)) return;
  std::string below = *options.take_string("filename");
  if (!options.has("file") && !options.has_child("file"))
    options.set("file.filename", std::move(below));
}

Task<Result<NodePtr>> open_once(NodeRequest request, bool yield) {
  co_await YieldIf{yield};
  Options options = std::move(request.options);
  std::optional<std::string> driver_name = options.take_string("driver");
  if (!driver_name && !request.format.empty()) driver_name = request.format;
  OpenFlags flags = request.flags;
  const Result<void> common = take_common_options(options, flags);
  PLATTER_CO_TRY(common);
  std::optional<std::string> node_name = options.take_string("node-name");
  const bool node_name_given = node_name.has_value();
  if (node_name) {
    const Result<void> usable = check_node_name(*node_name);
    PLATTER_CO_TRY(usable);
  } else {
    node_name = made_up_node_name();
  }

  OpenState state{
      .overlay = request.overlay, .base_name = bottom_filename(options), .identity = {}};
  state.identity = FileIdentity::of(state.base_name);
  std::string display = std::move(request.display);
  if (display.empty()) display = state.base_name;

  Edge file;
  auto chosen = co_await choose_driver(options, request, driver_name, flags, file);
  PLATTER_CO_TRY(chosen);
  const DriverType* const type = *chosen;
  const bool probed = static_cast<bool>(file);
  if (probed) state.preopened = &file;
  if (!type->protocol && !probed) pass_filename_down(*type, options);

  OpenContext context{.options = options,
                      .flags = flags,
                      .node_name = *node_name,
                      .filename = display,
                      .depth = request.depth,
                      .as_storage = request.role == Role::kStorage,
                      .state = &state};
  auto opened = co_await start_open(*type, context);
  if (!opened) {
    co_await put_away(file);
    co_return forward_error(opened);
  }
  NodePtr node = BlockNode::create(*type, std::move(*opened), std::move(*node_name),
                                   std::move(display), flags);
  // To want no backing file is right for what has none.
  if (const std::string* none = options.peek("backing"); none && none->empty())
    options.take_string("backing");
  Result<void> good = options.all_taken(type->name);
  // A node below may have taken the name meanwhile.
  if (good && node_name_given) good = check_node_name(node->node_name());
  if (!good) {
    auto closed = co_await close_unattached(node);
    static_cast<void>(closed);
    co_return forward_error(good);
  }
  if (probed) GraphAccess::set_probed(*node);
  remember_node(node);
  co_return node;
}

Task<Result<NodePtr>> open_or_retry(NodeRequest request, bool yield) {
  Options peeked = request.options;
  const Result<std::optional<bool>> automatic = peeked.take_bool("auto-read-only");
  PLATTER_CO_TRY(automatic);
  NodeRequest again = request;
  auto opened = co_await open_once(std::move(request), yield);
  if (opened || !automatic->value_or(false)) co_return opened;
  const int code = opened.error().code();
  if (code != EACCES && code != EROFS && code != EPERM) co_return opened;
  again.options.set("read-only", "on");
  auto read_only = co_await open_once(std::move(again), false);
  co_return read_only;
}

}  // namespace

Task<Result<NodePtr>> open_new_node(NodeRequest request) {
  const bool deep = nested_too_deep();
  const Nesting nested;
  if (request.options.has("auto-read-only")) return open_or_retry(std::move(request), deep);
  return open_once(std::move(request), deep);
}

Task<Result<void>> close_unattached(NodePtr node) {
  // An edge without rights, given up at once, closes a node in the usual way.
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto edge = co_await Edge::attach(std::move(node), "nobody", none);
  PLATTER_CO_TRY(edge);
  auto closed = co_await edge->detach();
  co_return closed;
}

}  // namespace detail

Task<Result<Edge>> open_node(OpenRequest request) {
  std::string name = request.filename;
  if (name.empty()) name = detail::bottom_filename(request.options);
  auto opened = co_await open_node_plain(std::move(request));
  if (!opened) co_return std::unexpected(not_opened(name, opened.error()));
  co_return opened;
}

Error not_opened(const std::string& name, const Error& why) {
  if (why.file() == name && !name.empty()) return why;
  return why.in(fmt::format("Could not open '{}'", name)).naming(name);
}

Task<Result<Edge>> open_node_plain(OpenRequest request) {
  Result<Options> options =
      detail::compose_options(request.filename, request.options, request.format);
  PLATTER_CO_TRY(options);
  detail::NodeRequest below{.options = std::move(*options),
                            .format = request.format,
                            .flags = request.flags,
                            .role = detail::Role::kUser,
                            .display = request.filename,
                            .depth = 0,
                            .overlay = nullptr};
  auto opened = co_await detail::open_new_node(std::move(below));
  PLATTER_CO_TRY(opened);
  Permissions permissions = request.permissions;
  if ((*opened)->flags().force_share) permissions.shared = perm::kAll;
  auto edge = co_await Edge::attach(*opened, request.user, permissions);
  if (!edge) {
    auto closed = co_await detail::close_unattached(std::move(*opened));
    static_cast<void>(closed);
  }
  co_return edge;
}

}  // namespace platter

#include "tools/io/open.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "block/node/open_plain.h"
#include "tools/img/common.h"

namespace platter::io_tool {
namespace {

Permissions rights_for(const OpenFlags& flags) {
  // As qemu-io: it uses the image and lets others do what they like, unless the format objects.
  return {.need = flags.read_only ? perm::kConsistentRead : perm::kConsistentRead | perm::kWrite,
          .shared = perm::kAll};
}

OpenRequest request_for(const OpenSpec& spec, const std::string& program) {
  OpenRequest request;
  request.filename = spec.filename.value_or("");
  request.options = spec.options;
  request.flags = spec.flags;
  request.permissions = rights_for(spec.flags);
  request.user = program;
  return request;
}

// An empty file that is gone from its directory as soon as it is closed by the caller.
Result<std::string> make_temporary() {
  const char* directory = std::getenv("TMPDIR");
  std::string name = fmt::format("{}/vl.XXXXXX", directory != nullptr ? directory : "/var/tmp");
  const int file = mkstemp(name.data());
  if (file < 0) return fail_errno(errno, "Could not create temporary overlay '{}'", name);
  close(file);
  return name;
}

// A qcow2 image in `file` over the disk that `below` opens.
Task<Result<Edge>> open_overlay(std::string file, OpenFlags flags, OpenRequest below) {
  below.flags.read_only = true;
  below.permissions = Permissions::reader();
  const std::string program = below.user;
  auto base = co_await open_node_plain(std::move(below));
  PLATTER_CO_TRY(base);
  const Options no_options;
  auto created = co_await create_image("qcow2", file, (*base)->size(), no_options);
  Result<Edge> overlay;
  if (created) {
    OpenRequest request;
    request.flags = flags;
    // Nobody will see the overlay again: nothing in it needs to last, and nobody else writes it.
    request.flags.no_flush = true;
    request.flags.force_share = false;
    request.permissions = rights_for(flags);
    request.user = program;
    request.options.set("driver", "qcow2");
    request.options.set("file.driver", "file");
    request.options.set("file.filename", file);
    request.options.set("backing", (*base)->node_name());
    auto opened = co_await open_node_plain(std::move(request));
    overlay = std::move(opened);
  } else {
    overlay = forward_error(created);
  }
  auto detached = co_await base->detach();
  if (!detached && overlay) {
    auto given_up = co_await overlay->detach();
    static_cast<void>(given_up);
    co_return forward_error(detached);
  }
  co_return overlay;
}

Task<Result<Edge>> open_with_snapshot(OpenSpec spec, std::string program) {
  Result<std::string> file = make_temporary();
  PLATTER_CO_TRY(file);
  auto opened = co_await open_overlay(*file, spec.flags, request_for(spec, program));
  unlink(file->c_str());
  co_return opened;
}

// Puts a filter that keeps what is read from backing images over `image`.
Task<Result<Edge>> add_copy_on_read(Edge image, OpenFlags flags, std::string program) {
  OpenRequest request;
  request.flags = flags;
  request.permissions = rights_for(flags);
  request.user = program;
  request.options.set("driver", "copy-on-read");
  request.options.set("file", image->node_name());
  auto filter = co_await open_node_plain(std::move(request));
  auto detached = co_await image.detach();
  if (filter && !detached) {
    auto given_up = co_await filter->detach();
    static_cast<void>(given_up);
    co_return forward_error(detached);
  }
  co_return filter;
}

// A key "filename" names a file, not an image whose format is to be guessed.
Result<void> check_names(const OpenSpec& spec) {
  const Options* given = &spec.options;
  Result<Options> written;
  if (spec.filename) {
    if (spec.filename->empty()) {
      return fail(EINVAL, "The 'file' block driver requires a file name");
    }
    if (!spec.filename->starts_with("json:")) return {};
    written = Options::from_filename(*spec.filename);
    PLATTER_TRY(written);
    if (spec.options.has("driver")) return {};
    given = &*written;
  }
  if (given->has("driver") || given->has("file") || given->has_child("file")) return {};
  return fail(EINVAL, "Must specify either driver or file");
}

Result<void> check_modes(const OpenSpec& spec) {
  if (spec.native_aio && !spec.flags.direct) {
    return fail(EINVAL,
                "aio=native was specified, but it requires cache.direct=on, which was not "
                "specified.");
  }
  if (spec.copy_on_read && spec.flags.read_only) {
    return fail(EINVAL, "Can't use copy-on-read on read-only device");
  }
  return {};
}

Task<Result<Edge>> open_as_specified(OpenSpec spec, std::string program) {
  const Result<void> named = check_names(spec);
  PLATTER_CO_TRY(named);
  // What does not go together matters only to an image that is there.
  const Result<void> modes = check_modes(spec);
  const OpenFlags flags = spec.flags;
  const bool copy_on_read = spec.copy_on_read;
  OpenRequest plain = request_for(spec, program);
  // The filter will hold the rights.
  if (copy_on_read) plain.permissions = {.need = 0, .shared = perm::kAll};
  auto opening = spec.snapshot ? open_with_snapshot(std::move(spec), program)
                               : open_node_plain(std::move(plain));
  auto image = co_await opening;
  if (image && !modes) {
    auto given_up = co_await image->detach();
    static_cast<void>(given_up);
    co_return forward_error(modes);
  }
  if (!image || !copy_on_read) co_return image;
  auto filtered = co_await add_copy_on_read(std::move(*image), flags, program);
  co_return filtered;
}

void warn_if_guessed(BlockNode& node) {
  if (!node.probed() || node.driver_name() != "raw" || node.read_only()) return;
  // The file as its own driver knows it, without the notation that led to it.
  BlockNode* const file = node.storage();
  std::string name = file ? file->driver().exact_filename() : std::string();
  if (name.empty()) name = node.filename();
  std::fflush(stdout);
  fmt::print(stderr,
             "WARNING: Image format was not specified for '{}' and probing guessed raw.\n"
             "         Automatically detecting the format is dangerous for raw images, write "
             "operations on "
             "block 0 will be restricted.\n"
             "         Specify the 'raw' format explicitly to remove the restrictions.\n",
             name);
}

bool set_discard(const Session& session, OpenSpec& spec, std::string_view mode) {
  if (mode == "unmap" || mode == "on") {
    spec.flags.discard_unmap = true;
  } else if (mode == "ignore" || mode == "off") {
    spec.flags.discard_unmap = false;
  } else {
    session.complain(fmt::format("Invalid discard option: {}", mode));
    return false;
  }
  return true;
}

bool set_aio(const Session& session, OpenSpec& spec, std::string_view mode) {
  // There is one way of doing I/O here, io_uring; the others are accepted.
  spec.native_aio = mode == "native";
  if (mode == "threads" || mode == "native" || mode == "io_uring") return true;
  session.complain(fmt::format("Invalid aio option: {}", mode));
  return false;
}

}  // namespace

bool set_cache(const Session& session, OpenFlags& flags, std::string_view mode) {
  if (img::parse_cache(mode, flags)) return true;
  session.complain(fmt::format("Invalid cache option: {}", mode));
  return false;
}

std::optional<bool> take_open_option(const Session& session, OpenSpec& spec, int letter) {
  switch (letter) {
    case 's':
      spec.snapshot = true;
      return true;
    case 'n':
      spec.flags.direct = true;
      spec.flags.writethrough = false;
      return true;
    case 'C':
      spec.copy_on_read = true;
      return true;
    case 'r':
      spec.flags.read_only = true;
      return true;
    case 'k':
      spec.native_aio = true;
      return true;
    case 'i':
      return set_aio(session, spec, optarg);
    case 't':
      return set_cache(session, spec.flags, optarg);
    case 'd':
      return set_discard(session, spec, optarg);
    case 'U':
      spec.flags.force_share = true;
      return true;
    default:
      return std::nullopt;
  }
}

Task<bool> open_image(Session& session, OpenSpec spec) {
  const std::string subject =
      spec.filename ? "can't open device " + *spec.filename : std::string("can't open");
  const std::string* const share = spec.options.peek("force-share");
  if (spec.flags.force_share && share != nullptr && *share != "on") {
    session.complain("-U conflicts with image options");
    co_return false;
  }
  const bool copy_on_read = spec.copy_on_read;
  auto opened = co_await open_as_specified(std::move(spec), session.program());
  if (!opened) {
    // Whoever it is that would write, through whichever node.
    const bool unwritable = opened.error().kind() == ErrorKind::kReadOnlyNode;
    const Error error =
        unwritable ? Error(opened.error().code(), "Block node is read-only") : opened.error();
    session.complain(error.in(subject));
    co_return false;
  }
  warn_if_guessed((*opened)->skip_filters());
  session.adopt(std::move(*opened), copy_on_read);
  co_return true;
}

Task<bool> run_open(Session& session, Arguments arguments) {
  OpenSpec spec;
  arguments.rewind();
  for (int letter; (letter = arguments.next("snCro:ki:t:d:U")) != -1;) {
    if (const std::optional<bool> taken = take_open_option(session, spec, letter)) {
      if (!*taken) co_return false;
      continue;
    }
    if (letter != 'o') co_return usage_error(arguments);
    const Result<Options> given = Options::parse_keyval(optarg);
    if (!given) {
      session.complain(given.error());
      co_return false;
    }
    for (const auto& [key, value] : *given) spec.options.set(key, value);
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() > 1) co_return usage_error(arguments);
  if (session.is_open()) {
    session.complain("file open already, try 'help close'");
    co_return false;
  }
  if (!rest.empty()) spec.filename = rest[0];
  auto opened = co_await open_image(session, std::move(spec));
  co_return opened;
}

Task<bool> run_close(Session& session, Arguments) {
  auto closed = co_await session.close();
  co_return closed;
}

}  // namespace platter::io_tool

// The command reopen: other flags for the open image.
#include <functional>

#include "tools/io/open.h"

namespace platter::io_tool {
namespace {

struct Wish {
  std::optional<bool> read_only;     // -r, -w
  std::optional<std::string> cache;  // -c
  Options options;                   // -o
};

// What belongs to the node below: only what stays as it is may be named.
Result<void> check_below(Options below, BlockNode& node) {
  BlockNode* const file = node.storage();
  const auto stays = [&](std::string_view key, const std::string& value) {
    if (const std::string* given = below.peek(key); given && *given == value)
      below.take_string(key);
  };
  if (file) {
    stays("driver", std::string(file->driver_name()));
    stays("node-name", file->node_name());
    stays("filename", file->driver().exact_filename());
    const auto read_only = below.take_bool("read-only");
    PLATTER_TRY(read_only);
    if (read_only->value_or(false) && !file->read_only()) {
      return fail(EPERM, "Read-only block node '{}' cannot support read-write users",
                  file->node_name());
    }
  }
  // Neither does anything.
  below.take_string("drop-cache");
  below.take_string("x-check-cache-dropped");
  if (below.empty()) return {};
  return fail(EINVAL, "Cannot change the option '{}'", below.begin()->first);
}

std::optional<std::string> encryption_of(BlockNode& node) {
  const FormatInfo info = node.driver().info();
  if (!info.encrypted) return std::nullopt;
  for (const InfoField& field : info.specific) {
    const auto* const parts = std::get_if<InfoField::Fields>(&field.value);
    if (field.name != "encrypt" || parts == nullptr) continue;
    for (const InfoField& part : *parts)
      if (part.name == "format") return std::get<std::string>(part.value);
  }
  return std::nullopt;
}

// A key that unlocks is read when the image is opened.
Result<void> check_key(Options& options, BlockNode& node) {
  if (node.driver_name() != "qcow2") return {};
  if (const auto format = options.take_string("encrypt.format")) {
    const std::optional<std::string> there = encryption_of(node);
    if (!there) {
      return fail(EINVAL, "No encryption in image header, but options specified format '{}'",
                  *format);
    }
    if (*there != *format) {
      return fail(EINVAL, "Header reported '{}' encryption format but options specify '{}'", *there,
                  *format);
    }
  }
  options.take_string("encrypt.key-secret");
  const Options unknown = options.take_child("encrypt");
  if (!unknown.empty() && node.driver().info().encrypted)
    return fail(EINVAL, "Parameter '{}' is unexpected", unknown.begin()->first);
  return {};
}

// What may be changed while the image is open.
Result<void> apply_options(Options& options, BlockNode& node, OpenFlags& flags) {
  const auto take = [&](std::string_view key, bool& into) -> Result<void> {
    const Result<std::optional<bool>> value = options.take_bool(key);
    PLATTER_TRY(value);
    if (*value) into = **value;
    return {};
  };
  Result<void> taken = take("read-only", flags.read_only);
  PLATTER_TRY(taken);
  taken = take("cache.direct", flags.direct);
  PLATTER_TRY(taken);
  taken = take("cache.no-flush", flags.no_flush);
  PLATTER_TRY(taken);
  bool automatic = false;
  taken = take("auto-read-only", automatic);
  PLATTER_TRY(taken);
  bool shared = flags.force_share;
  taken = take("force-share", shared);
  PLATTER_TRY(taken);
  if (shared != flags.force_share) return fail(EINVAL, "Cannot change the option 'force-share'");
  if (const auto discard = options.take_string("discard")) {
    flags.discard_unmap = *discard == "unmap" || *discard == "on";
    if (!flags.discard_unmap && *discard != "ignore" && *discard != "off") {
      return fail(EINVAL, "Invalid discard option");
    }
  }
  if (const auto detect = options.take_string("detect-zeroes")) {
    using enum OpenFlags::DetectZeroes;
    if (*detect != "off" && *detect != "on" && *detect != "unmap") {
      return fail(EINVAL, "invalid parameter value: {}", *detect);
    }
    flags.detect_zeroes = *detect == "off" ? kOff : *detect == "on" ? kOn : kUnmap;
  }
  if (flags.detect_zeroes == OpenFlags::DetectZeroes::kUnmap && !flags.discard_unmap) {
    return fail(EINVAL,
                "setting detect-zeroes to unmap is not allowed without setting discard operation "
                "to unmap");
  }
  // What stays as it is may be named.
  if (const std::string* driver = options.peek("driver"); driver && *driver == node.driver_name()) {
    options.take_string("driver");
  }
  if (const std::string* name = options.peek("node-name"); name && *name == node.node_name()) {
    options.take_string("node-name");
  }
  const Result<void> key = check_key(options, node);
  PLATTER_TRY(key);
  for (const std::string_view child : {"file", "backing"}) {
    if (const auto reference = options.take_string(child))
      return fail(ENODEV, "Cannot find device='' nor node-name='{}'", *reference);
  }
  const Result<void> below = check_below(options.take_child("file"), node);
  PLATTER_TRY(below);
  if (!options.empty())
    return fail(EINVAL, "Cannot change the option '{}'", options.begin()->first);
  return {};
}

Result<void> check_wish(const Wish& wish) {
  if (wish.cache && (wish.options.has("cache.direct") || wish.options.has("cache.no-flush"))) {
    return fail(EINVAL, "Cannot set both -c and the cache options");
  }
  if (wish.read_only && wish.options.has("read-only")) {
    return fail(EINVAL, "Cannot set both -r/-w and 'read-only'");
  }
  return {};
}

}  // namespace

Task<bool> run_reopen(Session& session, Arguments arguments) {
  Wish wish;
  OpenFlags flags = session.node().flags();
  arguments.rewind();
  for (int letter; (letter = arguments.next("c:o:rw")) != -1;) {
    switch (letter) {
      case 'c':
        wish.cache = optarg;
        if (!set_cache(session, flags, optarg)) co_return false;
        break;
      case 'o': {
        Result<Options> given = Options::parse_keyval(optarg);
        if (!given) {
          session.complain(given.error());
          co_return false;
        }
        wish.options = std::move(*given);
        break;
      }
      case 'r':
      case 'w':
        if (wish.read_only) {
          session.complain("Only one -r/-w option may be given");
          co_return false;
        }
        wish.read_only = letter == 'r';
        break;
      default:
        co_return usage_error(arguments);
    }
  }
  if (!arguments.rest().empty()) co_return usage_error(arguments);
  Result<void> good = check_wish(wish);
  std::function<Task<Result<void>>()> change;
  if (good) {
    auto planned = session.image().driver().plan_change(wish.options);
    if (planned) {
      change = std::move(*planned);
    } else {
      good = forward_error(planned);
    }
  }
  if (good) good = apply_options(wish.options, session.image(), flags);
  if (wish.read_only) flags.read_only = *wish.read_only;
  if (good && flags.read_only && session.copy_on_read()) {
    good = fail(EACCES, "Can't set node '{}' to r/o with copy-on-read enabled",
                session.image().node_name());
  }
  if (!good) {
    session.complain(good.error());
    co_return false;
  }

  auto finished = session.wait_for_requests();
  co_await finished;
  session.print_reports();
  const Permissions before = session.permissions();
  if (wish.read_only == true) {
    Permissions reading = before;
    reading.need &= ~(perm::kWrite | perm::kResize);
    auto given_up = co_await session.set_permissions(reading);
    if (!given_up) {
      session.complain(given_up.error());
      co_return false;
    }
  }
  auto reopened = co_await reopen(session.node(), flags);
  if (reopened && change) {
    auto changing = change();
    reopened = co_await changing;
  }
  if (!reopened) {
    auto restored = co_await session.set_permissions(before);
    static_cast<void>(restored);
    session.complain(reopened.error());
  }
  co_return reopened.has_value();
}

}  // namespace platter::io_tool

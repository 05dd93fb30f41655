#include <sys/stat.h>

#include <atomic>
#include <cctype>
#include <map>

#include "block/base/mutex.h"
#include "block/node/open_state.h"

namespace platter {
namespace detail {

FileIdentity FileIdentity::of(const std::string& filename) {
  FileIdentity identity;
  const std::string path(local_path(filename));
  struct stat status{};
  if (!path.empty() && stat(path.c_str(), &status) == 0) {
    identity.device = status.st_dev;
    identity.inode = status.st_ino;
  } else {
    identity.name = filename;
  }
  return identity;
}

Result<void> take_common_options(Options& options, OpenFlags& flags) {
  const auto take = [&](std::string_view key, bool& into) -> Result<void> {
    const Result<std::optional<bool>> value = options.take_bool(key);
    PLATTER_TRY(value);
    if (*value) into = **value;
    return {};
  };
  Result<void> taken = take("read-only", flags.read_only);
  PLATTER_TRY(taken);
  bool auto_read_only = false;
  taken = take("auto-read-only", auto_read_only);
  PLATTER_TRY(taken);
  taken = take("cache.direct", flags.direct);
  PLATTER_TRY(taken);
  taken = take("cache.no-flush", flags.no_flush);
  PLATTER_TRY(taken);
  taken = take("force-share", flags.force_share);
  PLATTER_TRY(taken);
  if (flags.force_share && !flags.read_only) {
    return fail(EINVAL, "force-share=on can only be used with read-only images");
  }
  if (const auto discard = options.take_string("discard")) {
    if (*discard == "unmap" || *discard == "on") {
      flags.discard_unmap = true;
    } else if (*discard == "ignore" || *discard == "off") {
      flags.discard_unmap = false;
    } else {
      return fail(EINVAL, "Invalid discard option");
    }
  }
  if (const auto detect = options.take_string("detect-zeroes")) {
    using enum OpenFlags::DetectZeroes;
    if (*detect == "off") {
      flags.detect_zeroes = kOff;
    } else if (*detect == "on") {
      flags.detect_zeroes = kOn;
    } else if (*detect == "unmap") {
      flags.detect_zeroes = kUnmap;
    } else {
      return fail(EINVAL, "invalid parameter value: {}", *detect);
    }
    if (flags.detect_zeroes == kUnmap && !flags.discard_unmap) {
      return fail(EINVAL,
                  "setting detect-zeroes to unmap is not allowed without setting discard "
                  "operation to unmap");
    }
  }
  return {};
}

Result<Options> compose_options(const std::string& filename, const Options& beside,
                                std::string_view format) {
  Options all;
  if (!filename.empty()) {
    Result<Options> named = Options::from_filename(filename);
    PLATTER_TRY(named);
    // A format is laid over a name that spells out only the protocol below it.
    const std::string* driver = named->peek("driver");
    const DriverType* below = driver ? find_driver(*driver) : nullptr;
    const DriverType* above = format.empty() ? nullptr : find_driver(format);
    if (below && below->protocol && above && !above->protocol) {
      all.put_child("file", *named);
      all.set("driver", std::string(format));
    } else {
      all = std::move(*named);
      // What the image above says of the format, or the user beside the name, is worth more.
      if (!format.empty() && all.has("driver")) all.set("driver", std::string(format));
    }
  }
  for (const auto& [key, value] : beside) all.set(key, value);
  return all;
}

std::string bottom_filename(const Options& options) {
  // Below a few levels of drivers without names of their own there is nobody's file.
  std::string prefix;
  for (unsigned level = 0; level < 8; ++level) {
    if (const std::string* name = options.peek(prefix + "filename")) return *name;
    prefix += options.has_child(prefix + "image") ? "image." : "file.";
  }
  return {};
}

OpenFlags storage_flags(OpenFlags flags) {
  // Formats send flushes and discards down as they see fit; what the user wants of the format is
  // not asked of the file a second time.
  flags.discard_unmap = true;
  flags.detect_zeroes = OpenFlags::DetectZeroes::kOff;
  flags.writethrough = false;
  flags.check = false;
  return flags;
}

OpenFlags backing_flags(OpenFlags flags) {
  flags = storage_flags(flags);
  flags.read_only = true;
  flags.discard_unmap = false;
  return flags;
}

namespace {

struct Names {
  Mutex mutex;
  std::map<std::string, std::weak_ptr<BlockNode>, std::less<>> nodes PLATTER_GUARDED_BY(mutex);
  std::atomic<unsigned> made_up{0};
};
Names& names() {
  static Names all;
  return all;
}

}  // namespace

Result<void> check_node_name(std::string_view name) {
  const auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_';
  };
  if (name.empty() || name.size() > 31 || !std::isalpha(static_cast<unsigned char>(name.front())) ||
      !std::all_of(name.begin(), name.end(), allowed)) {
    return fail(EINVAL, "Invalid node-name: '{}'", name);
  }
  if (find_node(name)) return fail(EINVAL, "Duplicate nodes with node-name='{}'", name);
  return {};
}

std::string made_up_node_name() { return fmt::format("#block{:03}", names().made_up++); }

void remember_node(const NodePtr& node) {
  const MutexLock lock(names().mutex);
  std::erase_if(names().nodes, [](const auto& entry) { return entry.second.expired(); });
  names().nodes.insert_or_assign(node->node_name(), node);
}

}  // namespace detail

NodePtr find_node(std::string_view node_name) {
  const MutexLock lock(detail::names().mutex);
  const auto it = detail::names().nodes.find(node_name);
  return it == detail::names().nodes.end() ? nullptr : it->second.lock();
}

}  // namespace platter

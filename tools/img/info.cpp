// info: what an image is. Opens no file but the one named, unless --backing-chain asks for it.
#include <fmt/format.h>

#include <iterator>
#include <set>

#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/format.h"

namespace platter::img {
namespace {

// All that info says about one image.
struct ImageInfo {
  std::string filename;
  std::string format;
  std::uint64_t virtual_size = 0;
  std::optional<std::uint64_t> actual_size;
  FormatInfo details;
  bool knows_state = false;  // whether a dirty flag means anything
  std::string backing_filename;
  std::string backing_format;
  std::optional<std::string> full_backing_filename;
  std::vector<SnapshotInfo> snapshots;
};

ImageInfo collect(BlockNode& node) {
  ImageInfo info;
  Driver& driver = node.driver();
  info.filename = driver.exact_filename();
  if (info.filename.empty()) info.filename = node.filename();
  info.format = node.driver_name();
  info.virtual_size = node.size();
  info.details = driver.info();
  BlockNode* ground = &node;
  while (ground->storage() != nullptr) ground = ground->storage();
  info.actual_size = driver.allocated_size();
  if (!info.actual_size) info.actual_size = ground->driver().allocated_size();
  // (A device has no holes to tell of. QEMU says what the blocks of the device's name are: none.)
  if (!info.actual_size && ground->driver_name() == "host_device") info.actual_size = 0;
  // (QEMU leaves out the "file:" of a file's name.)
  if (ground->driver_name() == "file" && info.filename.starts_with("file:")) {
    info.filename = local_path(info.filename);
    if (!protocol_prefix(info.filename).empty()) info.filename.insert(0, "./");
  }
  info.knows_state = ground->driver_name() == "file" || ground->driver_name() == "host_device";
  if (const BackingAbility* backing = driver.backing_reference()) {
    info.backing_filename = backing->backing_filename();
    info.backing_format = backing->backing_format();
  }
  if (const SnapshotAbility* snapshots = driver.snapshots()) info.snapshots = snapshots->list();
  return info;
}

std::string to_text(const ImageInfo& info) {
  std::string out;
  const auto line = [&]<class... Args>(fmt::format_string<Args...> text, Args&&... args) {
    fmt::format_to(std::back_inserter(out), text, std::forward<Args>(args)...);
    out += '\n';
  };
  line("image: {}", info.filename);
  line("file format: {}", info.format);
  line("virtual size: {} ({} bytes)", size_text(info.virtual_size), info.virtual_size);
  line("disk size: {}", info.actual_size ? size_text(*info.actual_size) : "unavailable");
  if (info.details.encrypted) line("encrypted: yes");
  if (info.details.cluster_size != 0) line("cluster_size: {}", info.details.cluster_size);
  if (info.details.dirty) line("cleanly shut down: no");
  if (!info.backing_filename.empty()) {
    std::string where;
    if (!info.full_backing_filename) {
      where = " (cannot determine actual path)";
    } else if (*info.full_backing_filename != info.backing_filename) {
      where = fmt::format(" (actual path: {})", *info.full_backing_filename);
    }
    line("backing file: {}{}", info.backing_filename, where);
    if (!info.backing_format.empty()) line("backing file format: {}", info.backing_format);
  }
  if (!info.snapshots.empty()) out += snapshot_table(info.snapshots);
  if (!info.details.specific.empty()) {
    line("Format specific information:");
    out += fields_text(info.details.specific, 1);
  }
  return out;
}

// Refers to `info`, whose snapshots become JSON when they are written.
Json to_json(const ImageInfo& info) {
  Json object;
  object.set("filename", info.filename);
  object.set("format", info.format);
  object.set("virtual-size", info.virtual_size);
  if (info.actual_size) object.set("actual-size", *info.actual_size);
  if (info.details.encrypted) object.set("encrypted", true);
  if (info.details.compressed) object.set("compressed", true);
  if (info.details.cluster_size != 0) object.set("cluster-size", info.details.cluster_size);
  if (info.knows_state) object.set("dirty-flag", info.details.dirty);
  if (!info.backing_filename.empty()) {
    object.set("backing-filename", info.backing_filename);
    if (info.full_backing_filename)
      object.set("full-backing-filename", *info.full_backing_filename);
    if (!info.backing_format.empty()) object.set("backing-filename-format", info.backing_format);
  }
  if (!info.snapshots.empty()) {
    object.set("snapshots", Json::Sequence{info.snapshots.size(), [&info](std::size_t i) {
                                             return snapshot_json(info.snapshots[i]);
                                           }});
  }
  if (!info.details.specific.empty()) {
    Json specific;
    specific.set("type", info.format);
    specific.set("data", fields_json(info.details.specific));
    object.set("format-specific", std::move(specific));
  }
  return object;
}

void print_json(const Json& json) {
  json.write_pretty(print);
  print("\n");
}

struct InfoArguments {
  CommonOptions common;
  std::string filename;
  bool chain = false;
};

// Options that decide how an image is opened, but not what it shows.
bool is_runtime_option(std::string_view name) {
  for (const char* known : {"node-name", "read-only", "auto-read-only", "discard", "detect-zeroes",
                            "force-share", "lazy-refcounts", "overlap-check", "aio", "locking"}) {
    if (name == known) return true;
  }
  for (const char* group : {"cache", "overlap-check.", "pass-discard"}) {
    if (name.starts_with(group)) return true;
  }
  return name.ends_with("-cache-size") || name == "l2-cache-entry-size";
}

Json nested_json(const Options& options, std::string_view prefix) {
  Json object;
  std::set<std::string> groups;
  for (const auto& [key, value] : options) {
    if (!key.starts_with(prefix)) continue;
    const std::string rest = key.substr(prefix.size());
    const std::size_t dot = rest.find('.');
    if (dot == std::string::npos) {
      object.set(rest, value);
    } else if (groups.insert(rest.substr(0, dot)).second) {
      object.set(rest.substr(0, dot),
                 nested_json(options, fmt::format("{}{}.", prefix, rest.substr(0, dot))));
    }
  }
  return object;
}

// The name that opens the image again as `spec` did, when a plain file name does not say it all.
std::optional<std::string> name_with_options(const OpenSpec& spec, BlockNode& node) {
  Result<Options> given = spec.image_opts ? Options::parse_keyval(spec.filename)
                                          : Options::from_filename(spec.filename);
  if (!given || (!spec.image_opts && !spec.filename.starts_with("json:"))) return std::nullopt;
  Options options;
  bool plain = !node.type().protocol || node.driver_name() == "file";
  for (const auto& [key, value] : *given) {
    const std::string_view last = std::string_view(key).substr(key.rfind('.') + 1);
    if (is_runtime_option(key.starts_with("file.") ? std::string_view(key).substr(5) : key))
      continue;
    if (key == "backing" && value.empty()) continue;  // it is opened without one in any case
    options.set(key, value);
    if (last != "driver" && last != "filename" && key != "file") plain = false;
  }
  if (plain) {
    BlockNode* ground = &node;
    while (ground->storage() != nullptr) ground = ground->storage();
    return ground->filename();
  }
  options.set("driver", std::string(node.driver_name()));
  if (const BlockNode* file = node.storage(); file != nullptr && options.has_child("file")) {
    options.set("file.driver", std::string(file->driver_name()));
  }
  return "json:" + nested_json(options, "").compact();
}

// The full name of the backing file, taken from where the image is.
void find_backing(ImageInfo& info) {
  if (info.backing_filename.empty()) return;
  const Result<std::string> full = resolve_backing(info.filename, info.backing_filename);
  if (full) info.full_backing_filename = *full;
}

// The image and, if asked for, those it stands on, each opened by itself.
Task<Result<std::vector<ImageInfo>>> collect_chain(InfoArguments arguments) {
  std::vector<ImageInfo> infos;
  std::set<std::string> seen;
  OpenSpec next;
  next.filename = arguments.filename;
  next.format = arguments.common.format;
  next.image_opts = arguments.common.image_opts;
  for (;;) {
    if (!seen.insert(next.filename).second) {
      co_return fail(ELOOP, "Backing file '{}' creates an infinite loop.", next.filename);
    }
    next.flags.no_backing = true;
    next.flags.no_io = true;
    next.flags.force_share = arguments.common.force_share;
    Result<Edge> opened = co_await open_image(next);
    PLATTER_CO_TRY(opened);
    infos.push_back(collect(**opened));
    if (const auto name = name_with_options(next, **opened)) infos.back().filename = *name;
    find_backing(infos.back());
    Result<void> closed = co_await opened->detach();
    PLATTER_CO_TRY(closed);
    const ImageInfo& info = infos.back();
    if (!arguments.chain || !info.full_backing_filename) co_return infos;
    next = {};
    next.filename = *info.full_backing_filename;
    if (!info.backing_format.empty()) next.format = info.backing_format;
  }
}

Task<int> show(InfoArguments arguments) {
  const Result<std::vector<ImageInfo>> infos = co_await collect_chain(arguments);
  if (!infos) co_return report_failure(infos);
  if (arguments.common.output == OutputFormat::kHuman) {
    std::string out;
    for (const ImageInfo& info : *infos) {
      if (!out.empty()) out += '\n';
      out += to_text(info);
    }
    print(out);
  } else if (arguments.chain) {
    Json::Array array;
    for (const ImageInfo& info : *infos) array.push_back(to_json(info));
    print_json(Json(std::move(array)));
  } else {
    print_json(to_json(infos->front()));
  }
  co_return 0;
}

}  // namespace

int run_info(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', "format", true},
                                    {kOutput, "output", true},
                                    {kBackingChain, "backing-chain"},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"},
                                    {'U', "force-share"}};
  InfoArguments info;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 'h') return print_help();
    const CommonOptions::Taken taken = info.common.take(*option);
    if (taken.failed) return 1;
    if (option->id == kBackingChain) info.chain = true;
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  if (!info.common.agree()) return 1;
  info.filename = rest[0];
  return finish_output(run_to_end([&] { return show(info); }));
}

}  // namespace platter::img

// snapshot: lists, makes, applies, renames and deletes internal snapshots.
#include <algorithm>
#include <cerrno>
#include <chrono>

#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/format.h"
#include "tools/img/snapshots.h"

namespace platter::img {
namespace {

struct SnapshotArguments {
  CommonOptions common;
  std::string filename;
  int action = 0;  // 'l', 'a', 'c', 'd', 'r'; 0: none
  std::string name;
  std::optional<std::string> new_name;  // of 'r'
};

Task<int> create_snapshot(BlockNode& node, const SnapshotArguments& arguments) {
  const std::string& name = arguments.name;
  SnapshotAbility* snapshots = node.driver().snapshots();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  Result<void> created = fail_errno(ENOTSUP);
  if (snapshots != nullptr) {
    created =
        co_await snapshots->create(name, static_cast<std::uint64_t>(microseconds / 1'000'000),
                                   static_cast<std::uint32_t>(microseconds % 1'000'000 * 1000));
  }
  if (created) co_return 0;
  report_about(arguments.filename, "Could not create snapshot '{}': -{} ({})", name,
               created.error().code(), created.error().message());
  co_return 1;
}

Task<int> apply_snapshot(BlockNode& node, const SnapshotArguments& arguments) {
  const std::string& name = arguments.name;
  SnapshotAbility* snapshots = node.driver().snapshots();
  Result<void> applied = fail(ENOTSUP, "Block driver does not support snapshots");
  if (snapshots != nullptr) {
    applied = co_await snapshots->apply(name);
    if (!applied && applied.error().code() == ENOENT) {
      applied = fail_errno(ENOENT, "Failed to load snapshot");
    }
  }
  if (applied) co_return 0;
  report_about(arguments.filename, "Could not apply snapshot '{}': {}", name,
               applied.error().message());
  co_return 1;
}

Task<int> remove_snapshot(BlockNode& node, const SnapshotArguments& arguments) {
  const std::string& name = arguments.name;
  SnapshotAbility* snapshots = node.driver().snapshots();
  Result<void> removed = fail(ENOENT, "snapshot not found");
  // What is deleted is gone: here, unlike for -a, a number is not taken for an id.
  if (snapshots != nullptr) {
    const std::vector<SnapshotInfo> list = snapshots->list();
    const auto found = std::find_if(list.begin(), list.end(), [&](const SnapshotInfo& snapshot) {
      return snapshot.name == name;
    });
    if (found != list.end()) removed = co_await snapshots->remove(found->id);
  }
  if (removed) co_return 0;
  report_about(arguments.filename, "Could not delete snapshot '{}': {}", name,
               removed.error().message());
  co_return 1;
}

Task<int> rename_snapshot(BlockNode& node, const SnapshotArguments& arguments) {
  SnapshotAbility* snapshots = node.driver().snapshots();
  Result<void> renamed = fail(ENOTSUP, "Block driver does not support snapshots");
  if (snapshots != nullptr)
    renamed = co_await snapshots->rename(arguments.name, *arguments.new_name);
  if (renamed) co_return 0;
  report_about(arguments.filename, "Could not rename snapshot '{}' to '{}': {}", arguments.name,
               *arguments.new_name, renamed.error().message());
  co_return 1;
}

Task<int> act(SnapshotArguments arguments) {
  OpenSpec spec;
  spec.filename = arguments.filename;
  spec.image_opts = arguments.common.image_opts;
  spec.flags.force_share = arguments.common.force_share;
  spec.flags.read_only = arguments.action == 'l' || arguments.action == 0;
  spec.flags.no_backing = spec.flags.read_only;
  if (arguments.action == 0 && spec.flags.force_share) {
    report("Could not open '{}': force-share=on can only be used with read-only images",
           arguments.filename);
    co_return 1;
  }
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  int status = 0;
  switch (arguments.action) {
    case 'l':
      if (const SnapshotAbility* snapshots = (*image)->driver().snapshots()) {
        const std::vector<SnapshotInfo> list = snapshots->list();
        if (!list.empty()) print(snapshot_table(list));
      }
      break;
    case 'a':
      status = co_await apply_snapshot(**image, arguments);
      break;
    case 'c':
      status = co_await create_snapshot(**image, arguments);
      break;
    case 'd':
      status = co_await remove_snapshot(**image, arguments);
      break;
    case 'r':
      status = co_await rename_snapshot(**image, arguments);
      break;
    default:
      break;
  }
  const Result<void> closed = co_await image->detach();
  if (!closed) co_return report_failure(arguments.filename, closed);
  co_return status;
}

}  // namespace

std::optional<SnapshotName> parse_snapshot_name(std::string_view text) {
  SnapshotName name;
  if (!text.starts_with("snapshot.")) {
    name.either = text;
    return name;
  }
  Result<Options> options = Options::parse_keyval(text);
  if (options) {
    name.id = options->take_string("snapshot.id");
    name.name = options->take_string("snapshot.name");
    if (options->begin() == options->end()) return name;
    report("Invalid parameter '{}'", options->begin()->first);
  } else {
    report_error(options.error());
  }
  report("Failed in parsing snapshot param '{}'", text);
  return std::nullopt;
}

Task<Result<void>> load_snapshot(BlockNode& node, SnapshotName name) {
  SnapshotAbility* snapshots = node.driver().snapshots();
  if (snapshots == nullptr) {
    co_return fail(ENOTSUP,
                   "Failed to load snapshot: Block format '{}' used by device '' does not support "
                   "temporarily loading internal snapshots",
                   node.driver_name());
  }
  const std::vector<SnapshotInfo> list = snapshots->list();
  const auto find = [&](const auto& matches) {
    return std::find_if(list.begin(), list.end(), matches);
  };
  auto found = list.end();
  if (name.either) {
    found = find([&](const SnapshotInfo& s) { return s.id == *name.either; });
    if (found == list.end())
      found = find([&](const SnapshotInfo& s) { return s.name == *name.either; });
  } else {
    found = find([&](const SnapshotInfo& s) {
      return (!name.id || s.id == *name.id) && (!name.name || s.name == *name.name);
    });
  }
  if (found == list.end()) co_return fail(ENOENT, "Failed to load snapshot: Can't find snapshot");
  const Result<void> loaded = co_await snapshots->load(found->id);
  if (!loaded) co_return forward_error(loaded, "Failed to load snapshot");
  co_return {};
}

int run_snapshot(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'l', nullptr},
                                    {'a', nullptr, true},
                                    {'c', nullptr, true},
                                    {'d', nullptr, true},
                                    {'r', "rename", true},
                                    {kTo, "to", true},
                                    {'q', nullptr},
                                    {'U', "force-share"},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  SnapshotArguments snapshot;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (snapshot.common.take(*option).failed) return 1;
    switch (option->id) {
      case 'h':
        return print_help();
      case 'l':
      case 'a':
      case 'c':
      case 'd':
      case 'r':
        if (snapshot.action == 'r' || (snapshot.action != 0 && option->id == 'r'))
          return usage_error("Cannot mix '-l', '-a', '-c', '-d', '-r'");
        if (snapshot.action != 0) return usage_error("Cannot mix '-l', '-a', '-c', '-d'");
        snapshot.action = option->id;
        snapshot.name = option->value;
        break;
      case kTo:
        snapshot.new_name = option->value;
        break;
      default:
        break;
    }
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  if (snapshot.action == 'r' && !snapshot.new_name)
    return usage_error("'-r' expects a new name: '--to NAME'");
  if (snapshot.action != 'r' && snapshot.new_name) return usage_error("'--to' goes with '-r'");
  snapshot.filename = rest[0];
  // It cannot stop half-way: a signal waits for its end.
  const Cancellation put_off;
  return finish_output(run_to_end([&] { return act(snapshot); }));
}

}  // namespace platter::img

// bitmap: adds, removes and changes persistent dirty bitmaps.
#include <cerrno>

#include "tools/img/commands.h"
#include "tools/img/common.h"

namespace platter::img {
namespace {

struct Action {
  int what;            // kAdd, ..., kMerge
  std::string source;  // kMerge: the bitmap to take from
};

struct BitmapArguments {
  CommonOptions common;
  std::vector<Action> actions;
  std::uint64_t granularity = 0;
  std::optional<std::string> source_file;
  std::optional<std::string> source_format;
  std::string filename;
  std::string bitmap;
};

const char* name_of(int what) {
  switch (what) {
    case kAdd:
      return "add";
    case kRemove:
      return "remove";
    case kClear:
      return "clear";
    case kEnable:
      return "enable";
    case kDisable:
      return "disable";
    default:
      return "merge";
  }
}

Task<Result<void>> merge(BitmapAbility& bitmaps, BlockNode& source, std::string from,
                         std::string into) {
  // What is wrong with the target is said first.
  auto target = co_await bitmaps.contents(into);
  if (!target) co_return forward_error(target);
  BitmapAbility* const others = source.driver().bitmaps();
  if (others == nullptr) co_return fail(ENOENT, "Dirty bitmap '{}' not found", from);
  auto contents = co_await others->contents(from);
  if (!contents) co_return forward_error(contents);
  auto merged = co_await bitmaps.merge(into, std::move(*contents));
  co_return merged;
}

Task<Result<void>> act(BlockNode& node, BlockNode& source, Action action,
                       const BitmapArguments& arguments) {
  BitmapAbility* const bitmaps = node.driver().bitmaps();
  const std::string& name = arguments.bitmap;
  if (bitmaps == nullptr) {
    if (action.what != kAdd) co_return fail(ENOENT, "Dirty bitmap '{}' not found", name);
    co_return fail(ENOTSUP, "Can't store persistent bitmaps to {}: {}", node.node_name(),
                   errno_text(ENOTSUP));
  }
  Task<Result<void>> running;
  switch (action.what) {
    case kAdd:
      running = bitmaps->add(name, arguments.granularity, true);
      break;
    case kRemove:
      running = bitmaps->remove(name);
      break;
    case kClear:
      running = bitmaps->clear(name);
      break;
    case kEnable:
    case kDisable:
      running = bitmaps->set_enabled(name, action.what == kEnable);
      break;
    default:
      running = merge(*bitmaps, source, action.source, name);
      break;
  }
  auto result = co_await running;
  co_return result;
}

Task<int> run(BitmapArguments arguments) {
  OpenSpec spec = arguments.common.spec(arguments.filename);
  spec.flags.read_only = false;
  spec.flags.no_backing = true;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  Edge source;
  int status = 0;
  if (arguments.source_file) {
    OpenSpec from;
    from.filename = *arguments.source_file;
    from.format = arguments.source_format;
    from.flags.no_backing = true;
    Result<Edge> opened = co_await open_image(std::move(from));
    if (opened) {
      source = std::move(*opened);
    } else {
      status = report_failure(opened);
    }
  }
  for (std::size_t i = 0; i < arguments.actions.size() && status == 0; ++i) {
    const Action& action = arguments.actions[i];
    const Result<void> done = co_await act(**image, source ? *source : **image, action, arguments);
    if (done) continue;
    report_about(arguments.filename, "Operation {} on bitmap {} failed: {}", name_of(action.what),
                 arguments.bitmap, done.error().message());
    status = 1;
  }
  if (source) {
    const Result<void> closed = co_await source.detach();
    if (!closed && status == 0) status = report_failure(*arguments.source_file, closed);
  }
  const Result<void> closed = co_await image->detach();
  if (!closed && status == 0) status = report_failure(arguments.filename, closed);
  co_return status;
}

// What is wrong with the whole, if anything.
const char* complaint_about(const BitmapArguments& bitmap) {
  bool add = false;
  bool merges = false;
  for (const Action& action : bitmap.actions) {
    add = add || action.what == kAdd;
    merges = merges || action.what == kMerge;
  }
  if (bitmap.actions.empty()) {
    return "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge";
  }
  if (bitmap.granularity != 0 && !add) return "granularity only supported with --add";
  if (bitmap.source_format && !bitmap.source_file) return "-F only supported with -b";
  if (bitmap.source_file && !merges) return "Merge bitmap source file only supported with --merge";
  return nullptr;
}

}  // namespace

int run_bitmap(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'b', "source-file", true},
                                    {'f', nullptr, true},
                                    {'F', "source-format", true},
                                    {'g', "granularity", true},
                                    {kAdd, "add"},
                                    {kRemove, "remove"},
                                    {kClear, "clear"},
                                    {kEnable, "enable"},
                                    {kDisable, "disable"},
                                    {kMerge, "merge", true},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  BitmapArguments bitmap;
  CommonOptions& common = bitmap.common;
  VerbArguments arguments(argc, argv, kFlags, common);
  while (const std::optional<Option> option = arguments.next()) {
    switch (option->id) {
      case 'b':
        bitmap.source_file = option->value;
        break;
      case 'F':
        bitmap.source_format = option->value;
        break;
      case 'g': {
        const auto size = parse_bounded_size(option->value, "granularity", 0, kMostBytes);
        if (!size) return 1;
        bitmap.granularity = *size;
        break;
      }
      case kAdd:
      case kRemove:
      case kClear:
      case kEnable:
      case kDisable:
      case kMerge:
        bitmap.actions.push_back({option->id, std::string(option->value)});
        break;
      default:
        break;
    }
  }
  if (const auto status = arguments.ended()) return *status;
  if (const char* complaint = complaint_about(bitmap)) {
    report_text(complaint);
    return 1;
  }
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 2) {
    report("Expecting filename and bitmap name");
    return 1;
  }
  if (!common.agree()) return 1;
  bitmap.filename = rest[0];
  bitmap.bitmap = rest[1];
  return finish_output(run_to_end([&] { return run(bitmap); }));
}

}  // namespace platter::img

// resize: makes an image larger or smaller.
#include <algorithm>
#include <cerrno>

#include "block/base/checked.h"
#include "block/node/size_text.h"
#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

// Bytes; QEMU does not open what is larger.
constexpr std::uint64_t kLargestImage = kMostBytes / (std::uint64_t{1} << 30) << 30;

struct ResizeArguments {
  CommonOptions common;
  std::string filename;
  int direction = 0;  // 0: `size` is the new size; 1 and -1: it is added, taken off
  std::uint64_t size = 0;
  Preallocation preallocation = Preallocation::kOff;
  bool shrink = false;
};

// What is wrong with the new size, or nothing.
bool allowed(const ResizeArguments& arguments, std::uint64_t current, std::uint64_t size) {
  if (size <= current && arguments.preallocation != Preallocation::kOff) {
    report_about(arguments.filename, "Preallocation can only be used for growing images");
    return false;
  }
  if (size < current && !arguments.shrink) {
    report_about(
        arguments.filename,
        "Use the --shrink option to perform a shrink operation. "
        "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before "
        "performing such an operation, make sure there is no important data there.");
    return false;
  }
  return true;
}

Task<int> resize_node(BlockNode& node, const ResizeArguments& arguments) {
  const std::uint64_t current = node.size();
  const std::uint64_t size = arguments.direction == 0 ? arguments.size
                             : arguments.direction > 0
                                 ? checked_add(current, arguments.size).value_or(~std::uint64_t{0})
                                 : current - std::min(arguments.size, current);
  if (size == 0 || size > kMostBytes) {
    report_about(arguments.filename, "New image size must be positive");
    co_return 1;
  }
  if (size > kLargestImage) {
    report_about(arguments.filename, "offset({}) exceeds maximum({})", size, kLargestImage);
    co_return 1;
  }
  if (!allowed(arguments, current, size)) co_return 1;
  ResizeRequest request;
  request.size = size;
  request.preallocation = arguments.preallocation;
  request.cancelled = Cancellation::flag();
  Progress progress(arguments.common.progress && !arguments.common.quiet);
  progress.start();
  const ResizeProgress told = [&progress](std::uint64_t done, std::uint64_t total) {
    progress.update(done, total);
  };
  request.progress = &told;
  const Result<void> resized = co_await node.resize(request);
  if (resized) progress.finish();
  if (Cancellation::ended(resized)) {
    report("resize cancelled: '{}' keeps its size{}", arguments.filename,
           size < current ? ", and not all of what lies behind the new end" : "");
    co_return Cancellation::status();
  }
  if (!resized) co_return report_failure(arguments.filename, resized);
  co_return 0;
}

Task<int> resize(ResizeArguments arguments) {
  OpenSpec spec;
  spec.filename = arguments.filename;
  spec.format = arguments.common.format;
  spec.image_opts = arguments.common.image_opts;
  spec.flags.read_only = false;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  const int status = co_await resize_node(**image, arguments);
  const Result<void> closed = co_await image->detach();
  if (!closed) co_return report_failure(arguments.filename, closed);
  if (status == 0 && !arguments.common.quiet) print("Image resized.\n");
  co_return status;
}

}  // namespace

int run_resize(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"},
                                    {kPreallocation, "preallocation", true},
                                    {kShrink, "shrink"}};
  // The size comes last and may begin with a minus: it is taken off before options are looked for.
  if (argc < 3) return usage_error("Not enough arguments");
  std::string_view size = argv[argc - 1];

  ResizeArguments resize_arguments;
  Arguments arguments(argc - 1, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 'h') return print_help();
    if (resize_arguments.common.take(*option).failed) return 1;
    if (option->id == kShrink) resize_arguments.shrink = true;
    if (option->id == kPreallocation) {
      const Result<Preallocation> mode = parse_preallocation(option->value);
      if (!mode) {
        report("Invalid preallocation mode '{}'", option->value);
        return 1;
      }
      resize_arguments.preallocation = *mode;
    }
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting image file name and size");
  if (!resize_arguments.common.agree()) return 1;
  resize_arguments.filename = rest[0];
  if (size.starts_with('+') || size.starts_with('-')) {
    resize_arguments.direction = size[0] == '+' ? 1 : -1;
    size.remove_prefix(1);
  }
  const Result<std::uint64_t> bytes = parse_size_64(size);
  if (!bytes) {
    report_about(resize_arguments.filename, "{}",
                 bytes.error().code() == ERANGE
                     ? fmt::format("Value '{}' is out of range for parameter 'size'", size)
                     : "Parameter 'size' expects a non-negative number below 2^64");
    return 1;
  }
  resize_arguments.size = *bytes;
  const Cancellation cancellation;
  return finish_output(run_to_end([&] { return resize(resize_arguments); }));
}

}  // namespace platter::img

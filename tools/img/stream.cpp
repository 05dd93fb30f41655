// stream: makes an image independent of the images below it, or of some of them.
#include "block/jobs/stream.h"

#include <cerrno>

#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

struct StreamArguments {
  CommonOptions common;
  std::string filename;
  std::string base;  // empty: none
  std::uint64_t rate = 0;
};

Task<Result<void>> stream_node(BlockNode& top, const StreamArguments& arguments,
                               Progress& progress) {
  StreamOptions options;
  if (!arguments.base.empty()) {
    options.base = find_in_chain(top, arguments.base);
    if (options.base == nullptr) {
      co_return fail(ENOENT, "Did not find '{}' in the backing chain of '{}'", arguments.base,
                     arguments.filename);
    }
  }
  const std::uint64_t size = top.size();
  options.bytes_per_second = arguments.rate;
  options.progress = [&](std::uint64_t done) { progress.update(done, size); };
  options.cancelled = Cancellation::flag();
  const Result<void> streamed = co_await stream(top, options);
  if (Cancellation::ended(streamed)) {
    co_return fail(ECANCELED, "stream cancelled: '{}' reads as before and keeps its backing file",
                   arguments.filename);
  }
  if (streamed) progress.finish();
  co_return streamed;
}

Task<int> stream_image(StreamArguments arguments) {
  OpenSpec spec;
  spec.filename = arguments.filename;
  spec.format = arguments.common.format;
  spec.image_opts = arguments.common.image_opts;
  spec.cache = arguments.common.cache;
  spec.flags.read_only = false;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  Result<void> result;
  {
    Progress progress(arguments.common.progress && !arguments.common.quiet);
    progress.start();
    result = co_await stream_node(**image, arguments, progress);
  }
  const Result<void> closed = co_await image->detach();
  if (result && !closed) result = closed;
  if (!result) {
    report_text(result.error().message());
    co_return Cancellation::ended(result) ? Cancellation::status() : 1;
  }
  if (!arguments.common.quiet) print("Image streamed.\n");
  co_return 0;
}

}  // namespace

int run_stream(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'t', nullptr, true},
                                    {'b', nullptr, true},
                                    {'r', nullptr, true},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  StreamArguments stream_arguments;
  CommonOptions& common = stream_arguments.common;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (common.take(*option).failed) return 1;
    switch (option->id) {
      case 'h':
        return print_help();
      case 'b':
        stream_arguments.base = option->value;
        break;
      case 'r': {
        const auto rate = parse_bounded_size(option->value, "rate limit", 0, kMostBytes);
        if (!rate) return 1;
        stream_arguments.rate = *rate;
        break;
      }
      default:
        break;
    }
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  if (!common.agree()) return 1;
  stream_arguments.filename = rest[0];
  const Cancellation cancellation;
  return finish_output(run_to_end([&] { return stream_image(stream_arguments); }));
}

}  // namespace platter::img

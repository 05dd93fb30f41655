// measure: how large a file a new image would need.
#include <fmt/format.h>

#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/json.h"
#include "tools/img/snapshots.h"

namespace platter::img {
namespace {

struct MeasureArguments {
  CommonOptions common;
  std::string output_format = "raw";
  std::optional<std::string> options;
  std::optional<SnapshotName> snapshot;
  std::optional<std::uint64_t> size;
  std::string filename;
};

void show(const MeasureResult& result, OutputFormat format) {
  if (format == OutputFormat::kJson) {
    Json object;
    object.set("required", result.required);
    object.set("fully-allocated", result.fully_allocated);
    if (result.bitmaps) object.set("bitmaps", *result.bitmaps);
    print(object.pretty() + "\n");
    return;
  }
  std::string out = fmt::format("required size: {}\nfully allocated size: {}\n", result.required,
                                result.fully_allocated);
  if (result.bitmaps) out += fmt::format("bitmaps size: {}\n", *result.bitmaps);
  print(out);
}

Task<int> measure(MeasureArguments arguments) {
  Edge source;
  if (!arguments.size) {
    Result<Edge> opened = co_await open_image(arguments.common.spec(arguments.filename));
    if (!opened) co_return report_failure(opened);
    source = std::move(*opened);
    if (arguments.snapshot) {
      const Result<void> loaded = co_await load_snapshot(*source, *arguments.snapshot);
      if (!loaded) {
        const int status = report_failure(arguments.filename, loaded);
        co_return co_await close_image(source, arguments.filename, status);
      }
    }
  }
  int status = 0;
  // The place is not known yet; files are what images are usually made in.
  const Result<CreateOptions> known = create_options(arguments.output_format, "file");
  MeasureRequest request;
  request.size = arguments.size.value_or(0);
  request.source = source.get();
  if (!known) {
    status = report_failure(known);
  } else if (arguments.options) {
    Result<Options> options = parse_create_options(*known, *arguments.options);
    if (options) {
      request.options = std::move(*options);
      // What does not bear on the size need not make sense yet.
      for (const char* name :
           {"backing_fmt", "data_file", "data_file_raw", "extent_size_hint", "nocow"}) {
        request.options.take_string(name);
      }
    } else {
      report("Invalid options for file format '{}': {}", arguments.output_format,
             options.error().message());
      status = 1;
    }
  }
  if (status == 0 && known->format->measure == nullptr) {
    report("Block driver '{}' does not support size measurement", known->format->name);
    status = 1;
  }
  if (status == 0) {
    const Result<MeasureResult> result = co_await known->format->measure(std::move(request));
    if (result) {
      show(*result, arguments.common.output);
    } else {
      status = arguments.size ? report_failure(result) : report_failure(arguments.filename, result);
    }
  }
  if (source) status = co_await close_image(source, arguments.filename, status);
  co_return status;
}

}  // namespace

int run_measure(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'l', nullptr, true},
                                    {'o', nullptr, true},
                                    {'O', nullptr, true},
                                    {'U', "force-share"},
                                    {kOutput, "output", true},
                                    {kSizeOption, "size", true},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  MeasureArguments measure_arguments;
  CommonOptions& common = measure_arguments.common;
  VerbArguments arguments(argc, argv, kFlags, common);
  while (const std::optional<Option> option = arguments.next()) {
    switch (option->id) {
      case 'O':
        measure_arguments.output_format = option->value;
        break;
      case 'l':
        measure_arguments.snapshot = parse_snapshot_name(option->value);
        if (!measure_arguments.snapshot) return 1;
        break;
      case 'o':
        if (!add_create_options(measure_arguments.options, option->value)) return 1;
        break;
      case kSizeOption:
        measure_arguments.size = parse_bounded_size(option->value, "image size", 0, kMostBytes);
        if (!measure_arguments.size) return 1;
        break;
      default:
        break;
    }
  }
  if (const auto status = arguments.ended()) return *status;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() > 1) {
    report("At most one filename argument is allowed.");
    return 1;
  }
  if (rest.empty() && (common.image_opts || common.format || measure_arguments.snapshot)) {
    report("--image-opts, -f, and -l require a filename argument.");
    return 1;
  }
  if (rest.empty() && !measure_arguments.size) {
    report("Either --size N or one filename must be specified.");
    return 1;
  }
  if (!common.agree()) return 1;
  if (!rest.empty() && measure_arguments.size) {
    report("--size N cannot be used together with a filename.");
    return 1;
  }
  if (!rest.empty()) measure_arguments.filename = rest[0];
  return finish_output(run_to_end([&] { return measure(measure_arguments); }));
}

}  // namespace platter::img

// create: makes an image.
#include <fmt/format.h>

#include <cerrno>
#include <iterator>

#include "block/node/open_plain.h"
#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/new_image.h"

namespace platter::img {
namespace {

struct CreateArguments {
  std::string filename;
  std::string format = "raw";
  std::optional<std::string> options;
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  std::optional<std::uint64_t> size;
  bool unsafe = false;
  bool quiet = false;
};

// Commas are doubled, as in what -o reads.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    out += c;
    if (c == ',') out += ',';
  }
  return out;
}

std::string announcement(const CreateArguments& arguments, const CreateOptions& known,
                         const Options& options) {
  std::string out = fmt::format("Formatting '{}', fmt={}", arguments.filename, arguments.format);
  for (const CreateOption& option : known.all) {
    const std::string* value = options.peek(option.name);
    if (value != nullptr) {
      fmt::format_to(std::back_inserter(out), " {}={}", option.name, escaped(*value));
    } else if (!option.default_text.empty()) {
      fmt::format_to(std::back_inserter(out), " {}={}", option.name, option.default_text);
    }
  }
  return out + "\n";
}

// Size of the backing file `stored` as the new image, to be made with `options`, will find it.
Task<Result<std::uint64_t>> probe_backing(std::string filename, std::string stored,
                                          std::optional<std::string> format, Options options) {
  const Result<std::string> full = resolve_backing(filename, stored);
  PLATTER_CO_TRY(full);
  OpenSpec spec;
  spec.filename = *full;
  spec.format = format;
  // Only its size is of interest here: another process may be writing it.
  spec.flags.no_io = true;
  spec.flags.force_share = true;
  constexpr std::string_view kContext = "Could not open backing image";
  if (format && find_driver(*format) == nullptr) {
    co_return fail(ENOENT, "{}: Unknown driver '{}'", kContext, *format);
  }
  Result<Edge> opened = co_await open_image_plain(std::move(spec));
  if (!opened) {
    // (One file's name is enough.)
    const Error& why = opened.error();
    co_return std::unexpected((why.file().empty() ? not_opened(*full, why) : why).in(kContext));
  }
  const std::uint64_t size = (*opened)->size();
  const std::string detected((*opened)->driver_name());
  const Result<void> kept = check_is_not_below(**opened, filename, options);
  Result<void> closed = co_await opened->detach();
  PLATTER_CO_TRY(kept);
  PLATTER_CO_TRY(closed);
  if (!format) {
    co_return fail(EINVAL, "Backing file specified without backing format: Detected format of {}",
                   detected);
  }
  co_return size;
}

// Whether `written`, the image `filename` or its data file, would overwrite the image's own backing
// file, by whatever path it is named.
bool is_backing(const std::string& written, const std::string& filename,
                const std::string& backing) {
  if (backing == written) return true;
  const Result<std::string> full = resolve_backing(filename, backing);
  return full && same_file(*full, written);
}

Task<Result<void>> create(CreateArguments arguments) {
  const Result<CreateOptions> known = create_options(arguments.format, arguments.filename);
  PLATTER_CO_TRY(known);
  Options options;
  if (arguments.options) {
    Result<Options> parsed = parse_create_options(*known, *arguments.options);
    PLATTER_CO_TRY(parsed);
    options = std::move(*parsed);
  }
  if (arguments.size) {
    if (options.has("size")) co_return fail(EINVAL, "The image size must be specified only once");
    options.set("size", std::to_string(*arguments.size));
  }
  if (arguments.backing_file) {
    if (known->find("backing_file") == nullptr) {
      co_return fail(ENOTSUP, "Backing file not supported for file format '{}'", arguments.format);
    }
    options.set("backing_file", *arguments.backing_file);
  }
  if (arguments.backing_format) {
    if (known->find("backing_fmt") == nullptr) {
      co_return fail(ENOTSUP, "Backing file format not supported for file format '{}'",
                     arguments.format);
    }
    options.set("backing_fmt", *arguments.backing_format);
  }

  const std::string* backing = options.peek("backing_file");
  const std::string* backing_format = options.peek("backing_fmt");
  if (backing != nullptr && backing->empty())
    co_return fail(EINVAL, "Expected backing file name, got empty string");
  if (backing != nullptr && is_backing(arguments.filename, arguments.filename, *backing)) {
    co_return fail(EINVAL,
                   "Error: Trying to create an image with the same filename as the backing file");
  }
  const std::string* data_file = options.peek("data_file");
  if (backing != nullptr && data_file != nullptr &&
      is_backing(*data_file, arguments.filename, *backing)) {
    co_return fail(EINVAL, "'{}' cannot be the backing file and the external data file at once",
                   *data_file);
  }
  if (backing != nullptr && !arguments.unsafe) {
    std::optional<std::string> format;
    if (backing_format != nullptr) format = *backing_format;
    const Result<std::uint64_t> size =
        co_await probe_backing(arguments.filename, *backing, std::move(format), options);
    PLATTER_CO_TRY(size);
    if (!options.has("size")) options.set("size", std::to_string(*size));
  } else if (backing != nullptr && backing_format == nullptr) {
    co_return fail(EINVAL, "Backing file specified without backing format");
  }
  if (!options.has("size")) co_return fail(EINVAL, "Image creation needs a size parameter");

  if (!arguments.quiet) print(announcement(arguments, *known, options));
  const Result<std::optional<std::uint64_t>> size = options.take_size("size");
  PLATTER_CO_TRY(size);
  const bool has_cluster_size = known->find("cluster_size") != nullptr;
  NewImage image(arguments.filename);
  Result<void> created = co_await image.create(arguments.format, **size, std::move(options));
  created = image.finish(std::move(created), "create");
  if (!created && created.error().code() == EFBIG) {
    co_return fail(EFBIG, "The image size is too large for file format '{}'{}", arguments.format,
                   has_cluster_size ? " (try using a larger cluster size)" : "");
  }
  co_return created;
}

Task<int> create_and_report(CreateArguments arguments) {
  const Result<void> created = co_await create(arguments);
  if (!created) {
    report_error(created.error().in(arguments.filename));
    co_return 1;
  }
  co_return 0;
}

}  // namespace

int run_create(int argc, char** argv) {
  static constexpr Flag kFlags[] = {
      {'F', nullptr, true}, {'b', nullptr, true}, {'f', nullptr, true}, {'h', "help"},
      {'o', nullptr, true}, {'q', nullptr},       {'u', nullptr},       {kObject, "object", true}};
  CreateArguments create;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    switch (option->id) {
      case 'h':
        return print_help();
      case 'F':
        create.backing_format = option->value;
        break;
      case 'b':
        create.backing_file = option->value;
        break;
      case 'f':
        create.format = option->value;
        break;
      case 'q':
        create.quiet = true;
        break;
      case 'u':
        create.unsafe = true;
        break;
      case 'o':
        if (!add_create_options(create.options, option->value)) return 1;
        break;
      default:
        if (!take_object(option->value)) return 1;
        break;
    }
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  const bool help = create.options && asks_for_help(*create.options);
  if (rest.empty() && !help) return usage_error("Expecting image file name");
  if (rest.size() > 1) {
    create.size = parse_bounded_size(rest[1], "image size", 0, kMostBytes);
    if (!create.size) return 1;
  }
  if (rest.size() > 2) return usage_error("Unexpected argument: {}", rest[2]);
  if (help) {
    return print_create_options(create.format,
                                rest.empty() ? std::nullopt : std::optional(rest[0]));
  }
  create.filename = rest[0];
  const Cancellation cancellation(Cancellation::kAtOnce);
  return finish_output(run_to_end([&] { return create_and_report(create); }));
}

}  // namespace platter::img

#include "tools/img/common.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <set>

#include "block/base/error.h"

namespace platter::img {
namespace {

std::string& program_name() {
  static std::string name = "qemu-img";
  return name;
}

}  // namespace

void set_program(std::string name) { program_name() = std::move(name); }
const std::string& program() { return program_name(); }

void report_text(std::string_view text) {
  std::fflush(stdout);  // keep the order that a reader of both streams expects
  const std::string line = fmt::format("{}: {}\n", program(), text);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

int usage_error_text(std::string_view text) {
  report_text(text);
  const std::string hint = fmt::format("Try '{} --help' for more information\n", program());
  std::fwrite(hint.data(), 1, hint.size(), stderr);
  return 1;
}

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

int finish_output(int status) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  report("could not write to standard output: {}", errno_text(errno));
  return status != 0 ? status : 1;
}

std::optional<OutputFormat> parse_output(std::string_view text) {
  if (text == "human") return OutputFormat::kHuman;
  if (text == "json") return OutputFormat::kJson;
  report("--output must be used with human or json as argument.");
  return std::nullopt;
}

CommonOptions::Taken CommonOptions::take(const Option& option) {
  switch (option.id) {
    case kObject:
      return {.taken = true, .failed = !take_object(option.value)};
    case kImageOpts:
      image_opts = true;
      return {.taken = true};
    case 'U':
      force_share = true;
      return {.taken = true};
    case kOutput: {
      const std::optional<OutputFormat> parsed = parse_output(option.value);
      if (parsed) output = *parsed;
      return {.taken = true, .failed = !parsed};
    }
    default:
      return {};
  }
}

bool parse_cache(std::string_view mode, OpenFlags& flags) {
  flags.direct = flags.writethrough = flags.no_flush = false;
  if (mode == "writeback") return true;
  flags.direct = mode == "none" || mode == "off" || mode == "directsync";
  flags.writethrough = mode == "writethrough" || mode == "directsync";
  flags.no_flush = mode == "unsafe";
  return flags.direct || flags.writethrough || flags.no_flush;
}

std::optional<std::uint64_t> parse_bounded_size(std::string_view text, std::string_view what,
                                                std::uint64_t least, std::uint64_t most) {
  const Result<std::uint64_t> size = parse_size(text);
  if (!size && size.error().code() != ERANGE) {
    report("Invalid {} specified. You may use k, M, G, T, P or E suffixes for", what);
    report("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
    return std::nullopt;
  }
  if (!size || *size < least || *size > most) {
    report("Invalid {} specified. Must be between {} and {}.", what, least, most);
    return std::nullopt;
  }
  return *size;
}

std::optional<std::uint64_t> parse_bounded_number(std::string_view text, std::string_view what,
                                                  std::uint64_t least, std::uint64_t most) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < least || number > most) {
    report("Invalid {} specified", what);
    return std::nullopt;
  }
  return number;
}

Task<Result<Edge>> open_image(OpenSpec spec) {
  OpenRequest request;
  request.flags = spec.flags;
  if (!spec.cache.empty()) parse_cache(spec.cache, request.flags);
  const bool read_only = request.flags.read_only;
  request.permissions = !read_only                ? Permissions::writer()
                        : spec.flags.force_share ? Permissions::unsafe_reader()
                                                 : Permissions::reader();
  request.user = program();
  if (spec.image_opts) {
    Result<Options> options = Options::parse_keyval(spec.filename);
    if (!options) co_return forward_error(options, "Could not open '{}'", spec.filename);
    request.options = std::move(*options);
  } else {
    request.filename = spec.filename;
    if (spec.format) {
      // The node takes an empty name as "guess".
      if (find_driver(*spec.format) == nullptr) {
        co_return fail(ENOENT, "Could not open '{}': Unknown driver '{}'", spec.filename, *spec.format);
      }
      request.format = *spec.format;
    }
  }
  co_return co_await open_node(std::move(request));
}

}  // namespace platter::img

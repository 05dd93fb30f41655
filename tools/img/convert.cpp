// convert: the command line.
#include "tools/img/convert.h"

#include <cerrno>
#include <cstdlib>

#include "tools/img/cancel.h"
#include "tools/img/commands.h"

namespace platter::img {
namespace {

constexpr std::uint64_t kMostSparse = std::uint64_t{16} << 20;
constexpr unsigned kMostInFlight = 16;

// -S. Nothing (and a report) when it will not do.
std::optional<std::uint64_t> parse_sparse(std::string_view text) {
  const auto size = parse_bounded_size(text, "buffer size for sparse output", 0, kMostBytes);
  if (!size) return std::nullopt;
  if (*size % kSector != 0 || *size > kMostSparse) {
    report(
        "Invalid buffer size for sparse output specified. Valid sizes are multiples of {} up to "
        "{}. "
        "Select 0 to disable sparse detection (fully allocates output).",
        kSector, kMostSparse);
    return std::nullopt;
  }
  return size;
}

// -m.
std::optional<unsigned> parse_in_flight(std::string_view text) {
  // As C writes numbers: 0x10 is 16, 010 is 8.
  const std::string spelled(text);
  char* end = nullptr;
  errno = 0;
  const unsigned long number = std::strtoul(spelled.c_str(), &end, 0);
  if (errno != 0 || spelled.empty() || *end != '\0' || number < 1 || number > kMostInFlight) {
    report("Invalid number of coroutines. Allowed number of coroutines is between 1 and {}",
           kMostInFlight);
    return std::nullopt;
  }
  return static_cast<unsigned>(number);
}

// What of the command line contradicts itself, without looking at any file.
bool consistent(const ConvertArguments& c) {
  const char* complaint = nullptr;
  if (c.target_format && c.target_image_opts && c.no_create) {
    complaint = "--image-opts and --format are mutually exclusive";
  } else if (c.common.format && c.common.image_opts) {
    complaint = "--image-opts and --format are mutually exclusive";
  } else if (c.skip_broken_bitmaps && !c.bitmaps) {
    complaint = "Use of --skip-broken-bitmaps requires --bitmaps";
  } else if (c.compress && c.offload) {
    complaint = "Cannot enable copy offloading when -c is used";
  } else if (c.sparse && c.offload) {
    complaint = "Cannot enable copy offloading when -S is used";
  } else if (c.salvage && c.offload) {
    complaint = "Cannot use copy offloading in salvaging mode";
  } else if (c.target_image_opts && !c.no_create) {
    complaint = "--target-image-opts requires use of -n flag";
  } else if (c.no_create && c.options) {
    complaint = "-o has no effect when skipping image creation";
  } else if (c.target_is_zero && !c.no_create) {
    complaint = "--target-is-zero requires use of -n flag";
  } else if (c.target_is_zero && c.backing_file) {
    complaint = "Cannot use --target-is-zero when the destination image has a backing file";
  } else if (c.sources.empty()) {
    complaint = "Must specify image file name";
  } else if (c.snapshot && c.sources.size() > 1) {
    complaint = "No support for concatenating multiple snapshot";
  } else if (c.bitmaps && c.sources.size() > 1) {
    complaint = "Copying bitmaps only possible with single source";
  } else if (c.backing_file && c.sources.size() > 1) {
    complaint =
        "Having a backing file for the target makes no sense when concatenating multiple input "
        "images";
  }
  if (complaint != nullptr) report_text(complaint);
  return complaint == nullptr;
}

bool known_cache_modes(const ConvertArguments& c) {
  OpenFlags ignored;
  if (!parse_cache(c.common.source_cache, ignored)) {
    report("Invalid source cache option: {}", c.common.source_cache);
    return false;
  }
  if (!parse_cache(c.common.cache, ignored)) {
    report("Invalid cache option: {}", c.common.cache);
    return false;
  }
  return true;
}

constexpr Flag kFlags[] = {{'h', "help"},
                           {'f', nullptr, true},
                           {'O', nullptr, true},
                           {'B', nullptr, true},
                           {'F', nullptr, true},
                           {'C', nullptr},
                           {'c', nullptr},
                           {'o', nullptr, true},
                           {'l', nullptr, true},
                           {'S', nullptr, true},
                           {'p', nullptr},
                           {'q', nullptr},
                           {'n', nullptr},
                           {'t', nullptr, true},
                           {'T', nullptr, true},
                           {'m', nullptr, true},
                           {'r', nullptr, true},
                           {'W', nullptr},
                           {'U', "force-share"},
                           {kObject, "object", true},
                           {kImageOpts, "image-opts"},
                           {kTargetImageOpts, "target-image-opts"},
                           {kSalvage, "salvage"},
                           {kTargetIsZero, "target-is-zero"},
                           {kBitmaps, "bitmaps"},
                           {kSkipBroken, "skip-broken-bitmaps"}};

// Takes one option. False: it will not do, which has been reported.
bool take(ConvertArguments& c, const Option& option) {
  if (const CommonOptions::Taken taken = c.common.take(option); taken.taken) return !taken.failed;
  switch (option.id) {
    case 'O':
      c.target_format = option.value;
      break;
    case 'B':
      c.backing_file = option.value;
      break;
    case 'F':
      c.backing_format = option.value;
      break;
    case 'C':
      c.offload = true;
      break;
    case 'c':
      c.compress = true;
      break;
    case 'n':
      c.no_create = true;
      break;
    case 'W':
      c.out_of_order = true;
      break;
    case kTargetImageOpts:
      c.target_image_opts = true;
      break;
    case kSalvage:
      c.salvage = true;
      break;
    case kTargetIsZero:
      c.target_is_zero = true;
      break;
    case kBitmaps:
      c.bitmaps = true;
      break;
    case kSkipBroken:
      c.skip_broken_bitmaps = true;
      break;
    case 'o':
      return add_create_options(c.options, option.value);
    case 'l':
      c.snapshot = parse_snapshot_name(option.value);
      return c.snapshot.has_value();
    case 'S':
      c.sparse = parse_sparse(option.value);
      return c.sparse.has_value();
    case 'm': {
      const std::optional<unsigned> number = parse_in_flight(option.value);
      c.in_flight = number.value_or(0);
      return number.has_value();
    }
    case 'r': {
      const auto rate = parse_bounded_size(option.value, "rate limit", 0, kMostBytes);
      c.rate = rate.value_or(0);
      return rate.has_value();
    }
    default:
      break;
  }
  return true;
}

}  // namespace

int run_convert(int argc, char** argv) {
  ConvertArguments convert_arguments;
  // The target is worth nothing until the whole is there: it is flushed once, at the end.
  convert_arguments.common.cache = "unsafe";
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 'h') return print_help();
    if (!take(convert_arguments, *option)) return 1;
  }
  if (arguments.failed()) return 1;
  std::vector<std::string> rest = arguments.rest();
  if (convert_arguments.options && asks_for_help(*convert_arguments.options)) {
    return print_create_options(convert_arguments.target_format.value_or("raw"),
                                rest.empty() ? std::nullopt : std::optional(rest.back()));
  }
  if (!rest.empty()) {
    convert_arguments.target = rest.back();
    rest.pop_back();
  }
  convert_arguments.sources = std::move(rest);
  if (!consistent(convert_arguments) || !known_cache_modes(convert_arguments)) return 1;
  const Cancellation cancellation;
  return finish_output(run_to_end([&] { return convert(convert_arguments); }));
}

}  // namespace platter::img

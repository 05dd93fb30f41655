#include "tools/img/common.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "block/base/error.h"
#include "block/node/open_plain.h"
#include "tools/img/commands.h"

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

void report_error(const Error& error) {
  for (const Error::Part& part : error.parts()) {
    report_text(part.reason);
    if (!part.hint.empty()) std::fprintf(stderr, "%s\n", part.hint.c_str());
  }
}

int usage_error_text(std::string_view text) {
  report_text(text);
  const std::string hint = fmt::format("Try '{} --help' for more information\n", program());
  std::fwrite(hint.data(), 1, hint.size(), stderr);
  return 1;
}

Error about(const std::string& name, const Error& error) {
  return error.file() == name ? error : error.in(name).naming(name);
}

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

namespace {

// Whether standard output is a pipe or a socket that nobody reads. (By now errno may be that of
// something else: a write that failed earlier has left no more than a mark in the stream.)
bool nobody_reads_output() {
  pollfd output{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
  return poll(&output, 1, 0) == 1 && (output.revents & (POLLERR | POLLHUP)) != 0;
}

}  // namespace

int finish_output(int status) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  // Whoever stopped reading had enough, and the work has been done.
  if (nobody_reads_output()) return status;
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
    case 'f':
      format = option.value;
      return {.taken = true};
    case 'q':
      quiet = true;
      return {.taken = true};
    case 'p':
      progress = true;
      return {.taken = true};
    case 't':
      cache = option.value;
      return {.taken = true};
    case 'T':
      source_cache = option.value;
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

bool CommonOptions::agree() const {
  OpenFlags ignored;
  if (image_opts && format) {
    report("--image-opts and --format are mutually exclusive");
  } else if (!parse_cache(cache, ignored)) {
    report("Invalid cache option: {}", cache);
  } else if (!parse_cache(source_cache, ignored)) {
    report("Invalid source cache option: {}", source_cache);
  } else {
    return true;
  }
  return false;
}

OpenSpec CommonOptions::spec(std::string filename) const {
  OpenSpec spec;
  spec.filename = std::move(filename);
  spec.format = format;
  spec.image_opts = image_opts;
  spec.cache = cache;
  spec.flags.force_share = force_share;
  return spec;
}

std::optional<Option> VerbArguments::next() {
  while (!ended_) {
    const std::optional<Option> option = arguments_.next();
    if (!option) {
      if (arguments_.failed()) ended_ = 1;
      return std::nullopt;
    }
    const CommonOptions::Taken taken = common_.take(*option);
    if (taken.failed) {
      ended_ = refused_;
    } else if (option->id == 'h') {
      ended_ = print_help();
    } else if (!taken.taken) {
      return option;
    }
  }
  return std::nullopt;
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
    report(
        "Invalid {} specified. You may use k, M, G, T, P or E suffixes for kilobytes, megabytes, "
        "gigabytes, terabytes, petabytes and exabytes.",
        what);
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
  // As C writes numbers: 0x10 is 16, 010 is 8.
  const std::string spelled(text);
  char* end = nullptr;
  errno = 0;
  const unsigned long long number = std::strtoull(spelled.c_str(), &end, 0);
  if (errno != 0 || spelled.empty() || *end != '\0' || number < least || number > most) {
    report("Invalid {} specified", what);
    return std::nullopt;
  }
  return number;
}

namespace {

// A raw image that nobody said is raw: what a guest writes into it may make it look like another.
void warn_of_guess(BlockNode& node) {
  if (!node.probed() || node.driver_name() != "raw") return;
  std::fflush(stdout);
  std::fprintf(stderr,
               "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
               "         Automatically detecting the format is dangerous for raw images, write "
               "operations on block 0 will be restricted.\n"
               "         Specify the 'raw' format explicitly to remove the restrictions.\n",
               node.filename().c_str());
}

}  // namespace

Task<Result<Edge>> open_image(OpenSpec spec) {
  const std::string name = spec.filename;
  Result<Edge> opened = co_await open_image_plain(std::move(spec));
  if (!opened) co_return std::unexpected(not_opened(name, opened.error()));
  co_return opened;
}

Task<Result<Edge>> open_image_plain(OpenSpec spec) {
  OpenRequest request;
  request.flags = spec.flags;
  if (!spec.cache.empty()) parse_cache(spec.cache, request.flags);
  const bool read_only = request.flags.read_only;
  // Whoever reads does not mind writers that share; a format that does asks for itself.
  const Permissions sharing_reader{perm::kConsistentRead, perm::kAll};
  request.permissions = !read_only               ? Permissions::writer()
                        : spec.flags.force_share ? Permissions::unsafe_reader()
                                                 : sharing_reader;
  request.user = program();
  if (spec.image_opts) {
    // A first word without '=' is the file, by the name of its node.
    const std::string_view text = spec.filename;
    const bool named = !text.empty() && !text.substr(0, text.find(',')).contains('=');
    Result<Options> options = Options::parse_keyval((named ? "file=" : "") + spec.filename);
    PLATTER_CO_TRY(options);
    request.options = std::move(*options);
    const std::string* const share = request.options.peek("force-share");
    if (spec.flags.force_share && share != nullptr && *share != "on") {
      co_return fail_naming(spec.filename, EINVAL, "--force-share/-U conflicts with image options");
    }
  } else {
    request.filename = spec.filename;
    if (spec.format) {
      // The node takes an empty name as "guess".
      if (find_driver(*spec.format) == nullptr) {
        co_return fail(ENOENT, "Unknown driver '{}'", *spec.format);
      }
      request.format = *spec.format;
    }
  }
  for (const auto& [key, value] : spec.more) request.options.set(key, value);
  if (!spec.image_opts && spec.filename.empty()) {
    co_return fail(EINVAL, "The 'file' block driver requires a file name");
  }
  Result<Edge> opened = co_await open_node_plain(std::move(request));
  PLATTER_CO_TRY(opened);
  if (!read_only) warn_of_guess(**opened);
  co_return opened;
}

Task<int> close_image(Edge& image, const std::string& name, int status) {
  const Result<void> closed = co_await image.detach();
  co_return closed ? status : report_failure(name, closed);
}

namespace {

// Whether `name`, as someone at `overlay` would write it, is the file `below`.
bool names_file(BlockNode& overlay, BlockNode& below, const std::string& name) {
  if (below.filename() == name || below.driver().exact_filename() == name) return true;
  const BackingAbility* reference = overlay.driver().backing_reference();
  if (reference != nullptr && reference->backing_filename() == name) return true;
  const Result<std::string> full = resolve_backing(overlay.filename(), name);
  return full && same_file(*full, below.filename());
}

}  // namespace

bool same_file(const std::string& a, const std::string& b) {
  if (a == b) return true;
  struct stat first{};
  struct stat second{};
  return stat(std::string(local_path(a)).c_str(), &first) == 0 &&
         stat(std::string(local_path(b)).c_str(), &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

BlockNode* find_in_chain(BlockNode& top, const std::string& name) {
  // Nodes that have no name are not named by none.
  if (name.empty()) return nullptr;
  for (BlockNode* node = &top; node->backing() != nullptr; node = node->backing()) {
    if (names_file(*node, *node->backing(), name)) return node->backing();
  }
  return nullptr;
}

}  // namespace platter::img

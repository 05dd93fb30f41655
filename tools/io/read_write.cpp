// The commands read and write.
#include <cstdio>
#include <cstring>
#include <memory>

#include "tools/io/session.h"
#include "tools/io/vm_state.h"

namespace platter::io_tool {
namespace {

struct ReadOptions {
  ReportStyle style;
  bool vm_state = false;
  bool dump = false;
  std::optional<std::byte> pattern;
  std::optional<std::uint64_t> verify_offset;
  std::optional<std::uint64_t> verify_length;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

std::optional<ReadOptions> parse_read(const Arguments& arguments) {
  ReadOptions options;
  arguments.rewind();
  for (int letter; (letter = arguments.next("bCl:pP:qs:v")) != -1;) {
    switch (letter) {
      case 'b':
        options.vm_state = true;
        break;
      case 'C':
        options.style.machine = true;
        break;
      case 'l':
        if (!(options.verify_length = read_number(optarg))) return std::nullopt;
        break;
      case 'p':
        break;
      case 'P':
        if (!(options.pattern = read_pattern(optarg))) return std::nullopt;
        break;
      case 'q':
        options.style.quiet = true;
        break;
      case 's':
        if (!(options.verify_offset = read_number(optarg))) return std::nullopt;
        break;
      case 'v':
        options.dump = true;
        break;
      default:
        usage_error(arguments);
        return std::nullopt;
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() != 2) {
    usage_error(arguments);
    return std::nullopt;
  }
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) return std::nullopt;
  const std::optional<std::uint64_t> length = read_length(rest[1]);
  if (!length) return std::nullopt;
  options.offset = *offset;
  options.length = *length;

  if (!options.pattern && (options.verify_offset || options.verify_length)) {
    usage_error(arguments);
    return std::nullopt;
  }
  const std::uint64_t from = options.verify_offset.value_or(0);
  if (from > options.length || options.verify_length.value_or(0) > options.length - from) {
    print("pattern verification range exceeds end of read data\n");
    return std::nullopt;
  }
  if (options.vm_state && !require_sectors(options.offset, options.length)) return std::nullopt;
  return options;
}

struct WriteOptions {
  ReportStyle style;
  bool vm_state = false;
  bool zeroes = false;
  WriteFlags flags;
  ZeroFlags zero_flags;
  std::byte pattern = kDefaultPattern;
  const char* source = nullptr;  // -s: a file whose bytes are repeated
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

// What getopt has seen of -f, -n, -P, -u, which mean something only beside others.
struct WriteMarks {
  bool fua = false;
  bool no_fallback = false;
  bool pattern = false;
  bool unmap = false;
};

bool consistent(const WriteOptions& options, const WriteMarks& marks) {
  if (options.vm_state && options.zeroes) {
    print("-b and -z cannot be specified at the same time\n");
  } else if (marks.fua && (options.vm_state || options.flags.compressed)) {
    print("-f and -b or -c cannot be specified at the same time\n");
  } else if (marks.no_fallback && !options.zeroes) {
    print("-n requires -z to be specified\n");
  } else if (marks.unmap && !options.zeroes) {
    print("-u requires -z to be specified\n");
  } else if (int{options.zeroes} + int{marks.pattern} + int{options.source != nullptr} > 1) {
    print("Only one of -z, -P, and -s can be specified at the same time\n");
  } else {
    return true;
  }
  return false;
}

std::optional<WriteOptions> parse_write(const Arguments& arguments) {
  WriteOptions options;
  WriteMarks marks;
  arguments.rewind();
  for (int letter; (letter = arguments.next("bcCfnpP:qs:uz")) != -1;) {
    switch (letter) {
      case 'b':
        options.vm_state = true;
        break;
      case 'c':
        options.flags.compressed = true;
        break;
      case 'C':
        options.style.machine = true;
        break;
      case 'f':
        marks.fua = true;
        break;
      case 'n':
        marks.no_fallback = true;
        break;
      case 'p':
        break;
      case 'P': {
        const std::optional<std::byte> pattern = read_pattern(optarg);
        if (!pattern) return std::nullopt;
        options.pattern = *pattern;
        marks.pattern = true;
        break;
      }
      case 'q':
        options.style.quiet = true;
        break;
      case 's':
        options.source = optarg;
        break;
      case 'u':
        marks.unmap = true;
        break;
      case 'z':
        options.zeroes = true;
        break;
      default:
        usage_error(arguments);
        return std::nullopt;
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() != 2) {
    usage_error(arguments);
    return std::nullopt;
  }
  if (!consistent(options, marks)) return std::nullopt;
  options.flags.fua = marks.fua;
  options.zero_flags = {
      .fua = marks.fua, .may_unmap = marks.unmap, .no_fallback = marks.no_fallback};

  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) return std::nullopt;
  const std::optional<std::uint64_t> length = read_number(rest[1]);
  if (!length) return std::nullopt;
  // Zeroes without fallback need no buffer, and so have no limit.
  if (*length > kMaxRequest && !marks.no_fallback) {
    print("length cannot exceed {} without -n, given {}\n", kMaxRequest, rest[1]);
    return std::nullopt;
  }
  options.offset = *offset;
  options.length = *length;
  if ((options.vm_state || options.flags.compressed) &&
      !require_sectors(options.offset, options.length)) {
    return std::nullopt;
  }
  return options;
}

// Fills `memory` with the file's bytes, repeated as often as needed.
bool fill_from_file(std::span<std::byte> memory, const char* filename) {
  const auto complain = [&](std::string_view what) {
    std::fflush(stdout);
    fmt::print(stderr, "{}: {}\n", filename, what);
    return false;
  };
  const auto closer = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(closer)> file(std::fopen(filename, "r"), closer);
  if (!file) return complain(errno_text(errno));
  const std::size_t got = std::fread(memory.data(), 1, memory.size(), file.get());
  if (std::ferror(file.get()) != 0) return complain(errno_text(errno));
  if (got == 0 && !memory.empty()) return complain("file is empty");
  for (std::size_t filled = got; filled < memory.size();) {
    const std::size_t piece = std::min(filled, memory.size() - filled);
    std::memcpy(memory.data() + filled, memory.data(), piece);
    filled += piece;
  }
  return true;
}

}  // namespace

Task<bool> run_read(Session& session, Arguments arguments) {
  const std::optional<ReadOptions> parsed = parse_read(arguments);
  if (!parsed) co_return false;
  const ReadOptions& options = *parsed;

  RequestBuffer buffer;
  const Clock::time_point start = Clock::now();
  Result<void> result;
  if (!options.vm_state) result = session.check_range(options.offset, options.length);
  if (result) {
    buffer = RequestBuffer(options.length, session.misaligned());
    auto reading = options.vm_state ? read_vm_state(session.node(), options.offset, buffer.iov())
                                    : session.node().read(options.offset, buffer.iov());
    result = co_await reading;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.print_reports();
  if (!result) {
    print_failure("read", result.error());
    co_return false;
  }
  bool matches = true;
  if (options.pattern) {
    const std::uint64_t from = options.verify_offset.value_or(0);
    const std::uint64_t length = options.verify_length.value_or(options.length - from);
    matches = verify_pattern(buffer.span().subspan(from, length), options.offset + from,
                             *options.pattern);
  }
  if (!options.style.quiet) {
    if (options.dump) dump_bytes(buffer.span(), options.offset);
    print_statistics("read", elapsed, options.offset, options.length, options.style);
  }
  co_return matches;
}

Task<bool> run_write(Session& session, Arguments arguments) {
  const std::optional<WriteOptions> parsed = parse_write(arguments);
  if (!parsed) co_return false;
  const WriteOptions& options = *parsed;

  RequestBuffer buffer;
  if (!options.zeroes) {
    buffer = RequestBuffer(options.length, session.misaligned());
    if (options.source == nullptr) {
      buffer.fill(options.pattern);
    } else if (!fill_from_file(buffer.span(), options.source)) {
      co_return false;
    }
  }
  const Clock::time_point start = Clock::now();
  Result<void> result;
  if (!options.vm_state) result = session.check_range(options.offset, options.length);
  if (result) {
    BlockNode& node = session.node();
    auto writing = options.vm_state ? write_vm_state(node, options.offset, buffer.iov())
                   : options.zeroes
                       ? node.write_zeroes(options.offset, options.length, options.zero_flags)
                       : node.write(options.offset, buffer.iov(), options.flags);
    result = co_await writing;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.print_reports();
  if (!result) {
    print_failure("write", result.error());
    co_return false;
  }
  print_statistics("wrote", elapsed, options.offset, options.length, options.style);
  co_return true;
}

}  // namespace platter::io_tool

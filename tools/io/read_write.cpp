// The commands read and write.
#include <cstdio>
#include <cstring>
#include <memory>

#include "tools/io/request.h"
#include "tools/io/session.h"
#include "tools/io/vm_state.h"

namespace platter::io_tool {
namespace {

struct ReadCommand {
  ReadOptions options;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

std::optional<ReadCommand> parse_read(const Arguments& arguments) {
  const std::optional<ReadOptions> options = read_read_options(arguments, "bCl:pP:qs:v");
  if (!options) return std::nullopt;
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() != 2) {
    usage_error(arguments);
    return std::nullopt;
  }
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) return std::nullopt;
  const std::optional<std::uint64_t> length = read_length(rest[1]);
  if (!length) return std::nullopt;

  if (!options->pattern && (options->verify_offset || options->verify_length)) {
    usage_error(arguments);
    return std::nullopt;
  }
  const std::uint64_t from = options->verify_offset.value_or(0);
  if (from > *length || options->verify_length.value_or(0) > *length - from) {
    print("pattern verification range exceeds end of read data\n");
    return std::nullopt;
  }
  if (options->vm_state && !require_sectors(*offset, *length)) return std::nullopt;
  return ReadCommand{.options = *options, .offset = *offset, .length = *length};
}

bool consistent(const WriteOptions& options) {
  if (options.vm_state && options.zeroes) {
    print("-b and -z cannot be specified at the same time\n");
  } else if (options.fua && (options.vm_state || options.compressed)) {
    print("-f and -b or -c cannot be specified at the same time\n");
  } else if (options.no_fallback && !options.zeroes) {
    print("-n requires -z to be specified\n");
  } else if (options.unmap && !options.zeroes) {
    print("-u requires -z to be specified\n");
  } else if (int{options.zeroes} + int{options.pattern.has_value()} +
                 int{options.source != nullptr} >
             1) {
    print("Only one of -z, -P, and -s can be specified at the same time\n");
  } else {
    return true;
  }
  return false;
}

struct WriteCommand {
  WriteOptions options;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

std::optional<WriteCommand> parse_write(const Arguments& arguments) {
  const std::optional<WriteOptions> options = read_write_options(arguments, "bcCfnpP:qs:uz");
  if (!options) return std::nullopt;
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() != 2) {
    usage_error(arguments);
    return std::nullopt;
  }
  if (!consistent(*options)) return std::nullopt;
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) return std::nullopt;
  const std::optional<std::uint64_t> length = read_number(rest[1]);
  if (!length) return std::nullopt;
  // Zeroes without fallback need no buffer, and so have no limit.
  if (*length > kMaxRequest && !options->no_fallback) {
    print("length cannot exceed {} without -n, given {}\n", kMaxRequest, rest[1]);
    return std::nullopt;
  }
  if ((options->vm_state || options->compressed) && !require_sectors(*offset, *length)) {
    return std::nullopt;
  }
  return WriteCommand{.options = *options, .offset = *offset, .length = *length};
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
  const std::optional<ReadCommand> parsed = parse_read(arguments);
  if (!parsed) co_return false;
  const auto& [options, offset, length] = *parsed;
  RequestBuffer buffer;
  const auto reading = [&] {
    buffer = RequestBuffer(length, session.misaligned());
    return options.vm_state ? read_vm_state(session.node(), offset, buffer.iov())
                            : session.node().read(offset, buffer.iov());
  };
  Result<void> allowed;
  if (!options.vm_state) allowed = session.check_range(offset, length);
  const Outcome outcome = co_await timed(std::move(allowed), reading);
  session.print_reports();
  co_return report_read("read", outcome, buffer.span(), offset, options);
}

Task<bool> run_write(Session& session, Arguments arguments) {
  const std::optional<WriteCommand> parsed = parse_write(arguments);
  if (!parsed) co_return false;
  const auto& [options, offset, length] = *parsed;
  RequestBuffer buffer;
  if (!options.zeroes) {
    buffer = RequestBuffer(length, session.misaligned());
    if (options.source == nullptr) {
      buffer.fill(options.fill());
    } else if (!fill_from_file(buffer.span(), options.source)) {
      co_return false;
    }
  }
  const auto writing = [&] {
    BlockNode& node = session.node();
    if (options.vm_state) return write_vm_state(node, offset, buffer.iov());
    const ZeroFlags zero_flags{
        .fua = options.fua, .may_unmap = options.unmap, .no_fallback = options.no_fallback};
    const WriteFlags flags{.fua = options.fua, .compressed = options.compressed};
    return options.zeroes ? node.write_zeroes(offset, length, zero_flags)
                          : node.write(offset, buffer.iov(), flags);
  };
  Result<void> allowed;
  if (!options.vm_state) allowed = session.check_range(offset, length);
  const Outcome outcome = co_await timed(std::move(allowed), writing);
  session.print_reports();
  co_return report_change("write", "wrote", outcome, offset, length, options.style);
}

}  // namespace platter::io_tool

#include "tools/io/request.h"

#include <unistd.h>

#include "tools/io/session.h"

namespace platter::io_tool {

std::optional<ReadOptions> read_read_options(const Arguments& arguments, const char* letters) {
  ReadOptions options;
  arguments.rewind();
  for (int letter; (letter = arguments.next(letters)) != -1;) {
    switch (letter) {
      case 'b':
        options.vm_state = true;
        break;
      case 'C':
        options.style.machine = true;
        break;
      case 'i':
        options.inject = true;
        return options;
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
  return options;
}

std::optional<WriteOptions> read_write_options(const Arguments& arguments, const char* letters) {
  WriteOptions options;
  arguments.rewind();
  for (int letter; (letter = arguments.next(letters)) != -1;) {
    switch (letter) {
      case 'b':
        options.vm_state = true;
        break;
      case 'c':
        options.compressed = true;
        break;
      case 'C':
        options.style.machine = true;
        break;
      case 'f':
        options.fua = true;
        break;
      case 'i':
        options.inject = true;
        return options;
      case 'n':
        options.no_fallback = true;
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
        options.source = optarg;
        break;
      case 'u':
        options.unmap = true;
        break;
      case 'z':
        options.zeroes = true;
        break;
      default:
        usage_error(arguments);
        return std::nullopt;
    }
  }
  return options;
}

std::optional<VectorRequest> read_vector_request(const Arguments& arguments, bool misaligned) {
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() < 2) {
    usage_error(arguments);
    return std::nullopt;
  }
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) return std::nullopt;
  std::optional<RequestVector> vector = RequestVector::read(rest.subspan(1), misaligned);
  if (!vector) return std::nullopt;
  return VectorRequest{.offset = *offset, .vector = std::move(*vector)};
}

bool report_read(std::string_view command, const Outcome& outcome, std::span<const std::byte> bytes,
                 std::uint64_t offset, const ReadOptions& options) {
  if (!outcome.result) {
    print_failure(command, outcome.result.error());
    return false;
  }
  bool matches = true;
  if (options.pattern) {
    const std::uint64_t from = options.verify_offset.value_or(0);
    const std::uint64_t length = options.verify_length.value_or(bytes.size() - from);
    matches = verify_pattern(bytes.subspan(from, length), offset + from, *options.pattern);
  }
  if (options.dump && !options.style.quiet) dump_bytes(bytes, offset);
  print_statistics("read", outcome.elapsed, offset, bytes.size(), options.style);
  return matches;
}

bool report_change(std::string_view command, std::string_view done, const Outcome& outcome,
                   std::uint64_t offset, std::uint64_t length, ReportStyle style) {
  if (outcome.result) {
    print_statistics(done, outcome.elapsed, offset, length, style);
  } else {
    print_failure(command, outcome.result.error());
  }
  return outcome.result.has_value();
}

}  // namespace platter::io_tool

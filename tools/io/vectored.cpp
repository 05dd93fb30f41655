// The commands readv and writev: one request into or from several buffers.
#include "tools/io/session.h"

namespace platter::io_tool {

Task<bool> run_readv(Session& session, Arguments arguments) {
  ReportStyle style;
  bool dump = false;
  std::optional<std::byte> pattern;
  arguments.rewind();
  for (int letter; (letter = arguments.next("CP:qv")) != -1;) {
    switch (letter) {
      case 'C':
        style.machine = true;
        break;
      case 'P':
        if (!(pattern = read_pattern(optarg))) co_return false;
        break;
      case 'q':
        style.quiet = true;
        break;
      case 'v':
        dump = true;
        break;
      default:
        co_return usage_error(arguments);
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() < 2) co_return usage_error(arguments);
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) co_return false;
  const std::optional<RequestVector> vector =
      RequestVector::read(rest.subspan(1), session.misaligned());
  if (!vector) co_return false;

  const Clock::time_point start = Clock::now();
  Result<void> result = session.check_range(*offset, vector->size());
  if (result) {
    auto reading = session.node().read(*offset, vector->iov());
    result = co_await reading;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.print_reports();
  if (!result) {
    print_failure("readv", result.error());
    co_return false;
  }
  const bool matches = !pattern || verify_pattern(vector->buffer().span(), *offset, *pattern);
  if (!style.quiet) {
    if (dump) dump_bytes(vector->buffer().span(), *offset);
    print_statistics("read", elapsed, *offset, vector->size(), style);
  }
  co_return matches;
}

Task<bool> run_writev(Session& session, Arguments arguments) {
  ReportStyle style;
  WriteFlags flags;
  std::byte pattern = kDefaultPattern;
  arguments.rewind();
  for (int letter; (letter = arguments.next("CfqP:")) != -1;) {
    switch (letter) {
      case 'C':
        style.machine = true;
        break;
      case 'f':
        flags.fua = true;
        break;
      case 'q':
        style.quiet = true;
        break;
      case 'P': {
        const std::optional<std::byte> given = read_pattern(optarg);
        if (!given) co_return false;
        pattern = *given;
        break;
      }
      default:
        co_return usage_error(arguments);
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() < 2) co_return usage_error(arguments);
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) co_return false;
  const std::optional<RequestVector> vector =
      RequestVector::read(rest.subspan(1), session.misaligned());
  if (!vector) co_return false;
  vector->buffer().fill(pattern);

  const Clock::time_point start = Clock::now();
  Result<void> result = session.check_range(*offset, vector->size());
  if (result) {
    auto writing = session.node().write(*offset, vector->iov(), flags);
    result = co_await writing;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.print_reports();
  if (!result) {
    print_failure("writev", result.error());
    co_return false;
  }
  print_statistics("wrote", elapsed, *offset, vector->size(), style);
  co_return true;
}

}  // namespace platter::io_tool

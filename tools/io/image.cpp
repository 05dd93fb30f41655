// The commands discard, flush, truncate and length.
#include "tools/io/session.h"

namespace platter::io_tool {

Task<bool> run_discard(Session& session, Arguments arguments) {
  ReportStyle style;
  arguments.rewind();
  for (int letter; (letter = arguments.next("Cq")) != -1;) {
    switch (letter) {
      case 'C':
        style.machine = true;
        break;
      case 'q':
        style.quiet = true;
        break;
      default:
        co_return usage_error(arguments);
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() != 2) co_return usage_error(arguments);
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) co_return false;
  const std::optional<std::uint64_t> length = read_length(rest[1]);
  if (!length) co_return false;

  const Clock::time_point start = Clock::now();
  Result<void> result = session.check_range(*offset, *length);
  if (result) {
    auto discarding = session.node().discard(*offset, *length);
    result = co_await discarding;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.print_reports();
  if (!result) {
    print_failure("discard", result.error());
    co_return false;
  }
  print_statistics("discard", elapsed, *offset, *length, style);
  co_return true;
}

Task<bool> run_flush(Session& session, Arguments) {
  auto flushed = co_await session.node().flush();
  session.print_reports();
  // As in qemu-io, the exit status says whether it failed.
  co_return flushed.has_value();
}

Task<bool> run_truncate(Session& session, Arguments arguments) {
  ResizeRequest request;
  request.exact = false;
  arguments.rewind();
  for (int letter; (letter = arguments.next("m:")) != -1;) {
    if (letter != 'm') co_return usage_error(arguments);
    const Result<Preallocation> mode = parse_preallocation(optarg);
    if (!mode) {
      session.complain(fmt::format("Invalid preallocation mode '{}'", optarg));
      co_return false;
    }
    request.preallocation = *mode;
  }
  const std::span<char* const> rest = arguments.rest();
  // What follows the size is not looked at.
  if (rest.empty()) co_return usage_error(arguments);
  const std::optional<std::uint64_t> size = read_number(rest[0]);
  if (!size) co_return false;
  request.size = *size;
  auto resized = co_await session.node().resize(request);
  session.print_reports();
  if (!resized) session.complain(resized.error());
  co_return resized.has_value();
}

Task<bool> run_length(Session& session, Arguments) {
  print("{}\n", size_text(static_cast<double>(session.node().size())));
  co_return true;
}

}  // namespace platter::io_tool

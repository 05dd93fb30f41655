// The commands discard, flush, truncate and length.
#include "tools/io/request.h"
#include "tools/io/session.h"

namespace platter::io_tool {

Task<bool> run_discard(Session& session, Arguments arguments) {
  const std::optional<ReadOptions> options = read_read_options(arguments, "Cq");
  if (!options) co_return false;
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() != 2) co_return usage_error(arguments);
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) co_return false;
  const std::optional<std::uint64_t> length = read_length(rest[1]);
  if (!length) co_return false;

  const auto discarding = [&] { return session.node().discard(*offset, *length); };
  const Outcome outcome = co_await timed(session.check_range(*offset, *length), discarding);
  session.print_reports();
  co_return report_change("discard", "discard", outcome, *offset, *length, options->style);
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

// The commands aio_read, aio_write and aio_flush: requests that run beside the commands after them.
//
// A request that was started counts as a success, whatever becomes of it; what becomes of it is
// printed at the next command that does I/O, at aio_flush, or while the prompt waits.
#include "tools/io/session.h"

namespace platter::io_tool {
namespace {

struct ReadRequest {
  std::uint64_t offset = 0;
  RequestVector vector;
  ReportStyle style;
  bool dump = false;
  std::optional<std::byte> pattern;
};

void report_read(const ReadRequest& request, const Result<void>& result, Clock::duration elapsed) {
  if (!result) {
    print_failure("readv", result.error());
    return;
  }
  const std::span<std::byte> bytes = request.vector.buffer().span();
  if (request.pattern) verify_pattern(bytes, request.offset, *request.pattern);
  if (request.style.quiet) return;
  if (request.dump) dump_bytes(bytes, request.offset);
  print_statistics("read", elapsed, request.offset, bytes.size(), request.style);
}

Task<void> read_beside(Session& session, std::shared_ptr<const ReadRequest> request) {
  const Clock::time_point start = Clock::now();
  Result<void> result = session.check_range(request->offset, request->vector.size());
  if (result) {
    auto reading = session.node().read(request->offset, request->vector.iov());
    result = co_await reading;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.post([request, result, elapsed] { report_read(*request, result, elapsed); });
}

struct WriteRequest {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  RequestVector vector;  // empty for zeroes
  ReportStyle style;
  bool zeroes = false;
  bool fua = false;
  bool unmap = false;
};

Task<void> write_beside(Session& session, std::shared_ptr<const WriteRequest> request) {
  const Clock::time_point start = Clock::now();
  Result<void> result = session.check_range(request->offset, request->length);
  if (result) {
    const ZeroFlags zero_flags{.fua = request->fua, .may_unmap = request->unmap};
    const WriteFlags write_flags{.fua = request->fua};
    auto writing = request->zeroes
                       ? session.node().write_zeroes(request->offset, request->length, zero_flags)
                       : session.node().write(request->offset, request->vector.iov(), write_flags);
    result = co_await writing;
  }
  const Clock::duration elapsed = Clock::now() - start;
  session.post([request, result, elapsed] {
    if (!result) {
      print_failure("aio_write", result.error());
    } else {
      print_statistics("wrote", elapsed, request->offset, request->length, request->style);
    }
  });
}

}  // namespace

Task<bool> run_aio_read(Session& session, Arguments arguments) {
  ReadRequest request;
  arguments.rewind();
  for (int letter; (letter = arguments.next("CP:iqv")) != -1;) {
    switch (letter) {
      case 'C':
        request.style.machine = true;
        break;
      case 'P':
        if (!(request.pattern = read_pattern(optarg))) co_return false;
        break;
      case 'i':
        print("injecting invalid read request\n");
        co_return true;
      case 'q':
        request.style.quiet = true;
        break;
      case 'v':
        request.dump = true;
        break;
      default:
        co_return usage_error(arguments);
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() < 2) co_return usage_error(arguments);
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) co_return false;
  std::optional<RequestVector> vector = RequestVector::read(rest.subspan(1), session.misaligned());
  if (!vector) co_return false;
  request.offset = *offset;
  request.vector = std::move(*vector);
  session.spawn(read_beside(session, std::make_shared<const ReadRequest>(std::move(request))));
  co_return true;
}

Task<bool> run_aio_write(Session& session, Arguments arguments) {
  WriteRequest request;
  std::byte pattern = kDefaultPattern;
  arguments.rewind();
  for (int letter; (letter = arguments.next("CfiP:quz")) != -1;) {
    switch (letter) {
      case 'C':
        request.style.machine = true;
        break;
      case 'f':
        request.fua = true;
        break;
      case 'i':
        print("injecting invalid write request\n");
        co_return true;
      case 'P': {
        const std::optional<std::byte> given = read_pattern(optarg);
        if (!given) co_return false;
        pattern = *given;
        break;
      }
      case 'q':
        request.style.quiet = true;
        break;
      case 'u':
        request.unmap = true;
        break;
      case 'z':
        request.zeroes = true;
        break;
      default:
        co_return usage_error(arguments);
    }
  }
  const std::span<char* const> rest = arguments.rest();
  if (rest.size() < 2) co_return usage_error(arguments);
  if (request.zeroes && rest.size() != 2) {
    print("-z supports only a single length parameter\n");
    co_return false;
  }
  if (request.unmap && !request.zeroes) {
    print("-u requires -z to be specified\n");
    co_return false;
  }
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) co_return false;
  request.offset = *offset;
  if (request.zeroes) {
    const std::optional<std::uint64_t> length = read_number(rest[1]);
    if (!length) co_return false;
    request.length = *length;
  } else {
    std::optional<RequestVector> vector =
        RequestVector::read(rest.subspan(1), session.misaligned());
    if (!vector) co_return false;
    vector->buffer().fill(pattern);
    request.length = vector->size();
    request.vector = std::move(*vector);
  }
  session.spawn(write_beside(session, std::make_shared<const WriteRequest>(std::move(request))));
  co_return true;
}

Task<bool> run_aio_flush(Session& session, Arguments) {
  auto finished = session.wait_for_requests();
  co_await finished;
  session.print_reports();
  co_return true;
}

}  // namespace platter::io_tool

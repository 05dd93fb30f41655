// The commands aio_read, aio_write and aio_flush: requests that run beside the commands after them.
//
// A request that was started counts as a success, whatever becomes of it; what becomes of it is
// printed at the next command that does I/O, at aio_flush, or while the prompt waits.
#include "tools/io/request.h"
#include "tools/io/session.h"

namespace platter::io_tool {
namespace {

struct ReadRequest {
  ReadOptions options;
  VectorRequest where;
};

Task<void> read_beside(Session& session, std::shared_ptr<const ReadRequest> request) {
  const auto& [offset, vector] = request->where;
  const auto reading = [&] { return session.node().read(offset, vector.iov()); };
  const Outcome outcome = co_await timed(session.check_range(offset, vector.size()), reading);
  session.post([request, outcome] {
    const auto& [at, read] = request->where;
    report_read("readv", outcome, read.buffer().span(), at, request->options);
  });
}

struct WriteRequest {
  WriteOptions options;
  VectorRequest where;       // no vector for zeroes
  std::uint64_t length = 0;  // bytes
};

Task<void> write_beside(Session& session, std::shared_ptr<const WriteRequest> request) {
  const WriteOptions& options = request->options;
  const auto& [offset, vector] = request->where;
  const auto writing = [&] {
    const ZeroFlags zero_flags{.fua = options.fua, .may_unmap = options.unmap};
    const WriteFlags write_flags{.fua = options.fua};
    return options.zeroes ? session.node().write_zeroes(offset, request->length, zero_flags)
                          : session.node().write(offset, vector.iov(), write_flags);
  };
  const Outcome outcome = co_await timed(session.check_range(offset, request->length), writing);
  session.post([request, outcome] {
    report_change("aio_write", "wrote", outcome, request->where.offset, request->length,
                  request->options.style);
  });
}

// Where zeroes go: "off len", without a buffer.
std::optional<WriteRequest> zero_request(const Arguments& arguments) {
  const std::span<char* const> rest = arguments.rest();
  const std::optional<std::uint64_t> offset = read_number(rest[0]);
  if (!offset) return std::nullopt;
  const std::optional<std::uint64_t> length = read_number(rest[1]);
  if (!length) return std::nullopt;
  WriteRequest request;
  request.where.offset = *offset;
  request.length = *length;
  return request;
}

std::optional<WriteRequest> data_request(const Arguments& arguments, bool misaligned,
                                         std::byte fill) {
  std::optional<VectorRequest> where = read_vector_request(arguments, misaligned);
  if (!where) return std::nullopt;
  where->vector.buffer().fill(fill);
  WriteRequest request;
  request.length = where->vector.size();
  request.where = std::move(*where);
  return request;
}

}  // namespace

Task<bool> run_aio_read(Session& session, Arguments arguments) {
  const std::optional<ReadOptions> options = read_read_options(arguments, "CP:iqv");
  if (!options) co_return false;
  if (options->inject) {
    print("injecting invalid read request\n");
    co_return true;
  }
  std::optional<VectorRequest> where = read_vector_request(arguments, session.misaligned());
  if (!where) co_return false;
  ReadRequest request{.options = *options, .where = std::move(*where)};
  session.spawn(read_beside(session, std::make_shared<const ReadRequest>(std::move(request))));
  co_return true;
}

Task<bool> run_aio_write(Session& session, Arguments arguments) {
  const std::optional<WriteOptions> options = read_write_options(arguments, "CfiP:quz");
  if (!options) co_return false;
  if (options->inject) {
    print("injecting invalid write request\n");
    co_return true;
  }
  const std::size_t words = arguments.rest().size();
  if (words < 2) co_return usage_error(arguments);
  if (options->zeroes && words != 2) {
    print("-z supports only a single length parameter\n");
    co_return false;
  }
  if (options->unmap && !options->zeroes) {
    print("-u requires -z to be specified\n");
    co_return false;
  }
  std::optional<WriteRequest> request =
      options->zeroes ? zero_request(arguments)
                      : data_request(arguments, session.misaligned(), options->fill());
  if (!request) co_return false;
  request->options = *options;
  session.spawn(write_beside(session, std::make_shared<const WriteRequest>(std::move(*request))));
  co_return true;
}

Task<bool> run_aio_flush(Session& session, Arguments) {
  auto finished = session.wait_for_requests();
  co_await finished;
  session.print_reports();
  co_return true;
}

}  // namespace platter::io_tool

// The commands readv and writev: one request into or from several buffers.
#include "tools/io/request.h"
#include "tools/io/session.h"

namespace platter::io_tool {

Task<bool> run_readv(Session& session, Arguments arguments) {
  const std::optional<ReadOptions> options = read_read_options(arguments, "CP:qv");
  if (!options) co_return false;
  const std::optional<VectorRequest> request = read_vector_request(arguments, session.misaligned());
  if (!request) co_return false;
  const auto& [offset, vector] = *request;
  const auto reading = [&] { return session.node().read(offset, vector.iov()); };
  const Outcome outcome = co_await timed(session.check_range(offset, vector.size()), reading);
  session.print_reports();
  co_return report_read("readv", outcome, vector.buffer().span(), offset, *options);
}

Task<bool> run_writev(Session& session, Arguments arguments) {
  const std::optional<WriteOptions> options = read_write_options(arguments, "CfqP:");
  if (!options) co_return false;
  const std::optional<VectorRequest> request = read_vector_request(arguments, session.misaligned());
  if (!request) co_return false;
  const auto& [offset, vector] = *request;
  vector.buffer().fill(options->fill());
  const WriteFlags flags{.fua = options->fua};
  const auto writing = [&] { return session.node().write(offset, vector.iov(), flags); };
  const Outcome outcome = co_await timed(session.check_range(offset, vector.size()), writing);
  session.print_reports();
  co_return report_change("writev", "wrote", outcome, offset, vector.size(), options->style);
}

}  // namespace platter::io_tool

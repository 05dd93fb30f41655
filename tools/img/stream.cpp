// stream: makes an image independent of the images below it, or of some of them.
#include "block/jobs/stream.h"

#include <cerrno>

#include "tools/img/cancel.h"
#include "tools/img/chain_verb.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

Task<Result<void>> stream_node(BlockNode& top, const ChainOptions& arguments) {
  Progress progress(arguments.common.progress && !arguments.common.quiet);
  progress.start();
  StreamOptions options;
  if (const std::string base = arguments.backing.value_or(""); !base.empty()) {
    options.base = find_in_chain(top, base);
    if (options.base == nullptr) {
      co_return fail_naming(arguments.filename, ENOENT,
                            "Did not find '{}' in the backing chain of '{}'", base,
                            arguments.filename);
    }
  }
  const std::uint64_t size = top.size();
  options.bytes_per_second = arguments.rate;
  options.progress = [&](std::uint64_t done) { progress.update(done, size); };
  options.cancelled = Cancellation::flag();
  const Result<void> streamed = co_await stream(top, options);
  if (Cancellation::ended(streamed)) {
    co_return fail_naming(arguments.filename, ECANCELED,
                          "stream cancelled: '{}' reads as before and keeps its backing file",
                          arguments.filename);
  }
  if (streamed) progress.finish();
  co_return streamed;
}

}  // namespace

int run_stream(int argc, char** argv) {
  static constexpr Flag kFlags[] = {
      {'h', "help"},        {'f', nullptr, true},      {'t', nullptr, true},
      {'b', nullptr, true}, {'r', nullptr, true},      {'p', nullptr},
      {'q', nullptr},       {kObject, "object", true}, {kImageOpts, "image-opts"}};
  const ChainVerb verb{.flags = kFlags, .work = stream_node, .done = "Image streamed.\n"};
  return run_chain_verb(argc, argv, verb);
}

}  // namespace platter::img

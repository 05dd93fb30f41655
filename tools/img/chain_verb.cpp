#include "tools/img/chain_verb.h"

#include "tools/img/cancel.h"

namespace platter::img {
namespace {

// Gives the exit status when there is nothing to be done but to leave.
std::optional<int> read_options(int argc, char** argv, const ChainVerb& verb,
                                ChainOptions& options) {
  VerbArguments arguments(argc, argv, verb.flags, options.common);
  while (const std::optional<Option> option = arguments.next()) {
    switch (option->id) {
      case 'b':
        options.backing = option->value;
        break;
      case 'F':
        options.backing_format = option->value;
        break;
      case 'd':
        options.keep = true;
        break;
      case 'u':
        options.unsafe = true;
        break;
      case 'r': {
        const auto rate = parse_bounded_size(option->value, "rate limit", 0, kMostBytes);
        if (!rate) return 1;
        options.rate = *rate;
        break;
      }
      default:
        break;
    }
  }
  if (const auto status = arguments.ended()) return status;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  options.filename = rest[0];
  if (verb.needs_backing && !options.unsafe && !options.backing) {
    return usage_error("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  if (!options.common.agree()) return 1;
  return std::nullopt;
}

Task<int> work_on_chain(const ChainVerb& verb, const ChainOptions& options) {
  OpenSpec spec = options.common.spec(options.filename);
  spec.flags.read_only = false;
  spec.flags.force_share = false;  // -U is for what is only read
  spec.flags.no_backing = options.unsafe;
  spec.flags.discard_unmap = verb.discards;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  Result<void> result = co_await verb.work(**image, options);
  const Result<void> closed = co_await image->detach();
  if (result && !closed) result = closed;
  if (!result) {
    const int failed = report_failure(options.filename, result);
    co_return Cancellation::ended(result) ? Cancellation::status() : failed;
  }
  if (verb.done != nullptr && !options.common.quiet) print(verb.done);
  co_return 0;
}

}  // namespace

int run_chain_verb(int argc, char** argv, const ChainVerb& verb) {
  ChainOptions options;
  if (const auto status = read_options(argc, argv, verb, options)) return *status;
  const Cancellation cancellation;
  return finish_output(run_to_end([&] { return work_on_chain(verb, options); }));
}

}  // namespace platter::img

#include "tools/img/chain_verb.h"

#include "tools/img/cancel.h"
#include "tools/img/commands.h"

namespace platter::img {

std::optional<int> read_chain_options(int argc, char** argv, std::span<const Flag> flags,
                                      ChainOptions& options) {
  Arguments arguments(argc, argv, flags);
  while (const std::optional<Option> option = arguments.next()) {
    if (options.common.take(*option).failed) return 1;
    switch (option->id) {
      case 'h':
        return print_help();
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
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  options.filename = rest[0];
  return std::nullopt;
}

OpenSpec chain_spec(const ChainOptions& options) {
  OpenSpec spec;
  spec.filename = options.filename;
  spec.format = options.common.format;
  spec.image_opts = options.common.image_opts;
  spec.cache = options.common.cache;
  spec.flags.read_only = false;
  return spec;
}

Task<int> end_chain_work(Edge& image, std::string name, Result<void> result) {
  const Result<void> closed = co_await image.detach();
  if (result && !closed) result = closed;
  if (result) co_return 0;
  const int failed = report_failure(name, result);
  co_return Cancellation::ended(result) ? Cancellation::status() : failed;
}

}  // namespace platter::img

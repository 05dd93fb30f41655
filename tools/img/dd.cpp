// dd: copies a part of an image, with dd's own way of naming things.
#include <algorithm>

#include "block/base/checked.h"
#include "block/jobs/copy.h"
#include "block/node/open_plain.h"
#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/new_image.h"

namespace platter::img {
namespace {

constexpr std::uint64_t kLargestBlock = 0x7FFFFFFF;

struct DdArguments {
  CommonOptions common;
  std::string output_format = "raw";
  std::optional<std::string> input;
  std::optional<std::string> output;
  std::uint64_t block_size = 512;
  std::optional<std::uint64_t> count;
  std::uint64_t skip = 0;
};

// The part that is asked for: its offset in the input and its length.
struct Part {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

Part part_of(std::uint64_t size, const DdArguments& arguments) {
  const std::uint64_t blocks = arguments.block_size;
  const std::optional<std::uint64_t> offset = checked_mul(arguments.skip, blocks);
  if (!offset || *offset > size) {
    report("{}: cannot skip to specified offset", *arguments.input);
    return {};
  }
  Part part{.offset = *offset, .length = size - *offset};
  if (arguments.count) {
    const std::optional<std::uint64_t> wanted = checked_mul(*arguments.count, blocks);
    if (wanted) part.length = std::min(part.length, *wanted);
  }
  return part;
}

Task<Result<void>> write_part(BlockNode& input, Part part, BlockNode& output) {
  const CopySource source{.node = &input, .length = part.length, .offset = part.offset};
  CopyOptions options;
  options.target_is_zero = true;
  options.cancelled = Cancellation::flag();
  co_return co_await copy(std::span(&source, 1), output, options);
}

Task<Result<void>> write_into(BlockNode& input, const DdArguments& arguments, NewImage& image) {
  const Part part = part_of(input.size(), arguments);
  Result<void> created = co_await image.create(arguments.output_format, part.length, Options());
  if (!created) {
    co_return forward_error(created, "{}: error while creating output image", *arguments.output);
  }
  OpenSpec spec;
  image.locate(spec);
  spec.format = arguments.output_format;
  spec.flags.read_only = false;
  Result<Edge> output = co_await open_image(std::move(spec));
  PLATTER_CO_TRY(output);
  Result<void> result = co_await write_part(input, part, **output);
  const Result<void> closed = co_await output->detach();
  if (result && !closed) result = closed;
  co_return result;
}

Task<Result<void>> write_out(BlockNode& input, const DdArguments& arguments) {
  NewImage image(*arguments.output);
  Result<void> written = co_await write_into(input, arguments, image);
  co_return image.finish(std::move(written), "dd");
}

Task<int> dd(DdArguments arguments) {
  OpenSpec spec;
  spec.filename = *arguments.input;
  spec.format = arguments.common.format;
  spec.image_opts = arguments.common.image_opts;
  spec.flags.force_share = arguments.common.force_share;
  Result<Edge> input = co_await open_image(std::move(spec));
  if (!input) co_return report_failure(input);
  Result<void> result;
  if (!(*input)->flags().force_share && stands_on(**input, *arguments.output)) {
    // What is read would change under the reader.
    result = co_await input->set_permissions(Permissions::reader());
  }
  if (!result) {
    result = std::unexpected(not_opened(*arguments.input, result.error()));
  } else if (find_driver(arguments.output_format) == nullptr) {
    result =
        fail(ENOENT, "{}: Unknown file format '{}'", *arguments.output, arguments.output_format);
  } else {
    const Result<CreateOptions> known = create_options(arguments.output_format, *arguments.output);
    if (known) {
      result = co_await write_out(**input, arguments);
    } else {
      result = forward_error(known, "{}", *arguments.output);
    }
  }
  const Result<void> closed = co_await input->detach();
  if (result && !closed) result = closed;
  if (result) co_return 0;
  report_error(result.error());
  co_return Cancellation::ended(result) ? Cancellation::status() : 1;
}

// "bs=4k". False: it will not do, which has been reported.
bool take_operand(DdArguments& dd, const std::string& word) {
  const std::size_t equals = word.find('=');
  const std::string name = word.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
  const auto number = [&](const char* what, std::uint64_t least, std::uint64_t most) {
    return parse_bounded_size(value, what, least, most);
  };
  if (equals != std::string::npos && name == "if") {
    dd.input = value;
  } else if (equals != std::string::npos && name == "of") {
    dd.output = value;
  } else if (equals != std::string::npos && name == "bs") {
    const auto size = number("bs", 1, kLargestBlock);
    dd.block_size = size.value_or(0);
    return size.has_value();
  } else if (equals != std::string::npos && name == "count") {
    dd.count = number("count", 0, kMostBytes);
    return dd.count.has_value();
  } else if (equals != std::string::npos && name == "skip") {
    const auto blocks = number("skip", 0, kMostBytes);
    dd.skip = blocks.value_or(0);
    return blocks.has_value();
  } else {
    report("unrecognized operand {}", name);
    return false;
  }
  return true;
}

}  // namespace

int run_dd(int argc, char** argv) {
  static constexpr Flag kFlags[] = {
      {'h', "help"},        {'f', nullptr, true},      {'O', nullptr, true},
      {'U', "force-share"}, {kObject, "object", true}, {kImageOpts, "image-opts"}};
  DdArguments dd_arguments;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 'h') return print_help();
    if (dd_arguments.common.take(*option).failed) return 1;
    if (option->id == 'O') dd_arguments.output_format = option->value;
  }
  if (arguments.failed()) return 1;
  for (const std::string& word : arguments.rest()) {
    if (!take_operand(dd_arguments, word)) return 1;
  }
  if (!dd_arguments.input || !dd_arguments.output) {
    report("Must specify both input and output files");
    return 1;
  }
  if (!dd_arguments.common.agree()) return 1;
  const Cancellation cancellation;
  return finish_output(run_to_end([&] { return dd(dd_arguments); }));
}

}  // namespace platter::img

// amend: changes an image's own properties.
#include <algorithm>
#include <cerrno>

#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

struct AmendArguments {
  CommonOptions common;
  std::string filename;
  std::optional<std::string> options;
  bool force = false;
};

Result<Options> parse_amend_options(const DriverType& format, std::string_view text) {
  CreateOptions known;
  known.format = &format;
  known.all.assign(format.amend_options.begin(), format.amend_options.end());
  auto parsed = parse_create_options(known, text);
  if (parsed) return parsed;
  // What create would have taken is told apart from what nobody takes.
  known.all.insert(known.all.end(), format.create_options.begin(), format.create_options.end());
  if (!parse_create_options(known, text)) return parsed;
  return std::unexpected(
      parsed.error().with_hint("This option is only supported for image creation"));
}

Task<Result<void>> amend_node(BlockNode& node, Options options, bool force, bool show_progress) {
  AmendAbility* const ability = node.driver().amender();
  const auto given_size = options.take_size("size");
  PLATTER_CO_TRY(given_size);
  // As in QEMU, 0 is no size.
  const std::uint64_t size = given_size->value_or(0);
  const auto resize = [&node, size] {
    ResizeRequest request{.size = size};
    return node.resize(request);
  };
  // Version 2 cannot do all that version 3 can: it comes last, or first.
  const std::string* const compat = options.peek("compat");
  const bool downgrade = compat != nullptr && (*compat == "0.10" || *compat == "v2");
  if (size != 0 && downgrade) {
    auto resized = co_await resize();
    PLATTER_CO_TRY(resized);
  }
  Progress progress(show_progress);
  progress.start();
  const std::function<void(std::uint64_t, std::uint64_t)> report_progress =
      [&progress](std::uint64_t done, std::uint64_t total) { progress.update(done, total); };
  auto amended =
      co_await ability->amend(std::move(options), force, report_progress, Cancellation::flag());
  PLATTER_CO_TRY(amended);
  if (size != 0 && !downgrade) {
    auto resized = co_await resize();
    PLATTER_CO_TRY(resized);
  }
  progress.finish();
  co_return {};
}

int print_amend_options(const std::string& format) {
  const DriverType* const driver = find_driver(format);
  if (driver == nullptr) {
    report("Unknown file format '{}'", format);
    return 1;
  }
  if (driver->amend_options.empty()) {
    report("Format driver '{}' does not support option amendment", format);
    return 1;
  }
  print(fmt::format("Amend options for '{}':\n", format));
  for (const CreateOption& option : driver->amend_options) print(option_line(option));
  return 0;
}

Task<int> amend(AmendArguments arguments) {
  OpenSpec spec = arguments.common.spec(arguments.filename);
  spec.flags.read_only = false;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  BlockNode& node = **image;
  Result<void> amended;
  int status = 0;
  if (asks_for_help(*arguments.options)) {
    status = print_amend_options(std::string(node.driver_name()));
  } else if (node.type().amend_options.empty()) {
    amended =
        fail(ENOTSUP, "Format driver '{}' does not support option amendment", node.type().name);
  } else {
    auto options = parse_amend_options(node.type(), *arguments.options);
    if (options) {
      auto amending = amend_node(node, std::move(*options), arguments.force,
                                 arguments.common.progress && !arguments.common.quiet);
      amended = co_await amending;
    } else {
      amended = forward_error(options);
    }
  }
  const Result<void> closed = co_await image->detach();
  if (Cancellation::ended(amended)) {
    report("amend cancelled: '{}' holds what it did, and the properties that were not changed yet",
           arguments.filename);
    co_return Cancellation::status();
  }
  if (!amended) co_return report_failure(arguments.filename, amended);
  if (!closed) co_return report_failure(arguments.filename, closed);
  co_return status;
}

}  // namespace

int run_amend(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'o', nullptr, true},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {'t', nullptr, true},
                                    {kForce, "force"},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  AmendArguments amend_arguments;
  CommonOptions& common = amend_arguments.common;
  VerbArguments arguments(argc, argv, kFlags, common);
  while (const std::optional<Option> option = arguments.next()) {
    amend_arguments.force = amend_arguments.force || option->id == kForce;
    if (option->id == 'o' && !add_create_options(amend_arguments.options, option->value)) return 1;
  }
  if (const auto status = arguments.ended()) return *status;
  if (!amend_arguments.options) return usage_error("Must specify options (-o)");
  if (common.format && asks_for_help(*amend_arguments.options)) {
    return finish_output(print_amend_options(*common.format));
  }
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) {
    report("Expecting one image file name");
    return 1;
  }
  if (!common.agree()) return 1;
  amend_arguments.filename = rest[0];
  const Cancellation cancellation;
  return finish_output(run_to_end([&] { return amend(amend_arguments); }));
}

}  // namespace platter::img

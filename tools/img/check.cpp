// check: finds, and with -r repairs, what is inconsistent in an image's metadata.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <iterator>

#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/json.h"

namespace platter::img {
namespace {

// Exit statuses that only this sub-command has.
constexpr int kCheckFailed = 1;
constexpr int kCorruptions = 2;
constexpr int kLeaks = 3;
constexpr int kUnsupported = 63;

struct CheckArguments {
  CommonOptions common;
  std::string filename;
  bool fix_leaks = false;
  bool fix_errors = false;
};

std::string to_text(const CheckResult& result) {
  std::string out;
  auto to = std::back_inserter(out);
  if (result.corruptions == 0 && result.leaks == 0 && result.check_errors == 0) {
    out += "No errors were found on the image.\n";
  }
  if (result.corruptions != 0) {
    fmt::format_to(to,
                   "\n{} errors were found on the image.\n"
                   "Data may be corrupted, or further writes to the image may corrupt it.\n",
                   result.corruptions);
  }
  if (result.leaks != 0) {
    fmt::format_to(to,
                   "\n{} leaked clusters were found on the image.\n"
                   "This means waste of disk space, but no harm to data.\n",
                   result.leaks);
  }
  if (result.check_errors != 0) {
    fmt::format_to(to, "\n{} internal errors have occurred during the check.\n",
                   result.check_errors);
  }
  if (result.total_clusters != 0 && result.allocated_clusters != 0) {
    const double allocated = static_cast<double>(result.allocated_clusters);
    fmt::format_to(to,
                   "{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% compressed clusters\n",
                   result.allocated_clusters, result.total_clusters,
                   allocated * 100.0 / static_cast<double>(result.total_clusters),
                   static_cast<double>(result.fragmented_clusters) * 100.0 / allocated,
                   static_cast<double>(result.compressed_clusters) * 100.0 / allocated);
  }
  if (result.image_end_offset != 0) {
    fmt::format_to(to, "Image end offset: {}\n", result.image_end_offset);
  }
  return out;
}

Json to_json(const CheckResult& result, const std::string& filename, std::string_view format) {
  Json object;
  object.set("filename", filename);
  object.set("format", format);
  object.set("check-errors", result.check_errors);
  const std::pair<const char*, std::uint64_t> optional[] = {
      {"image-end-offset", result.image_end_offset},
      {"corruptions", result.corruptions},
      {"leaks", result.leaks},
      {"corruptions-fixed", result.corruptions_fixed},
      {"leaks-fixed", result.leaks_fixed},
      {"total-clusters", result.total_clusters},
      {"allocated-clusters", result.allocated_clusters},
      {"fragmented-clusters", result.fragmented_clusters},
      {"compressed-clusters", result.compressed_clusters}};
  for (const auto& [name, value] : optional) {
    if (value != 0) object.set(name, value);
  }
  return object;
}

void show_finding(std::string_view line) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
}

Result<void> as_void(const Result<CheckResult>& result) {
  if (!result) return forward_error(result);
  return {};
}

Task<int> check_node(BlockNode& node, const CheckArguments& arguments) {
  CheckAbility* checker = node.driver().checker();
  if (checker == nullptr) {
    report_about(arguments.filename, "This image format does not support checks");
    co_return kUnsupported;
  }
  CheckRequest request;
  request.fix_leaks = arguments.fix_leaks;
  request.fix_errors = arguments.fix_errors;
  request.report = show_finding;
  const bool fixing = arguments.fix_leaks || arguments.fix_errors;
  if (fixing) request.cancelled = Cancellation::flag();
  Result<CheckResult> result = co_await checker->check(request);
  if (fixing && Cancellation::ended(as_void(result))) {
    report("check cancelled: '{}' was not repaired", arguments.filename);
    co_return Cancellation::status();
  }
  const bool human = arguments.common.output == OutputFormat::kHuman;
  if (result && (result->leaks_fixed != 0 || result->corruptions_fixed != 0)) {
    const std::uint64_t leaks_fixed = result->leaks_fixed;
    const std::uint64_t corruptions_fixed = result->corruptions_fixed;
    if (human && !arguments.common.quiet) {
      print(
          fmt::format("The following inconsistencies were found and repaired:\n\n"
                      "    {} leaked clusters\n    {} corruptions\n\n"
                      "Double checking the fixed image now...\n",
                      leaks_fixed, corruptions_fixed));
    }
    CheckRequest again;
    again.report = show_finding;
    again.cancelled = Cancellation::flag();
    result = co_await checker->check(again);
    if (Cancellation::ended(as_void(result))) {
      report("check cancelled: '{}' has been repaired, and not been checked again",
             arguments.filename);
      co_return Cancellation::status();
    }
    if (result) {
      result->leaks_fixed = leaks_fixed;
      result->corruptions_fixed = corruptions_fixed;
    }
  }
  if (!result) {
    report_about(arguments.filename, "Check failed: {}", result.error().message());
    co_return kCheckFailed;
  }
  if (!arguments.common.quiet) {
    std::string name = node.driver().exact_filename();
    if (name.empty()) name = node.filename();
    print(human ? to_text(*result) : to_json(*result, name, node.driver_name()).pretty() + "\n");
  }
  if (result->check_errors != 0) {
    report_about(arguments.filename, "Check failed");
    co_return kCheckFailed;
  }
  co_return result->corruptions != 0 ? kCorruptions : result->leaks != 0 ? kLeaks : 0;
}

Task<int> check(CheckArguments arguments) {
  OpenSpec spec = arguments.common.spec(arguments.filename);
  spec.cache = arguments.common.source_cache;
  spec.flags.read_only = !arguments.fix_leaks;
  spec.flags.no_backing = true;
  spec.flags.check = true;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  const int status = co_await check_node(**image, arguments);
  co_return co_await close_image(*image, arguments.filename, status);
}

}  // namespace

int run_check(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', "format", true},
                                    {'r', "repair", true},
                                    {'q', nullptr},
                                    {'T', nullptr, true},
                                    {'U', "force-share"},
                                    {kOutput, "output", true},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  CheckArguments check_arguments;
  CommonOptions& common = check_arguments.common;
  VerbArguments arguments(argc, argv, kFlags, common);
  while (const std::optional<Option> option = arguments.next()) {
    // What is not common is -r.
    if (option->value != "leaks" && option->value != "all") {
      return usage_error("Unknown option value for -r (expecting 'leaks' or 'all'): {}",
                         option->value);
    }
    check_arguments.fix_leaks = true;
    check_arguments.fix_errors = option->value == "all";
  }
  if (const auto status = arguments.ended()) return *status;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  if (!common.agree()) return kCheckFailed;
  check_arguments.filename = rest[0];
  // A check alone may die at once.
  std::optional<Cancellation> cancellation;
  if (check_arguments.fix_leaks) cancellation.emplace();
  return finish_output(run_to_end([&] { return check(check_arguments); }));
}

}  // namespace platter::img

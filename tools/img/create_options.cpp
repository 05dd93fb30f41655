// -o: what a format lets its maker choose.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "block/node/size_text.h"
#include "tools/img/common.h"

namespace platter::img {
namespace {

std::string_view type_text(CreateOption::Type type) {
  switch (type) {
    case CreateOption::Type::kString:
      return "str";
    case CreateOption::Type::kSize:
      return "size";
    case CreateOption::Type::kNumber:
      return "num";
    case CreateOption::Type::kBool:
      return "bool (on/off)";
  }
  return {};
}

Result<std::string> canonical_value(const CreateOption& option, const std::string& value) {
  switch (option.type) {
    case CreateOption::Type::kString:
      return value;
    case CreateOption::Type::kSize: {
      const Result<std::uint64_t> size = parse_size(value);
      if (size) return std::to_string(*size);
      const Result<std::uint64_t> wide = parse_size_64(value);
      if (!wide && wide.error().code() == ERANGE) {
        return fail(ERANGE, "Value '{}' is out of range for parameter '{}'", value, option.name);
      }
      return fail(EINVAL, "Parameter '{}' expects a non-negative number below 2^64", option.name);
    }
    case CreateOption::Type::kNumber: {
      // As C writes numbers: 0x10 is 16, 010 is 8.
      char* end = nullptr;
      errno = 0;
      const unsigned long long number = std::strtoull(value.c_str(), &end, 0);
      if (!value.empty() && *end == '\0' && end == value.data() + value.size()) {
        if (errno == 0) return std::to_string(number);
        if (errno == ERANGE) {
          return fail(ERANGE, "Value '{}' is too large for parameter '{}'", value, option.name);
        }
      }
      return fail(EINVAL, "Parameter '{}' expects a number", option.name);
    }
    case CreateOption::Type::kBool:
      // (It is announced as it was written.)
      for (const char* word : {"on", "yes", "true", "y", "off", "no", "false", "n"}) {
        if (value == word) return value;
      }
      return fail(EINVAL, "Parameter '{}' expects 'on' or 'off'", option.name);
  }
  return value;
}

// Brings options into the order in which qemu-img announces them. What is not listed comes last.
void sort_for_print(std::vector<CreateOption>& options) {
  static constexpr std::string_view kFormats[] = {"encryption",
                                                  "encrypt.format",
                                                  "encrypt.key-secret",
                                                  "encrypt.cipher-alg",
                                                  "encrypt.cipher-mode",
                                                  "encrypt.ivgen-alg",
                                                  "encrypt.ivgen-hash-alg",
                                                  "encrypt.hash-alg",
                                                  "encrypt.iter-time",
                                                  "cluster_size",
                                                  "extended_l2",
                                                  "preallocation",
                                                  "compression_type",
                                                  "size",
                                                  "compat",
                                                  "backing_file",
                                                  "backing_fmt",
                                                  "data_file",
                                                  "data_file_raw",
                                                  "lazy_refcounts",
                                                  "refcount_bits",
                                                  "nocow",
                                                  "extent_size_hint"};
  static constexpr std::string_view kFiles[] = {"size", "nocow", "preallocation",
                                                "extent_size_hint"};
  const bool has_clusters =
      std::any_of(options.begin(), options.end(),
                  [](const CreateOption& option) { return option.name == "cluster_size"; });
  const std::span<const std::string_view> order = has_clusters
                                                      ? std::span<const std::string_view>(kFormats)
                                                      : std::span<const std::string_view>(kFiles);
  std::stable_sort(options.begin(), options.end(),
                   [&](const CreateOption& a, const CreateOption& b) {
                     return std::find(order.begin(), order.end(), a.name) <
                            std::find(order.begin(), order.end(), b.name);
                   });
}

}  // namespace

bool add_create_options(std::optional<std::string>& all, std::string_view more) {
  const std::size_t trailing = more.size() - std::min(more.size(), more.find_last_not_of(',') + 1);
  if (more.empty() || more.front() == ',' || trailing % 2 == 1) {
    report("Invalid option list: {}", more);
    return false;
  }
  if (all) {
    *all += ',';
    *all += more;
  } else {
    all = std::string(more);
  }
  return true;
}

bool asks_for_help(std::string_view options) {
  const std::vector<std::string> parts = split_commas(options);
  return std::any_of(parts.begin(), parts.end(),
                     [](const std::string& part) { return part == "help" || part == "?"; });
}

const CreateOption* CreateOptions::find(std::string_view name) const {
  const auto found = std::find_if(all.begin(), all.end(),
                                  [&](const CreateOption& option) { return option.name == name; });
  return found == all.end() ? nullptr : &*found;
}

Result<CreateOptions> create_options(const std::string& format, const std::string& filename) {
  CreateOptions result;
  result.format = find_driver(format);
  if (result.format == nullptr) return fail(ENOENT, "Unknown file format '{}'", format);
  if (result.format->create == nullptr) {
    return fail(ENOTSUP, "Format driver '{}' does not support image creation", format);
  }
  result.all.assign(result.format->create_options.begin(), result.format->create_options.end());
  if (filename.empty()) return result;
  result.protocol = protocol_for(filename);
  if (result.protocol == nullptr) {
    return fail(EINVAL, "Unknown protocol '{}'", protocol_prefix(filename));
  }
  if (result.protocol->create == nullptr) {
    return fail(ENOTSUP, "Protocol driver '{}' does not support image creation",
                result.protocol->name);
  }
  for (const CreateOption& option : result.protocol->create_options) {
    if (result.find(option.name) == nullptr) result.all.push_back(option);
  }
  sort_for_print(result.all);
  return result;
}

std::string option_line(const CreateOption& option) {
  const std::string head = fmt::format("  {}=<{}>", option.name, type_text(option.type));
  return fmt::format("{:<24} - {}\n", head, option.help);
}

int print_create_options(const std::string& format, const std::optional<std::string>& filename) {
  Result<CreateOptions> options = create_options(format, filename.value_or(""));
  if (!options) return report_failure(options);
  std::sort(options->all.begin(), options->all.end(),
            [](const CreateOption& a, const CreateOption& b) { return a.name < b.name; });
  std::string out =
      filename ? "Supported options:\n" : fmt::format("Supported {} options:\n", format);
  for (const CreateOption& option : options->all) out += option_line(option);
  if (!filename && !options->format->protocol) {
    out +=
        "\nThe protocol level may support further options.\n"
        "Specify the target filename to include those options.\n";
  }
  print(out);
  return finish_output(0);
}

Result<Options> parse_create_options(const CreateOptions& known, std::string_view text) {
  Options result;
  for (const std::string& part : split_commas(text)) {
    const std::size_t equals = part.find('=');
    std::string name = part.substr(0, equals);
    std::string value = equals == std::string::npos ? "on" : part.substr(equals + 1);
    const CreateOption* option = known.find(name);
    // "nolazy_refcounts" is an old spelling of "lazy_refcounts=off". (So "nocow" is not
    // "nocow=on".)
    if (equals == std::string::npos && name.starts_with("no")) {
      name.erase(0, 2);
      value = "off";
      option = known.find(name);
    }
    if (option == nullptr) return fail(EINVAL, "Invalid parameter '{}'", name);
    Result<std::string> canonical = canonical_value(*option, value);
    PLATTER_TRY(canonical);
    result.set(std::move(name), std::move(*canonical));
  }
  return result;
}

}  // namespace platter::img

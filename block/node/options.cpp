#include "block/node/options.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "block/node/json_text.h"
#include "block/node/registry.h"
#include "block/node/size_text.h"

namespace platter {
namespace {

using nlohmann::json;

// A JSON text may come from an image (a backing file's name): what nests deeper is nonsense.
constexpr unsigned kMaxJsonDepth = 32;

std::unexpected<Error> not_a_size(std::string_view name) {
  return std::unexpected<Error>(
      Error(EINVAL, fmt::format("Parameter '{}' expects a non-negative number below 2^64", name))
          .with_hint("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                     "and exabytes, respectively."));
}

std::string_view last_part(std::string_view key) {
  const std::size_t dot = key.rfind('.');
  return dot == std::string_view::npos ? key : key.substr(dot + 1);
}

Result<void> flatten(const json& value, const std::string& prefix, unsigned depth, Options& into) {
  if (depth > kMaxJsonDepth)
    return fail(EINVAL, "JSON object nested deeper than {}", kMaxJsonDepth);
  const auto child_name = [&](std::string_view name) {
    return prefix.empty() ? std::string(name) : fmt::format("{}.{}", prefix, name);
  };
  switch (value.type()) {
    case json::value_t::object:
      for (auto it = value.begin(); it != value.end(); ++it) {
        const Result<void> r = flatten(it.value(), child_name(it.key()), depth + 1, into);
        PLATTER_TRY(r);
      }
      return {};
    case json::value_t::array: {
      std::size_t index = 0;
      for (const json& element : value) {
        const Result<void> r =
            flatten(element, child_name(std::to_string(index++)), depth + 1, into);
        PLATTER_TRY(r);
      }
      return {};
    }
    case json::value_t::string:
      into.set(prefix, value.get<std::string>());
      return {};
    case json::value_t::null:
      // "backing": null means that the backing file which the image names is not wanted.
      if (last_part(prefix) == "backing") {
        into.set(prefix, "");
        return {};
      }
      return fail(EINVAL, "Parameter '{}' must not be null", prefix);
    default:
      return fail(EINVAL, "Parameter '{}' cannot be used", prefix);
  }
}

Result<Options> from_json(const json& value) {
  if (!value.is_object()) return fail(EINVAL, "Invalid JSON object given");
  Options options;
  const Result<void> r = flatten(value, "", 0, options);
  PLATTER_TRY(r);
  return options;
}

}  // namespace

Result<Options> Options::parse_keyval(std::string_view text) {
  Options options;
  std::size_t at = 0;
  while (at < text.size()) {
    // The key ends at '=' or at a single ','; the value at a single ','.
    const std::size_t key_end = std::min(text.find_first_of("=,", at), text.size());
    std::string key(text.substr(at, key_end - at));
    std::string value = "on";
    at = key_end;
    if (at < text.size() && text[at] == '=') {
      value.clear();
      for (++at; at < text.size(); ++at) {
        if (text[at] == ',') {
          if (at + 1 == text.size() || text[at + 1] != ',') break;
          ++at;
        }
        value.push_back(text[at]);
      }
    }
    if (at < text.size()) ++at;
    if (key.empty()) return fail(EINVAL, "Invalid parameter ''");
    options.set(std::move(key), std::move(value));
  }
  return options;
}

Result<Options> Options::parse_json(std::string_view text) {
  const Result<json> value = detail::read_json(text);
  PLATTER_TRY(value);
  return from_json(*value);
}

Result<Options> Options::from_filename(std::string_view filename) {
  if (filename.starts_with("json:")) {
    const Result<json> value = detail::read_json(filename.substr(5));
    if (!value) return forward_error(value, "Could not parse the JSON options");
    return from_json(*value);
  }
  Options options;
  options.set("filename", std::string(filename));
  return options;
}

const std::string* Options::peek(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

std::optional<std::string> Options::take_string(std::string_view key) {
  const auto it = values_.find(key);
  if (it == values_.end()) return std::nullopt;
  std::string value = std::move(it->second);
  values_.erase(it);
  return value;
}

Result<std::optional<bool>> Options::take_bool(std::string_view key) {
  const std::optional<std::string> text = take_string(key);
  if (!text) return std::nullopt;
  if (*text == "on" || *text == "yes" || *text == "true" || *text == "y") return true;
  if (*text == "off" || *text == "no" || *text == "false" || *text == "n") return false;
  return fail(EINVAL, "Parameter '{}' expects 'on' or 'off'", key);
}

Result<std::optional<std::uint64_t>> Options::take_number(std::string_view key) {
  const std::optional<std::string> text = take_string(key);
  if (!text) return std::nullopt;
  const bool hex = text->starts_with("0x") || text->starts_with("0X");
  const std::string_view digits = std::string_view(*text).substr(hex ? 2 : 0);
  const unsigned base = hex ? 16 : 10;
  std::uint64_t value = 0;
  if (digits.empty()) return fail(EINVAL, "Parameter '{}' expects a number", key);
  for (const char c : digits) {
    const auto u = static_cast<unsigned char>(c);
    if (hex ? !std::isxdigit(u) : !std::isdigit(u)) {
      return fail(EINVAL, "Parameter '{}' expects a number", key);
    }
    const auto digit =
        static_cast<std::uint64_t>(std::isdigit(u) ? c - '0' : std::tolower(u) - 'a' + 10);
    if (__builtin_mul_overflow(value, base, &value) ||
        __builtin_add_overflow(value, digit, &value)) {
      return fail(ERANGE, "Value '{}' is out of range for parameter '{}'", *text, key);
    }
  }
  return value;
}

Result<std::optional<std::uint64_t>> Options::take_size(std::string_view key) {
  const std::optional<std::string> text = take_string(key);
  if (!text) return std::nullopt;
  const Result<std::uint64_t> size = parse_size(*text);
  if (size) return *size;
  if (size.error().code() == ERANGE) {
    return fail(ERANGE, "Value '{}' is out of range for parameter '{}'", *text, key);
  }
  return not_a_size(key);
}

Options Options::take_child(std::string_view name) {
  Options child;
  const std::string prefix = fmt::format("{}.", name);
  auto it = values_.lower_bound(prefix);
  while (it != values_.end() && it->first.starts_with(prefix)) {
    child.set(it->first.substr(prefix.size()), std::move(it->second));
    it = values_.erase(it);
  }
  return child;
}

bool Options::has_child(std::string_view name) const {
  const std::string prefix = fmt::format("{}.", name);
  const auto it = values_.lower_bound(prefix);
  return it != values_.end() && it->first.starts_with(prefix);
}

void Options::put_child(std::string_view name, const Options& child) {
  for (const auto& [key, value] : child) set(fmt::format("{}.{}", name, key), value);
}

Result<void> Options::all_taken(std::string_view driver) const {
  if (values_.empty()) return {};
  const std::string& key = values_.begin()->first;
  const DriverType* type = find_driver(driver);
  if (type && type->protocol) {
    return fail(EINVAL, "Block protocol '{}' doesn't support the option '{}'", driver, key);
  }
  return fail(EINVAL, "Block format '{}' does not support the option '{}'", driver, key);
}

std::string Options::to_json() const {
  json root = json::object();
  for (const auto& [key, value] : values_) {
    json* at = &root;
    std::string_view rest = key;
    // A part that is already a text value (a node's name) cannot have children: the key stays flat.
    for (std::size_t dot; (dot = rest.find('.')) != std::string_view::npos;) {
      const std::string part(rest.substr(0, dot));
      const auto it = at->find(part);
      if (it != at->end() && !it->is_object()) break;
      at = &(*at)[part];
      if (at->is_null()) *at = json::object();
      rest.remove_prefix(dot + 1);
    }
    (*at)[std::string(rest)] = value;
  }
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

namespace {

__extension__ typedef unsigned __int128 Wide;

// The power of 1024 that a suffix stands for; -1 when it is none.
int suffix_power(char c) {
  switch (std::toupper(static_cast<unsigned char>(c))) {
    case 'B':
      return 0;
    case 'K':
      return 1;
    case 'M':
      return 2;
    case 'G':
      return 3;
    case 'T':
      return 4;
    case 'P':
      return 5;
    case 'E':
      return 6;
    default:
      return -1;
  }
}

}  // namespace

std::vector<std::string> split_commas(std::string_view text) {
  std::vector<std::string> parts(1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      parts.back() += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      parts.back() += ',';
      ++i;
    } else {
      parts.emplace_back();
    }
  }
  return parts;
}

Result<std::uint64_t> parse_size_64(std::string_view text) {
  const auto invalid = [&] { return fail(EINVAL, "'{}' is not a size", text); };
  const auto too_large = [&] {
    return fail(ERANGE, "size '{}' must be between 0 and 18446744073709551615", text);
  };
  std::string_view rest = text;
  while (!rest.empty() && std::isspace(static_cast<unsigned char>(rest.front())))
    rest.remove_prefix(1);
  if (!rest.empty() && rest.front() == '+') rest.remove_prefix(1);

  const bool hex = rest.size() > 2 && rest[0] == '0' && (rest[1] == 'x' || rest[1] == 'X');
  if (hex) rest.remove_prefix(2);
  Wide whole = 0;
  std::size_t digits = 0;
  // In hexadecimal, B and E are digits and never suffixes.
  const auto is_digit = [&](char c) {
    const auto u = static_cast<unsigned char>(c);
    return (hex ? std::isxdigit(u) : std::isdigit(u)) != 0;
  };
  bool overflow = false;
  for (; digits < rest.size() && is_digit(rest[digits]); ++digits) {
    const int c = std::tolower(static_cast<unsigned char>(rest[digits]));
    const int digit = std::isdigit(c) ? c - '0' : c - 'a' + 10;
    whole = whole * (hex ? 16 : 10) + static_cast<unsigned>(digit);
    if (whole > ~std::uint64_t{0}) {
      overflow = true;
      whole = 0;
    }
  }
  if (digits == 0) return invalid();
  rest.remove_prefix(digits);

  double fraction = 0;
  if (!hex && !rest.empty() && rest.front() == '.') {
    std::size_t end = 1;
    while (end < rest.size() && std::isdigit(static_cast<unsigned char>(rest[end]))) ++end;
    // (A point alone is no fraction. All but 1 and rounded to it is dropped, as QEMU does.)
    if (end > 1) std::from_chars(rest.data(), rest.data() + end, fraction);
    if (fraction >= 1) fraction = 0;
    rest.remove_prefix(end);
  }
  int power = 0;
  if (!rest.empty()) {
    power = suffix_power(rest.front());
    if (power < 0 || rest.size() != 1) return invalid();
  }
  // A part of a byte is a mistake, not a rounding.
  if (fraction != 0 && power == 0) return invalid();
  if (overflow) return too_large();
  const std::uint64_t unit = std::uint64_t{1} << (10 * power);
  const Wide total =
      whole * unit + static_cast<std::uint64_t>(std::round(fraction * static_cast<double>(unit)));
  if (total > ~std::uint64_t{0}) return too_large();
  return static_cast<std::uint64_t>(total);
}

Result<std::uint64_t> parse_size(std::string_view text) {
  Result<std::uint64_t> size = parse_size_64(text);
  if (size ? *size <= static_cast<std::uint64_t>(INT64_MAX) : size.error().code() != ERANGE)
    return size;
  return fail(ERANGE, "size '{}' must be between 0 and 9223372036854775807", text);
}

}  // namespace platter

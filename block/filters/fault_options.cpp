#include <array>
#include <cstdlib>
#include <utility>

#include "block/base/checked.h"
#include "block/filters/fault.h"

namespace platter {
namespace {

// Rules that a configuration may hold.
constexpr unsigned kMaxRules = 4096;

std::unexpected<Error> invalid_value(std::string_view text) {
  return fail(EINVAL, "invalid parameter value: {}", text);
}

Result<std::uint32_t> parse_operation(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, std::uint32_t>, 6> kNames{{
      {"read", fault_op::kRead},
      {"write", fault_op::kWrite},
      {"write-zeroes", fault_op::kWriteZeroes},
      {"discard", fault_op::kDiscard},
      {"flush", fault_op::kFlush},
      {"block-status", fault_op::kExtent},
  }};
  for (const auto& [name, operation] : kNames) {
    if (text == name) return operation;
  }
  return invalid_value(text);
}

Result<FaultRule::Action> parse_action(std::string_view text) {
  using enum FaultRule::Action;
  constexpr std::array<std::pair<std::string_view, FaultRule::Action>, 4> kNames{
      {{"fail", kFail}, {"short", kShort}, {"delay", kDelay}, {"corrupt", kFlip}}};
  for (const auto& [name, action] : kNames) {
    if (text == name) return action;
  }
  return invalid_value(text);
}

Result<FaultEvent> take_event(Options& options) {
  const std::optional<std::string> name = options.take_string("event");
  if (!name) return fail(EINVAL, "Missing event name for rule");
  const std::optional<FaultEvent> event = parse_fault_event(*name);
  if (!event) return invalid_value(*name);
  return *event;
}

Result<std::uint64_t> take_or(Options& options, std::string_view key, std::uint64_t otherwise) {
  const Result<std::optional<std::uint64_t>> value = options.take_size(key);
  PLATTER_TRY(value);
  return value->value_or(otherwise);
}

// A number as strtoull() reads it, also a negative one.
Result<std::uint64_t> take_signed_or(Options& options, std::string_view key,
                                     std::uint64_t otherwise) {
  const std::optional<std::string> text = options.take_string(key);
  if (!text) return otherwise;
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text->c_str(), &end, 0);
  if (errno != 0 || end == text->c_str() || *end != '\0') {
    return fail(EINVAL, "Parameter '{}' expects a number", key);
  }
  return value;
}

Result<void> nothing_left(const Options& options, std::string_view section) {
  if (options.empty()) return {};
  return fail(EINVAL, "[{}] section doesn't support the option '{}'", section,
              options.begin()->first);
}

Result<void> add_error(Options& options, FaultPoints& points) {
  FaultRule rule;
  const Result<FaultEvent> event = take_event(options);
  PLATTER_TRY(event);
  rule.event = *event;
  for (const auto& [key, field] :
       std::array<std::pair<std::string_view, std::uint64_t*>, 5>{{{"offset", &rule.offset},
                                                                   {"length", &rule.length},
                                                                   {"skip", &rule.skip},
                                                                   {"count", &rule.count},
                                                                   {"delay-ns", &rule.delay_ns}}}) {
    const Result<std::uint64_t> value = take_or(options, key, *field);
    PLATTER_TRY(value);
    *field = *value;
  }
  const Result<std::uint64_t> state = take_signed_or(options, "state", 0);
  PLATTER_TRY(state);
  rule.state = static_cast<unsigned>(*state);
  const Result<std::uint64_t> error = take_signed_or(options, "errno", EIO);
  PLATTER_TRY(error);
  rule.error = static_cast<int>(*error);
  constexpr std::uint64_t kAnySector = ~std::uint64_t{0};
  const Result<std::uint64_t> sector = take_signed_or(options, "sector", kAnySector);
  PLATTER_TRY(sector);
  if (*sector != kAnySector) {
    if (*sector > static_cast<std::uint64_t>(INT64_MAX) / 512) {
      return fail(EINVAL, "Parameter 'sector' expects a number");
    }
    rule.offset = *sector * 512;
    rule.length = 512;
  }
  if (const auto operation = options.take_string("iotype")) {
    const Result<std::uint32_t> operations = parse_operation(*operation);
    PLATTER_TRY(operations);
    rule.operations = *operations;
  }
  if (const auto name = options.take_string("action")) {
    const Result<FaultRule::Action> action = parse_action(*name);
    PLATTER_TRY(action);
    rule.action = *action;
  }
  const Result<std::optional<bool>> once = options.take_bool("once");
  PLATTER_TRY(once);
  if (once->value_or(false)) rule.count = 1;
  const Result<std::optional<bool>> immediately = options.take_bool("immediately");
  PLATTER_TRY(immediately);
  rule.immediately = immediately->value_or(false);
  const Result<void> all = nothing_left(options, "inject-error");
  PLATTER_TRY(all);
  points.add(rule);
  return {};
}

Result<void> add_transition(Options& options, FaultPoints& points) {
  const Result<FaultEvent> event = take_event(options);
  PLATTER_TRY(event);
  const Result<std::uint64_t> state = take_signed_or(options, "state", 0);
  PLATTER_TRY(state);
  const Result<std::uint64_t> new_state = take_signed_or(options, "new_state", 0);
  PLATTER_TRY(new_state);
  const Result<void> all = nothing_left(options, "set-state");
  PLATTER_TRY(all);
  points.add_transition(*event, static_cast<unsigned>(*state), static_cast<unsigned>(*new_state));
  return {};
}

Result<void> add_section(std::string_view section, Options& options, FaultPoints& points) {
  if (section == "inject-error") return add_error(options, points);
  if (section == "set-state") return add_transition(options, points);
  return fail(EINVAL, "There is no option group '{}'", section);
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// [GROUP] or [GROUP "ID"]; nothing refers to rules by their ids.
std::string_view group_of(std::string_view head) {
  const std::size_t quote = head.find('"');
  if (quote == std::string_view::npos || !head.ends_with('"') || quote + 1 == head.size())
    return head;
  return trimmed(head.substr(0, quote));
}

}  // namespace

Result<void> add_rules_from_options(Options& options, FaultPoints& points) {
  for (const std::string_view section : {"inject-error", "set-state"}) {
    for (unsigned n = 0; n < kMaxRules; ++n) {
      Options rule = options.take_child(fmt::format("{}.{}", section, n));
      if (rule.empty()) break;
      const Result<void> added = add_section(section, rule, points);
      PLATTER_TRY(added);
    }
  }
  return {};
}

Result<void> add_rules_from_config(std::string_view text, FaultPoints& points) {
  std::string section;
  Options rule;
  unsigned number = 0;
  unsigned rules = 0;
  const auto finish = [&]() -> Result<void> {
    if (section.empty()) return {};
    if (++rules > kMaxRules) return fail(EINVAL, "more than {} rules", kMaxRules);
    return add_section(section, rule, points);
  };
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++number;
    if (line.empty() || line.front() == '#') continue;
    if (line.front() == '[' && line.back() == ']') {
      const Result<void> finished = finish();
      PLATTER_TRY(finished);
      section = group_of(trimmed(line.substr(1, line.size() - 2)));
      rule = {};
      continue;
    }
    const std::size_t equals = line.find('=');
    if (section.empty()) return fail(EINVAL, "no group defined");
    if (equals == std::string_view::npos) return fail(EINVAL, "line {}: parse error", number);
    std::string_view value = trimmed(line.substr(equals + 1));
    if (value.size() < 2 || value.front() != '"' || value.back() != '"') {
      return fail(EINVAL, "line {}: parse error", number);
    }
    value = value.substr(1, value.size() - 2);
    rule.set(std::string(trimmed(line.substr(0, equals))), std::string(value));
  }
  return finish();
}

}  // namespace platter

#include "tools/img/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace platter::img {

unsigned member_rank(std::string_view name) {
  constexpr std::uint32_t kSeed = 0x238F13AF;
  constexpr std::uint32_t kFactor = 1103515243;
  constexpr std::uint32_t kIncrement = 12345;
  constexpr std::uint32_t kBuckets = 512;
  std::uint32_t value = kSeed * static_cast<std::uint32_t>(name.size());
  for (std::size_t i = 0; i < name.size(); ++i) {
    value += std::uint32_t{static_cast<unsigned char>(name[i])} << (i * 5 % 24);
  }
  return (kFactor * value + kIncrement) % kBuckets;
}

namespace {

constexpr std::uint32_t kReplacement = 0xFFFD;

// Takes one code point off the front of `text`; kReplacement for a byte that starts none.
std::uint32_t next_code_point(std::string_view& text) {
  const auto byte = [&](std::size_t i) {
    return std::uint32_t{static_cast<unsigned char>(text[i])};
  };
  const std::uint32_t first = byte(0);
  std::size_t length = 1;
  std::uint32_t value = first;
  std::uint32_t least = 0;
  if (first >= 0xF0 && first < 0xF8) {
    length = 4, value = first & 7, least = 0x10000;
  } else if (first >= 0xE0) {
    length = 3, value = first & 15, least = 0x800;
  } else if (first >= 0xC0) {
    length = 2, value = first & 31, least = 0x80;
  }
  bool good = first < 0x80 || (first >= 0xC0 && first < 0xF8);
  std::size_t taken = 1;
  while (good && taken < length) {
    if (taken >= text.size() || (byte(taken) & 0xC0) != 0x80) {
      good = false;
      break;
    }
    value = value << 6 | (byte(taken) & 0x3F);
    ++taken;
  }
  text.remove_prefix(taken);
  if (!good || value < least || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
    return kReplacement;
  }
  return value;
}

void append_escaped(std::string& out, std::uint32_t c) {
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      break;
  }
  if (c >= 0x20 && c < 0x7F) {
    out += static_cast<char>(c);
  } else if (c < 0x10000) {
    fmt::format_to(std::back_inserter(out), "\\u{:04X}", c);
  } else {
    const std::uint32_t rest = c - 0x10000;
    fmt::format_to(std::back_inserter(out), "\\u{:04X}\\u{:04X}", 0xD800 + (rest >> 10),
                   0xDC00 + (rest & 0x3FF));
  }
}

void new_line(std::string& out, unsigned depth) {
  out += '\n';
  out.append(std::size_t{4} * depth, ' ');
}

}  // namespace

std::string json_quoted(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) append_escaped(out, next_code_point(text));
  out += '"';
  return out;
}

void Json::set(std::string name, Json value) {
  std::get<Object>(value_).emplace_back(std::move(name), std::move(value));
}

struct Json::Output {
  std::string text;
  bool pretty = false;
  const std::function<void(std::string_view)>* take = nullptr;  // what has become long

  void hand_on(std::size_t at_least) {
    if (take == nullptr || text.size() < at_least) return;
    (*take)(text);
    text.clear();
  }
};

void Json::write(Output& output, unsigned depth) const {
  constexpr std::size_t kPiece = 64 << 10;  // bytes
  output.hand_on(kPiece);
  std::string& out = output.text;
  const bool pretty = output.pretty;
  const auto separator = [&](bool first) {
    if (!first) out += pretty ? "," : ", ";
    if (pretty) new_line(out, depth + 1);
  };
  const auto elements = [&](std::size_t size, const auto& write_one) {
    out += '[';
    for (std::size_t i = 0; i < size; ++i) {
      separator(i == 0);
      write_one(i);
    }
    if (pretty) new_line(out, depth);
    out += ']';
  };
  if (const bool* flag = std::get_if<bool>(&value_)) {
    out += *flag ? "true" : "false";
  } else if (const std::uint64_t* number = std::get_if<std::uint64_t>(&value_)) {
    out += std::to_string(*number);
  } else if (const std::string* text = std::get_if<std::string>(&value_)) {
    out += json_quoted(*text);
  } else if (const Array* array = std::get_if<Array>(&value_)) {
    elements(array->size(), [&](std::size_t i) { (*array)[i].write(output, depth + 1); });
  } else if (const Sequence* sequence = std::get_if<Sequence>(&value_)) {
    elements(sequence->size, [&](std::size_t i) { sequence->at(i).write(output, depth + 1); });
  } else {
    std::vector<const Object::value_type*> members;
    for (const Object::value_type& member : std::get<Object>(value_)) members.push_back(&member);
    // A bucket gives its latest member first.
    std::reverse(members.begin(), members.end());
    std::stable_sort(members.begin(), members.end(), [](const auto* a, const auto* b) {
      return member_rank(a->first) < member_rank(b->first);
    });
    out += '{';
    for (std::size_t i = 0; i < members.size(); ++i) {
      separator(i == 0);
      out += json_quoted(members[i]->first) + ": ";
      members[i]->second.write(output, depth + 1);
    }
    if (pretty) new_line(out, depth);
    out += '}';
  }
}

std::string Json::pretty() const {
  Output out;
  out.pretty = true;
  write(out, 0);
  return std::move(out.text);
}

std::string Json::compact() const {
  Output out;
  write(out, 0);
  return std::move(out.text);
}

void Json::write_pretty(const std::function<void(std::string_view)>& take) const {
  Output out;
  out.pretty = true;
  out.take = &take;
  write(out, 0);
  out.hand_on(1);
}

}  // namespace platter::img

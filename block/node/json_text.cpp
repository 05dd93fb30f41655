// Its own reader, not the JSON library's, which is used for the values alone: QEMU takes strings in
// single quotes and refuses texts in words that name the token, nesting is bounded without
// recursion over what is not yet known to be a value, numbers stay the text that they are ("1e3" is
// a size's spelling, 18446744073709551615 a number), and characters that Unicode reserves are
// refused. Of that the library has only the last step of each. It reports by exceptions, too.
#include "block/node/json_text.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace platter::detail {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxJsonText = std::size_t{64} << 20;  // bytes
constexpr unsigned kMaxOpenBrackets = 1024;

struct Token {
  // The punctuation's own character; "s" a string with its quotes, "n" a number, "k" a keyword, "e"
  // what is none of them.
  char kind = 'e';
  std::string_view text;
};

std::unexpected<Error> parse_error(std::string_view what) {
  return fail(EINVAL, "JSON parse error, {}", what);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  // Nothing at the end.
  std::optional<Token> next() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
    if (at_ == text_.size()) return std::nullopt;
    start_ = at_;
    const char c = text_[at_++];
    if (std::string_view("{}[]:,").contains(c)) return token(c);
    if (c == '"' || c == '\'') return string(c);
    if (c == '-' || is_digit(c)) return number(c);
    if (c < 'a' || c > 'z') return token('e');
    while (peek() >= 'a' && peek() <= 'z') ++at_;
    return token('k');
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  Token token(char kind) const { return {kind, text_.substr(start_, at_ - start_)}; }
  // An error is shown with the character that is wrong.
  Token stray() {
    if (at_ < text_.size()) ++at_;
    return token('e');
  }

  Token string(char quote) {
    for (bool escaped = false; at_ < text_.size();) {
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c < 0x20 || c > 0xfd) return stray();
      ++at_;
      if (c == static_cast<unsigned char>(quote) && !escaped) return token('s');
      escaped = c == '\\' && !escaped;
    }
    return token('e');
  }

  // False: there is none.
  bool digits() {
    const std::size_t before = at_;
    while (is_digit(peek())) ++at_;
    return at_ != before;
  }

  Token number(char first) {
    if (first == '-') {
      if (!is_digit(peek())) return stray();
      first = text_[at_++];
    }
    if (first == '0') {
      if (is_digit(peek())) return stray();
    } else {
      digits();
    }
    if (peek() == '.') {
      ++at_;
      if (!digits()) return stray();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) return stray();
    }
    return token('n');
  }

  const std::string_view text_;
  std::size_t at_ = 0;
  std::size_t start_ = 0;
};

// Writes a code point in UTF-8. False: there is no such character.
bool append_code_point(std::string& out, std::int64_t point) {
  const bool surrogate = point >= 0xd800 && point <= 0xdfff;
  const bool none = (point >= 0xfdd0 && point <= 0xfdef) || (point & 0xfffe) == 0xfffe;
  if (point <= 0 || point > 0x10ffff || surrogate || none) return false;
  const auto rest = [&](int shift) { out += static_cast<char>(0x80 | (point >> shift & 0x3f)); };
  if (point < 0x80) {
    out += static_cast<char>(point);
    return true;
  }
  if (point < 0x800) {
    out += static_cast<char>(0xc0 | point >> 6);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xe0 | point >> 12);
    rest(6);
  } else {
    out += static_cast<char>(0xf0 | point >> 18);
    rest(12);
    rest(6);
  }
  rest(0);
  return true;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const auto first = static_cast<unsigned char>(text[0]);
    const std::size_t length = first < 0x80   ? 1
                               : first < 0xc2 ? 0
                               : first < 0xe0 ? 2
                               : first < 0xf0 ? 3
                               : first < 0xf5 ? 4
                                              : 0;
    if (length == 0 || text.size() < length) return false;
    std::int64_t point = length == 1 ? first : first & (0x7f >> length);
    for (const char c : text.substr(1, length - 1)) {
      if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) return false;
      point = point << 6 | (static_cast<unsigned char>(c) & 0x3f);
    }
    // Only its one spelling counts, and only what is a character.
    std::string again;
    if (!append_code_point(again, point) || again != text.substr(0, length)) return false;
    text.remove_prefix(length);
  }
  return true;
}

// Reads one value from its tokens.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<json> value() {
    const std::optional<Token> token = take();
    if (!token) return parse_error("premature EOI");
    switch (token->kind) {
      case '{':
        return object();
      case '[':
        return array();
      case 's':
        return string(*token);
      case 'n':
        return json(std::string(token->text));
      case 'k':
        return keyword(token->text);
      default:
        return parse_error("expecting value");
    }
  }

 private:
  char peek() const { return at_ < tokens_.size() ? tokens_[at_].kind : '\0'; }
  std::optional<Token> take() {
    if (at_ == tokens_.size()) return std::nullopt;
    return tokens_[at_++];
  }

  static Result<json> keyword(std::string_view text) {
    if (text == "true") return json("on");
    if (text == "false") return json("off");
    if (text == "null") return json(nullptr);
    return parse_error(fmt::format("invalid keyword '{}'", text));
  }

  // (Nesting is bounded by who hands us the tokens.)
  Result<json> object() {
    json members = json::object();
    for (bool first = true;; first = false) {
      if (peek() == '\0') return parse_error("premature EOI");
      if (first ? peek() == '}' : peek() != ',') break;
      if (!first) ++at_;
      Result<void> added = pair(members);
      PLATTER_TRY(added);
    }
    if (take()->kind != '}') return parse_error("expected separator in dict");
    return members;
  }

  Result<void> pair(json& members) {
    if (peek() == '\0') return parse_error("premature EOI");
    const bool is_string = peek() == 's';
    Result<json> key = value();
    PLATTER_TRY(key);
    if (!is_string) return parse_error("key is not a string in object");
    if (peek() == '\0') return parse_error("premature EOI");
    if (take()->kind != ':') return parse_error("missing : in object pair");
    Result<json> member = value();
    PLATTER_TRY(member);
    std::string name = key->get<std::string>();
    if (members.contains(name)) return parse_error("duplicate key");
    members.emplace(std::move(name), std::move(*member));
    return {};
  }

  Result<json> array() {
    json elements = json::array();
    for (bool first = true;; first = false) {
      if (peek() == '\0') return parse_error("premature EOI");
      if (first ? peek() == ']' : peek() != ',') break;
      if (!first) ++at_;
      Result<json> element = value();
      PLATTER_TRY(element);
      elements.push_back(std::move(*element));
    }
    if (take()->kind != ']') return parse_error("expected separator in list");
    return elements;
  }

  // Four hexadecimal digits; negative: they are none.
  static std::int64_t four_digits(std::string_view text) {
    std::int64_t number = 0;
    if (text.size() < 4) return -1;
    for (const char c : text.substr(0, 4)) {
      const auto u = static_cast<unsigned char>(c);
      if (std::isxdigit(u) == 0) return -1;
      number = number * 16 + (is_digit(c) ? c - '0' : std::tolower(u) - 'a' + 10);
    }
    return number;
  }

  // The escape that `rest` begins with, whose length is taken off it.
  static Result<void> escape(std::string_view& rest, std::string& out) {
    constexpr std::string_view kNames = "bfnrt";
    constexpr std::string_view kMeant = "\b\f\n\r\t";
    const char c = rest[1];
    if (std::string_view("\"'\\/").contains(c)) {
      out += c;
    } else if (const std::size_t known = kNames.find(c); known != std::string_view::npos) {
      out += kMeant[known];
    } else if (c == 'u') {
      return unicode(rest, out);
    } else {
      return parse_error("invalid escape sequence in string");
    }
    rest.remove_prefix(2);
    return {};
  }

  static Result<void> unicode(std::string_view& rest, std::string& out) {
    std::size_t length = std::min<std::size_t>(6, rest.size());
    std::int64_t point = four_digits(rest.substr(2));
    if (point >= 0xd800 && point <= 0xdbff && rest.substr(6).starts_with("\\u")) {
      const std::int64_t low = four_digits(rest.substr(8));
      const bool pair = low >= 0xdc00 && low <= 0xdfff;
      point = pair ? 0x10000 + ((point & 0x3ff) << 10 | (low & 0x3ff)) : -1;
      if (pair) length = 12;
    }
    if (!append_code_point(out, point)) {
      return parse_error(
          fmt::format("{} is not a valid Unicode character", rest.substr(0, length)));
    }
    rest.remove_prefix(length);
    return {};
  }

  static Result<json> string(const Token& token) {
    std::string_view rest = token.text.substr(1);
    std::string out;
    while (rest.size() > 1) {  // (the quote is left)
      if (rest.front() == '\\') {
        const Result<void> taken = escape(rest, out);
        PLATTER_TRY(taken);
      } else {
        out += rest.front();
        rest.remove_prefix(1);
      }
    }
    if (!is_utf8(out)) return parse_error("invalid UTF-8 sequence in string");
    return json(std::move(out));
  }

  const std::vector<Token> tokens_;
  std::size_t at_ = 0;
};

}  // namespace

Result<json> read_json(std::string_view text) {
  if (text.size() > kMaxJsonText) return fail(EINVAL, "JSON token size limit exceeded");
  Lexer lexer(text);
  std::optional<json> found;
  std::vector<Token> tokens;
  int open_brackets = 0;
  const auto finish = [&]() -> Result<void> {
    open_brackets = 0;
    // Whatever follows a whole value is one too many, be it right or not.
    if (found) return fail(EINVAL, "Expecting at most one JSON value");
    Result<json> value = Parser(std::exchange(tokens, {})).value();
    PLATTER_TRY(value);
    found = std::move(*value);
    return {};
  };
  while (const std::optional<Token> token = lexer.next()) {
    if (token->kind == 'e' && !found) return parse_error(fmt::format("stray '{}'", token->text));
    if (token->kind == '{' || token->kind == '[') ++open_brackets;
    if (token->kind == '}' || token->kind == ']') --open_brackets;
    if (open_brackets > static_cast<int>(kMaxOpenBrackets) && !found)
      return fail(EINVAL, "JSON nesting depth limit exceeded");
    tokens.push_back(*token);
    if (open_brackets > 0 && !found) continue;
    const Result<void> finished = finish();
    PLATTER_TRY(finished);
  }
  if (!tokens.empty()) {
    const Result<void> finished = finish();
    PLATTER_TRY(finished);
  }
  if (!found) return fail(EINVAL, "Expecting a JSON value");
  return std::move(*found);
}

}  // namespace platter::detail

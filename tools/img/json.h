// JSON as qemu-img writes it: four blanks per level, escapes in upper-case hexadecimal, and the
// members of an object in the order in which QEMU's dictionaries happen to give them, which is by
// a hash of the name. Scripts that compare text depend on it.
// Threads: values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace platter::img {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;
  // A long array, whose elements are made one by one as it is written.
  struct Sequence {
    std::size_t size = 0;
    std::function<Json(std::size_t)> at;
  };

  Json() : value_(Object{}) {}
  Json(bool value) : value_(value) {}
  Json(std::uint64_t value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  Json(Sequence value) : value_(std::move(value)) {}

  // Adds a member to an object.
  void set(std::string name, Json value);

  // Several lines, without a newline at the end.
  std::string pretty() const;
  // One line, with blanks after ':' and ','.
  std::string compact() const;
  // What pretty() gives, handed on in pieces as it comes into being.
  void write_pretty(const std::function<void(std::string_view)>& take) const;

 private:
  struct Output;
  void write(Output& out, unsigned depth) const;

  std::variant<bool, std::uint64_t, std::string, Array, Object, Sequence> value_;
};

// Where QEMU's dictionaries keep a name: members come out in ascending order of it.
unsigned member_rank(std::string_view name);

// `text` with JSON's escapes and in quotes. Bytes that are not UTF-8 become U+FFFD.
std::string json_quoted(std::string_view text);

}  // namespace platter::img

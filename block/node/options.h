// Options: what a node is opened or created with: flat, dotted keys and text values, whichever way
// the user wrote them:
//
//   a.qcow2                                             (a plain filename, with flags beside it)
//   driver=qcow2,file.driver=file,file.filename=a.qcow2 (key=value,...; ',,' is a comma)
//   json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}
//
// Each driver takes the keys it knows; what nobody took is an error that names the key.
// Threads: a value.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"

namespace platter {

class Options {
 public:
  Options() = default;

  // "a=b,c.d=e". A key alone means "on"; "nokey" is not special.
  static Result<Options> parse_keyval(std::string_view text);
  // A JSON object; nested objects become dotted keys, arrays numbered ones, null is an
  // error except as "backing" (not wanted).
  static Result<Options> parse_json(std::string_view text);
  // A filename as users type it: "json:{...}" or plain text (then key "filename").
  static Result<Options> from_filename(std::string_view filename);

  void set(std::string key, std::string value) {
    values_.insert_or_assign(std::move(key), std::move(value));
  }
  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }
  bool empty() const { return values_.empty(); }
  const std::string* peek(std::string_view key) const;

  // Take a key out; nullopt when it is absent; an error that names key and value when it is not of
  // the type. Sizes take suffixes k M G T P E (powers of 1024) and a bare number means bytes.
  std::optional<std::string> take_string(std::string_view key);
  Result<std::optional<bool>> take_bool(std::string_view key);  // on/off/yes/no/true/false
  Result<std::optional<std::uint64_t>> take_number(std::string_view key);
  Result<std::optional<std::uint64_t>> take_size(std::string_view key);

  // All "name.rest" keys as "rest", taken out of this set.
  Options take_child(std::string_view name);
  bool has_child(std::string_view name) const;
  // Adds `child`'s keys as "name.key".
  void put_child(std::string_view name, const Options& child);

  // An error naming the first key left, nothing when all were taken.
  Result<void> all_taken(std::string_view driver) const;

  // Canonical JSON text of the set (nested), as in "json:{...}" names.
  std::string to_json() const;

  auto begin() const { return values_.begin(); }
  auto end() const { return values_.end(); }
  bool operator==(const Options&) const = default;

 private:
  std::map<std::string, std::string, std::less<>> values_;
};

// Cuts at single commas; a doubled one is a comma of the text. At least one part.
std::vector<std::string> split_commas(std::string_view text);

// "64K", "1.5G", "512" to bytes, as qemu-img reads sizes. Fails on junk, negatives and overflow.
Result<std::uint64_t> parse_size(std::string_view text);

}  // namespace platter

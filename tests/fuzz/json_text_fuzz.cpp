// Fuzzes the reader of JSON texts, which come from images too (a backing file's name). What it has
// read is written out by the JSON library and read again: it must be the same value.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "block/node/json_text.h"
#include "fuzz/require.h"

namespace platter::detail {
namespace {

void read(std::string_view text) {
  const Result<nlohmann::json> value = read_json(text);
  if (!value) {
    require(!value.error().message().empty(), "errors have a text");
    return;
  }
  // Strings that are not text would be thrown out here.
  const std::string written = value->dump();
  const Result<nlohmann::json> again = read_json(written);
  require(again.has_value(), "what was read can be written and read");
  require(*again == *value, "and is the same then");
}

}  // namespace
}  // namespace platter::detail

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  platter::detail::read({reinterpret_cast<const char*>(data), size});
  return 0;
}

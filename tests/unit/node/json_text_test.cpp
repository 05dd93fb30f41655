#include "block/node/json_text.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace platter {
namespace {

std::string read(std::string_view text) {
  const auto value = detail::read_json(text);
  return value ? value->dump() : value.error().message();
}

TEST(JsonText, ReadsValues) {
  EXPECT_EQ(read(R"( {"a":[1,-2.5e3,0],"b":{"c":true,"d":null,"e":false}} )"),
            R"({"a":["1","-2.5e3","0"],"b":{"c":"on","d":null,"e":"off"}})");
  EXPECT_EQ(read("{'driver':'raw','a':\"it's\",'b':'\\'\"'}"),
            R"({"a":"it's","b":"'\"","driver":"raw"})");
  EXPECT_EQ(read(R"("\u00e4\ud83d\ude00\n\t\/\\")"), "\"\u00e4\U0001f600\\n\\t/\\\\\"");
  EXPECT_EQ(read("[]"), "[]");
}

// What qemu-img 7.2 says of each is compared in tests/interop/img.
TEST(JsonText, RefusesTheRest) {
  EXPECT_EQ(read(""), "Expecting a JSON value");
  EXPECT_EQ(read("{} x"), "Expecting at most one JSON value");
  EXPECT_EQ(read("{"), "JSON parse error, premature EOI");
  EXPECT_EQ(read("tru"), "JSON parse error, invalid keyword 'tru'");
  EXPECT_EQ(read("{\"a"), "JSON parse error, stray '\"a'");
  EXPECT_EQ(read(R"({"a":1,"a":2})"), "JSON parse error, duplicate key");
  EXPECT_EQ(read(std::string(5000, '[')), "JSON nesting depth limit exceeded");
  for (const char* text :
       {"01", "-", "1.", "1e", "@", "\x01", "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"",
        R"("\ud800")", R"("\u12")", R"("\u0000")", R"("\x")", "[1 2]", "{1:2}", "]"}) {
    EXPECT_TRUE(read(text).starts_with("JSON parse error, ")) << text << ": " << read(text);
  }
}

}  // namespace
}  // namespace platter

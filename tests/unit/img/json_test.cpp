#include "tools/img/json.h"

#include <gtest/gtest.h>

namespace platter::img {
namespace {

TEST(Json, MembersComeInTheOrderOfQemusDictionaries) {
  Json info;
  for (const char* name :
       {"filename", "format", "virtual-size", "actual-size", "cluster-size", "format-specific",
        "backing-filename", "full-backing-filename", "backing-filename-format", "dirty-flag"}) {
    info.set(name, std::uint64_t{1});
  }
  EXPECT_EQ(
      info.compact(),
      R"({"backing-filename-format": 1, "virtual-size": 1, "filename": 1, "cluster-size": 1, )"
      R"("format": 1, "actual-size": 1, "format-specific": 1, "full-backing-filename": 1, )"
      R"("backing-filename": 1, "dirty-flag": 1})");
}

TEST(Json, PrettyIndentsByFour) {
  Json inner;
  inner.set("x", true);
  Json outer;
  outer.set("a", Json::Array{Json("one"), inner});
  EXPECT_EQ(
      outer.pretty(),
      "{\n    \"a\": [\n        \"one\",\n        {\n            \"x\": true\n        }\n    ]\n}");
}

TEST(Json, EmptyObjectAndArrayKeepTheirLines) {
  EXPECT_EQ(Json().pretty(), "{\n}");
  EXPECT_EQ(Json(Json::Array{}).pretty(), "[\n]");
  EXPECT_EQ(Json().compact(), "{}");
}

TEST(Json, EscapesControlsQuotesAndAllThatIsNotAscii) {
  EXPECT_EQ(json_quoted("a\xC3\xA9\"\\\t\x01"), "\"a\\u00E9\\\"\\\\\\t\\u0001\"");
  EXPECT_EQ(json_quoted("\xF0\x9F\x98\x80"), "\"\\uD83D\\uDE00\"");
  EXPECT_EQ(json_quoted("\x7F"), "\"\\u007F\"");
}

TEST(Json, BytesThatAreNotUtf8BecomeTheReplacementCharacter) {
  EXPECT_EQ(json_quoted("\xFF"), "\"\\uFFFD\"");
  EXPECT_EQ(json_quoted("\xC3"), "\"\\uFFFD\"");          // cut off
  EXPECT_EQ(json_quoted("\xC0\xAF"), "\"\\uFFFD\"");      // overlong
  EXPECT_EQ(json_quoted("\xED\xA0\x80"), "\"\\uFFFD\"");  // half of a pair
}

}  // namespace
}  // namespace platter::img

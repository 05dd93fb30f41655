#include "tools/img/json.h"

#include <gtest/gtest.h>

#include <algorithm>

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

TEST(Json, ASequenceReadsAsAnArrayAndIsMadeAsItIsWritten) {
  constexpr std::size_t kMany = 10000;
  const auto one = [](std::size_t i) {
    Json object;
    object.set("number", std::uint64_t{i});
    object.set("text", std::string(100, 'x'));
    return object;
  };
  Json::Array array;
  for (std::size_t i = 0; i < kMany; ++i) array.push_back(one(i));
  Json all;
  all.set("all", std::move(array));
  const std::string expected = all.pretty();
  std::size_t made = 0;
  std::string text;
  std::size_t longest = 0;
  std::size_t made_before_the_first_piece = 0;
  Json lazy;
  lazy.set("all", Json::Sequence{kMany, [&](std::size_t i) {
                                   ++made;
                                   return one(i);
                                 }});
  EXPECT_EQ(made, 0u);
  lazy.write_pretty([&](std::string_view piece) {
    if (text.empty()) made_before_the_first_piece = made;
    text += piece;
    longest = std::max(longest, piece.size());
  });
  EXPECT_EQ(text, expected);
  EXPECT_EQ(made, kMany);
  EXPECT_LT(made_before_the_first_piece, kMany / 10);
  EXPECT_LT(longest, expected.size() / 10);
  EXPECT_EQ(lazy.pretty(), expected);
  Json none;
  none.set("all", Json::Sequence{});
  EXPECT_EQ(none.compact(), R"({"all": []})");
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

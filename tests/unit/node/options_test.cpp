// Options: the spellings, the types, and sizes as qemu-img reads them.
#include "block/node/options.h"

#include <gtest/gtest.h>

namespace platter {
namespace {

std::uint64_t size_of(std::string_view text) {
  const Result<std::uint64_t> size = parse_size(text);
  EXPECT_TRUE(size) << text;
  return size.value_or(0);
}

int refusal(std::string_view text) {
  const Result<std::uint64_t> size = parse_size(text);
  EXPECT_FALSE(size) << text;
  return size ? 0 : size.error().code();
}

// What `qemu-img create -f raw` of 7.2 answered for each.
TEST(ParseSize, AcceptsWhatQemuImgAccepts) {
  EXPECT_EQ(size_of("512"), 512U);
  EXPECT_EQ(size_of("1k"), 1024U);
  EXPECT_EQ(size_of("1K"), 1024U);
  EXPECT_EQ(size_of("1b"), 1U);
  EXPECT_EQ(size_of("1.5G"), 1610612736U);
  EXPECT_EQ(size_of("1.5E"), 1729382256910270464U);
  EXPECT_EQ(size_of("0.1K"), 102U);
  EXPECT_EQ(size_of("1.7k"), 1741U);
  EXPECT_EQ(size_of("1.9999999999999999999k"), 1024U);
  EXPECT_EQ(size_of("1.K"), 1024U);
  EXPECT_EQ(size_of("0x10"), 16U);
  EXPECT_EQ(size_of("0x1k"), 1024U);
  EXPECT_EQ(size_of("010"), 10U);
  EXPECT_EQ(size_of(" 1"), 1U);
  EXPECT_EQ(size_of("+5"), 5U);
  EXPECT_EQ(size_of("9223372036854775807"), 9223372036854775807U);
}

TEST(ParseSize, RefusesWhatQemuImgRefuses) {
  for (const char* text :
       {"", "abc", "1.5", "1e3", "1 ", "1KB", "1.5B", "0.5", ".5K", "-1", "0x", "K", "+", "1kk"}) {
    EXPECT_EQ(refusal(text), EINVAL) << text;
  }
  for (const char* text :
       {"8E", "16E", "15E", "10000000000000000000", "18446744073709551615", "9223372036854775808",
        "99999999999999999999999999999999999999999999999999"}) {
    EXPECT_EQ(refusal(text), ERANGE) << text;
  }
}

TEST(Options, ListsAreCutAtSingleCommas) {
  EXPECT_EQ(split_commas(""), std::vector<std::string>{""});
  EXPECT_EQ(split_commas("a,b=1,,2,"), (std::vector<std::string>{"a", "b=1,2", ""}));
  EXPECT_EQ(split_commas(",,,x"), (std::vector<std::string>{",", "x"}));
}

TEST(Options, KeyvalEscapesCommas) {
  const auto options = Options::parse_keyval("file.filename=a,,b,x=,flag,y=1=2");
  ASSERT_TRUE(options);
  EXPECT_EQ(*options->peek("file.filename"), "a,b");
  EXPECT_EQ(*options->peek("x"), "");
  EXPECT_EQ(*options->peek("flag"), "on");
  EXPECT_EQ(*options->peek("y"), "1=2");
  EXPECT_FALSE(Options::parse_keyval("=3"));
  EXPECT_TRUE(Options::parse_keyval("")->empty());
}

TEST(Options, JsonIsFlattened) {
  const auto options = Options::parse_json(
      R"({"driver":"qcow2","file":{"driver":"file","filename":"x"},"lazy":true,"n":3,"list":["a",{"b":1}],"backing":null})");
  ASSERT_TRUE(options);
  EXPECT_EQ(*options, *Options::parse_keyval("driver=qcow2,file.driver=file,file.filename=x,lazy="
                                             "on,n=3,list.0=a,list.1.b=1,backing="));
  EXPECT_FALSE(Options::parse_json("{"));
  EXPECT_FALSE(Options::parse_json("[]"));
  EXPECT_FALSE(Options::parse_json(R"({"driver":null})"));
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += R"({"a":)";
  EXPECT_FALSE(Options::parse_json(deep + "1" + std::string(1000, '}')));
}

TEST(Options, JsonComesBackNested) {
  const auto options = Options::parse_keyval("driver=qcow2,file.filename=x,file.driver=file");
  EXPECT_EQ(options->to_json(), R"({"driver":"qcow2","file":{"driver":"file","filename":"x"}})");
  EXPECT_EQ(*Options::parse_json(options->to_json()), *options);
  // A reference with options beside it cannot nest.
  const auto both = Options::parse_keyval("file=n,file.x=1");
  EXPECT_EQ(*Options::parse_json(both->to_json()), *both);
}

TEST(Options, TakingChecksTheType) {
  auto options = *Options::parse_keyval(
      "b=maybe,n=-1,s=64KB,big=99999999999999999999,ok=yes,size=2M,hex=0x1F");
  EXPECT_EQ(options.take_bool("b").error().message(), "Parameter 'b' expects 'on' or 'off'");
  EXPECT_EQ(options.take_number("n").error().message(), "Parameter 'n' expects a number");
  EXPECT_TRUE(options.take_size("s").error().message().starts_with(
      "Parameter 's' expects a non-negative number below 2^64: Optional suffix"));
  EXPECT_EQ(options.take_size("big").error().message(),
            "Value '99999999999999999999' is out of range for parameter 'big'");
  EXPECT_EQ(**options.take_bool("ok"), true);
  EXPECT_EQ(**options.take_size("size"), 2U << 20);
  EXPECT_EQ(**options.take_number("hex"), 31U);
  EXPECT_FALSE(options.take_bool("ok")->has_value());
  EXPECT_TRUE(options.empty());
}

TEST(Options, ChildrenAreTakenAndPut) {
  auto options = *Options::parse_keyval("file.a=1,file.b.c=2,filex=3");
  EXPECT_TRUE(options.has_child("file"));
  const Options child = options.take_child("file");
  EXPECT_EQ(child, *Options::parse_keyval("a=1,b.c=2"));
  EXPECT_EQ(options, *Options::parse_keyval("filex=3"));
  EXPECT_FALSE(options.has_child("file"));
  options.put_child("file", child);
  EXPECT_EQ(*options.peek("file.b.c"), "2");
  EXPECT_EQ(options.all_taken("raw").error().message(),
            "Block format 'raw' does not support the option 'file.a'");
  EXPECT_EQ(options.all_taken("null-co").error().message(),
            "Block protocol 'null-co' doesn't support the option 'file.a'");
}

}  // namespace
}  // namespace platter

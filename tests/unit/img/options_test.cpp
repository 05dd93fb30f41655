#include <gtest/gtest.h>

#include "tools/img/arguments.h"
#include "tools/img/common.h"
#include "tools/img/snapshots.h"

namespace platter::img {
namespace {

constexpr Flag kFlags[] = {{'f', "format", true},
                           {'q', nullptr},
                           {kOutput, "output", true},
                           {kBackingChain, "backing-chain"}};

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

TEST(Arguments, OptionsAndNamesMix) {
  std::vector<std::string> words = {"info",          "a",  "-qf", "raw", "b", "--back",
                                    "--output=json", "--", "-q"};
  std::vector<char*> argv = pointers(words);
  Arguments arguments(static_cast<int>(words.size()), argv.data(), kFlags);
  std::string seen;
  while (const auto option = arguments.next()) {
    seen += option->id < 256 ? std::string(1, static_cast<char>(option->id))
                             : std::to_string(option->id);
    seen += "(" + std::string(option->value) + ")";
  }
  EXPECT_FALSE(arguments.failed());
  EXPECT_EQ(seen, "q()f(raw)" + std::to_string(kBackingChain) + "()" + std::to_string(kOutput) +
                      "(json)");
  EXPECT_EQ(arguments.rest(), (std::vector<std::string>{"a", "b", "-q"}));
}

TEST(Arguments, UnknownOptionsAndMissingValuesAreReported) {
  for (const char* bad : {"-Z", "--nonsense", "-f"}) {
    std::vector<std::string> words = {"info", bad};
    std::vector<char*> argv = pointers(words);
    Arguments arguments(2, argv.data(), kFlags);
    ::testing::internal::CaptureStderr();
    EXPECT_FALSE(arguments.next());
    EXPECT_TRUE(arguments.failed());
    EXPECT_NE(::testing::internal::GetCapturedStderr().find(bad), std::string::npos);
  }
}

TEST(CacheModes, EachIsWhatItSays) {
  OpenFlags flags;
  EXPECT_TRUE(parse_cache("none", flags));
  EXPECT_TRUE(flags.direct && !flags.writethrough && !flags.no_flush);
  EXPECT_TRUE(parse_cache("writethrough", flags));
  EXPECT_TRUE(!flags.direct && flags.writethrough);
  EXPECT_TRUE(parse_cache("directsync", flags));
  EXPECT_TRUE(flags.direct && flags.writethrough);
  EXPECT_TRUE(parse_cache("unsafe", flags));
  EXPECT_TRUE(!flags.direct && flags.no_flush);
  EXPECT_TRUE(parse_cache("writeback", flags));
  EXPECT_TRUE(!flags.direct && !flags.writethrough && !flags.no_flush);
  EXPECT_FALSE(parse_cache("foo", flags));
}

TEST(CreateOptionLists, AreJoinedAndChecked) {
  std::optional<std::string> all;
  EXPECT_TRUE(add_create_options(all, "a=1"));
  EXPECT_TRUE(add_create_options(all, "b=2,,3"));
  EXPECT_EQ(*all, "a=1,b=2,,3");
  ::testing::internal::CaptureStderr();
  EXPECT_FALSE(add_create_options(all, ""));
  EXPECT_FALSE(add_create_options(all, "a=1,"));
  EXPECT_FALSE(add_create_options(all, ",a=1"));
  EXPECT_TRUE(add_create_options(all, "c=x,,"));  // a comma at the end of the value
  ::testing::internal::GetCapturedStderr();
}

TEST(CreateOptionLists, HelpIsAWholeElement) {
  EXPECT_TRUE(asks_for_help("help"));
  EXPECT_TRUE(asks_for_help("a=1,?"));
  EXPECT_FALSE(asks_for_help("a=help"));
  EXPECT_FALSE(asks_for_help("a=1,,help"));
}

TEST(CreateOptionLists, ValuesBecomePlain) {
  CreateOptions known;
  known.all = {{.name = "cluster_size", .type = CreateOption::Type::kSize, .help = {}},
               {.name = "lazy_refcounts", .type = CreateOption::Type::kBool, .help = {}},
               {.name = "refcount_bits", .type = CreateOption::Type::kNumber, .help = {}}};
  const auto parsed = parse_create_options(known, "cluster_size=1M,lazy_refcounts,refcount_bits=8");
  ASSERT_TRUE(parsed);
  EXPECT_EQ(*parsed->peek("cluster_size"), "1048576");
  EXPECT_EQ(*parsed->peek("lazy_refcounts"), "on");
  EXPECT_EQ(*parsed->peek("refcount_bits"), "8");
  EXPECT_EQ(*parse_create_options(known, "nolazy_refcounts")->peek("lazy_refcounts"), "off");
  EXPECT_EQ(parse_create_options(known, "foo=1").error().message(), "Invalid parameter 'foo'");
  EXPECT_FALSE(parse_create_options(known, "cluster_size=x"));
  EXPECT_FALSE(parse_create_options(known, "lazy_refcounts=maybe"));
  EXPECT_FALSE(parse_create_options(known, "refcount_bits=8k"));
}

TEST(SnapshotNames, ByPartsOrWhole) {
  EXPECT_EQ(parse_snapshot_name("s1")->either, "s1");
  const auto parts = parse_snapshot_name("snapshot.id=2,snapshot.name=x");
  EXPECT_EQ(parts->id, "2");
  EXPECT_EQ(parts->name, "x");
  ::testing::internal::CaptureStderr();
  EXPECT_FALSE(parse_snapshot_name("snapshot.foo=1"));
  ::testing::internal::GetCapturedStderr();
}

TEST(Objects, SecretsAreCheckedAndCountedOnce) {
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(take_object("secret,id=sec0,data=abc"));
  EXPECT_FALSE(take_object("secret,id=sec0,data=abc"));
  EXPECT_FALSE(take_object("secret"));
  EXPECT_FALSE(take_object("secret,id=1,data=x"));
  EXPECT_FALSE(take_object("secret,id=sec1"));
  EXPECT_FALSE(take_object("secret,id=sec2,data=x,more=y"));
  EXPECT_FALSE(take_object("window,id=w"));
  ::testing::internal::GetCapturedStderr();
}

}  // namespace
}  // namespace platter::img

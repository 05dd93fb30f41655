// Opening nodes: filenames, options and json names, probing, names, flags.
#include "block/adapters/memory.h"
#include "block/node/graph.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

Result<Edge> open(OpenRequest request) {
  return run([&] { return open_node(request); });
}

OpenRequest by_options(std::string_view text) {
  OpenRequest request;
  request.options = *Options::parse_keyval(text);
  return request;
}

OpenRequest by_name(std::string name, std::string format = {}) {
  OpenRequest request;
  request.filename = std::move(name);
  request.format = std::move(format);
  return request;
}

class Open : public ::testing::Test {
 protected:
  void SetUp() override { make_memory_disk("disk", 1 << 20); }
  void TearDown() override { remove_memory_disk("disk"); }
};

TEST_F(Open, TheThreeSpellingsGiveTheSameGraph) {
  for (const OpenRequest& request :
       {by_name("memory:disk", "raw"), by_options("driver=raw,file.driver=memory,file.name=disk"),
        by_name(R"(json:{"driver":"raw","file":{"driver":"memory","name":"disk"}})"),
        by_name(R"(json:{"driver":"memory","name":"disk"})", "raw"),
        by_options("driver=raw,file.filename=memory:disk")}) {
    auto edge = open(request);
    ASSERT_OK(edge);
    EXPECT_EQ((*edge)->driver_name(), "raw");
    EXPECT_FALSE((*edge)->probed());
    ASSERT_TRUE((*edge)->storage());
    EXPECT_EQ((*edge)->storage()->driver_name(), "memory");
    EXPECT_EQ((*edge)->size(), 1U << 20);
    EXPECT_OK(close(*edge));
  }
}

TEST_F(Open, WithoutAFormatItIsProbed) {
  auto edge = open(by_name("memory:disk"));
  ASSERT_OK(edge);
  EXPECT_EQ((*edge)->driver_name(), "raw");
  EXPECT_TRUE((*edge)->probed());
  EXPECT_OK(close(*edge));
}

TEST_F(Open, ErrorsAreWordedAsScriptsKnowThem) {
  const auto refused = [](OpenRequest request) { return message_of(open(std::move(request))); };
  EXPECT_EQ(refused(by_name("json:[]")), "Could not open 'json:[]': Invalid JSON object given");
  EXPECT_EQ(refused(by_name(R"(json:{"driver":"foo"})")),
            R"(Could not open 'json:{"driver":"foo"}': Unknown driver 'foo')");
  EXPECT_EQ(
      refused(by_name(R"(json:{"driver":"raw"})")),
      R"(Could not open 'json:{"driver":"raw"}': A block device must be specified for "file")");
  EXPECT_EQ(refused(by_name("a:b")), "Could not open 'a:b': Unknown protocol 'a'");
  EXPECT_EQ(refused(by_name("memory:disk", "nope")),
            "Could not open 'memory:disk': Unknown driver 'nope'");
  EXPECT_EQ(
      refused(by_name(R"(json:{"driver":"null-co","x":1})")),
      R"(Could not open 'json:{"driver":"null-co","x":1}': Block protocol 'null-co' doesn't support the option 'x')");
  EXPECT_EQ(
      refused(by_name(R"(json:{"driver":"raw","file":"xx"})")),
      R"(Could not open 'json:{"driver":"raw","file":"xx"}': Cannot find device='xx' nor node-name='xx')");
  OpenRequest flags = by_name("memory:disk", "raw");
  flags.options.set("discard", "x");
  EXPECT_EQ(refused(flags), "Could not open 'memory:disk': Invalid discard option");
  flags.options = {};
  flags.options.set("read-only", "maybe");
  EXPECT_EQ(refused(flags),
            "Could not open 'memory:disk': Parameter 'read-only' expects 'on' or 'off'");
  flags.options = {};
  flags.options.set("read-only", "off");
  flags.options.set("force-share", "on");
  EXPECT_EQ(refused(flags),
            "Could not open 'memory:disk': force-share=on can only be used with read-only images");
}

TEST_F(Open, OptionsBecomeFlags) {
  auto edge =
      open(by_options("driver=raw,read-only=off,cache.direct=on,cache.no-flush=on,discard=unmap,"
                      "detect-zeroes=unmap,"
                      "node-name=top,file.driver=memory,file.name=disk,file.node-name=bottom"));
  ASSERT_OK(edge);
  const OpenFlags flags = (*edge)->flags();
  EXPECT_FALSE(flags.read_only);
  EXPECT_TRUE(flags.direct);
  EXPECT_TRUE(flags.no_flush);
  EXPECT_TRUE(flags.discard_unmap);
  EXPECT_EQ(flags.detect_zeroes, OpenFlags::DetectZeroes::kUnmap);
  const NodePtr bottom = find_node("bottom");
  ASSERT_TRUE(bottom);
  EXPECT_EQ(bottom.get(), (*edge)->storage());
  EXPECT_TRUE(bottom->flags().direct);
  EXPECT_EQ(bottom->flags().detect_zeroes, OpenFlags::DetectZeroes::kOff);
  EXPECT_EQ(message_of(open(by_options("driver=null-co,node-name=top"))),
            "Could not open '': Duplicate nodes with node-name='top'");
  EXPECT_OK(close(*edge));
}

TEST_F(Open, ANodeNameIsAReference) {
  auto bottom = open(by_options("driver=memory,name=disk,node-name=shared"));
  ASSERT_OK(bottom);
  auto top = open(by_options("driver=raw,file=shared"));
  ASSERT_OK(top);
  EXPECT_EQ((*top)->storage(), bottom->get());
  EXPECT_OK(close(*top));
  EXPECT_EQ(read_bytes(**bottom, 0, 4), filled(4, 0));
  EXPECT_OK(close(*bottom));
  EXPECT_FALSE(find_node("shared"));
}

TEST(ResolveBacking, RelativeNamesAreTakenFromTheOverlaysDirectory) {
  EXPECT_EQ(*resolve_backing("/a/b/o.qcow2", "base.raw"), "/a/b/base.raw");
  EXPECT_EQ(*resolve_backing("o.qcow2", "base.raw"), "base.raw");
  EXPECT_EQ(*resolve_backing("d/o.qcow2", "../base.raw"), "d/../base.raw");
  EXPECT_EQ(*resolve_backing("d/o.qcow2", "/base.raw"), "/base.raw");
  EXPECT_EQ(*resolve_backing("d/o.qcow2", "nbd:host:10"), "nbd:host:10");
  EXPECT_EQ(*resolve_backing("d/o.qcow2", "json:{}"), "json:{}");
  EXPECT_EQ(*resolve_backing("memory:o", "base"), "memory:base");
  EXPECT_FALSE(resolve_backing("json:{\"driver\":\"qcow2\"}", "base"));
}

}  // namespace
}  // namespace platter

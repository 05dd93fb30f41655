// Backing chains: opening, loops, depth, and how a range reads through them.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "block/adapters/memory.h"
#include "unit/node/overlay_driver.h"
#include "unit/node/support.h"
#include "unit/scratch_dir.h"

namespace platter {
namespace {

using namespace testing;

constexpr std::uint64_t kBlock = OverlayDriver::kBlock;

Result<Edge> open(std::string filename, std::string format = {}, OpenFlags flags = {}) {
  OpenRequest request;
  request.filename = std::move(filename);
  request.format = std::move(format);
  request.flags = flags;
  return run([&] { return open_node(request); });
}

TEST(Chain, OpensAndReadsThrough) {
  make_memory_disk("base", 4 * kBlock)->write(0, IoVec::of_const(bytes_of(4 * kBlock, 1)));
  make_overlay_image("mid", 4 * kBlock, "base", "raw");
  make_overlay_image("top", 4 * kBlock, "mid");
  auto edge = open("memory:top");
  ASSERT_OK(edge);
  EXPECT_EQ((*edge)->driver_name(), "testovl");
  ASSERT_TRUE((*edge)->backing());
  ASSERT_TRUE((*edge)->backing()->backing());
  EXPECT_EQ((*edge)->backing()->backing()->driver_name(), "raw");
  EXPECT_FALSE((*edge)->backing()->backing()->probed());
  EXPECT_EQ((*edge)->backing()->filename(), "memory:mid");
  EXPECT_EQ(read_bytes(**edge, 0, 4 * kBlock), bytes_of(4 * kBlock, 1));
  EXPECT_OK(close(*edge));
}

TEST(Chain, ABackingFileMayBeDetachedOrReplaced) {
  make_memory_disk("base", kBlock)->write(0, IoVec::of_const(filled(kBlock, 7)));
  make_overlay_image("top", kBlock, "nowhere");
  auto missing = open("memory:top");
  EXPECT_EQ(message_of(missing),
            "Could not open 'memory:top': Could not open backing file: Could not open "
            "'memory:nowhere': No such "
            "memory disk");
  for (
      const auto& [name, value] : std::vector<std::pair<std::string, int>>{
          {R"(json:{"driver":"testovl","file.filename":"memory:top","backing":null})", 0},
          {R"(json:{"driver":"testovl","file.filename":"memory:top","backing":{"driver":"raw","file.filename":"memory:base"}})",
           7},
      }) {
    auto edge = open(name);
    ASSERT_OK(edge);
    EXPECT_EQ(read_bytes(**edge, 0, kBlock), filled(kBlock, value));
    EXPECT_OK(close(*edge));
  }
  for (const char* name :
       {"memory:top",
        R"(json:{"driver":"testovl","file":{"driver":"memory","name":"top"},"backing":null})"}) {
    auto alone = open(name, "testovl", OpenFlags{.no_backing = true});
    ASSERT_OK(alone);
    EXPECT_FALSE((*alone)->backing());
    EXPECT_OK(close(*alone));
  }
}

TEST(Chain, LoopsOfOneTwoAndThreeAreRefused) {
  make_overlay_image("l1", kBlock, "l1");
  EXPECT_EQ(message_of(open("memory:l1")),
            "Could not open 'memory:l1': Backing file 'memory:l1' creates an infinite loop");
  make_overlay_image("a", kBlock, "b");
  make_overlay_image("b", kBlock, "c");
  make_overlay_image("c", kBlock, "a");
  const auto refused = open("memory:a");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ELOOP);
  EXPECT_NE(refused.error().message().find("'memory:a' creates an infinite loop"),
            std::string::npos);
}

TEST(Chain, TheSameFileUnderTwoNamesIsALoop) {
  // The name is a file's here, so that device and inode are compared.
  const ScratchDir scratch;
  const std::string& dir = scratch.path();
  std::ofstream(dir + "/x") << "x";
  std::filesystem::create_hard_link(dir + "/x", dir + "/y");
  make_overlay_image("o", kBlock,
                     R"(json:{"driver":"testovl","filename":")" + dir +
                         "/y\",\"file\":{\"driver\":\"memory\",\"name\":\"o\"}}");
  const auto refused = open(R"(json:{"driver":"testovl","filename":")" + dir +
                            "/x\",\"file\":{\"driver\":\"memory\",\"name\":\"o\"}}");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ELOOP) << message_of(refused);
}

// Each Task starts on its caller's stack: a chain that recursed would need megabytes.
TEST(Chain, AThousandLayersOpenReadAndClose) {
  constexpr int kDepth = 1200;
  make_memory_disk("d0", kBlock)->write(0, IoVec::of_const(filled(kBlock, 9)));
  for (int i = 1; i <= kDepth; ++i) {
    make_overlay_image("d" + std::to_string(i), kBlock, "d" + std::to_string(i - 1),
                       i == 1 ? "raw" : "testovl");
  }
  const int closed_before = OverlayDriver::closed;
  auto edge = open("memory:d" + std::to_string(kDepth));
  ASSERT_OK(edge);
  EXPECT_EQ(read_bytes(**edge, 0, kBlock), filled(kBlock, 9));
  const auto extent = run([&] { return chain_extent(**edge, nullptr, 0, kBlock); });
  ASSERT_OK(extent);
  EXPECT_EQ(extent->depth, static_cast<unsigned>(kDepth));
  EXPECT_OK(close(*edge));
  EXPECT_EQ(OverlayDriver::closed - closed_before, kDepth);
  for (int i = 0; i <= kDepth; ++i) remove_memory_disk("d" + std::to_string(i));
}

TEST(Chain, AChainThatIsTooLongIsToldOnce) {
  constexpr int kDepth = 2005;
  make_memory_disk("d0", kBlock);
  for (int i = 1; i <= kDepth; ++i) {
    make_overlay_image("d" + std::to_string(i), kBlock, "d" + std::to_string(i - 1),
                       i == 1 ? "raw" : "testovl");
  }
  const auto refused = open("memory:d" + std::to_string(kDepth));
  EXPECT_EQ(message_of(refused),
            "Could not open 'memory:d2005': Could not open the backing file of 'memory:d6': the "
            "chain is longer than 2000 images");
  for (int i = 0; i <= kDepth; ++i) remove_memory_disk("d" + std::to_string(i));
}

TEST(Chain, AThousandLayersCanBeAbandoned) {
  constexpr int kDepth = 1200;
  NodePtr below = make_memory_node("d0", kBlock);
  for (int i = 1; i <= kDepth; ++i) {
    auto next = run([&] {
      return make_overlay_node("d" + std::to_string(i), make_memory_node("f", kBlock), below,
                               kBlock);
    });
    ASSERT_OK(next);
    below = *next;
  }
  below.reset();
}

TEST(Chain, ExtentsTellDepthAndPlace) {
  NodePtr base = make_memory_node("base", 3 * kBlock);
  NodePtr mid =
      *run([&] { return make_overlay_node("mid", make_memory_node("midf", 0), base, 6 * kBlock); });
  NodePtr top =
      *run([&] { return make_overlay_node("top", make_memory_node("topf", 0), mid, 8 * kBlock); });
  ASSERT_OK(write_bytes(*base, 0, filled(kBlock, 1)));
  ASSERT_OK(write_bytes(*mid, kBlock, filled(kBlock, 2)));
  ASSERT_OK(write_bytes(*top, 2 * kBlock, filled(kBlock, 3)));

  const auto at = [&](std::uint64_t block, BlockNode* stop = nullptr) {
    return *run([&] { return chain_extent(*top, stop, block * kBlock, 8 * kBlock); });
  };
  ChainExtent e = at(0);
  EXPECT_EQ(e.depth, 2U);
  EXPECT_TRUE(e.present && e.data && !e.zero);
  EXPECT_EQ(e.length, kBlock);
  EXPECT_EQ(e.node, base.get());
  e = at(1);
  EXPECT_EQ(e.depth, 1U);
  EXPECT_EQ(e.node, mid->storage());
  EXPECT_EQ(e.host_offset, OverlayDriver::kHeader + kBlock);
  e = at(2);
  EXPECT_EQ(e.depth, 0U);
  EXPECT_EQ(e.length, kBlock);
  // Behind the end of the base, of the middle: zeroes that count as the shorter layer's.
  e = at(3);
  EXPECT_EQ(e.depth, 2U);
  EXPECT_TRUE(e.present && e.zero && !e.data);
  EXPECT_EQ(e.length, 3 * kBlock);
  e = at(6);
  EXPECT_EQ(e.depth, 1U);
  EXPECT_TRUE(e.present && e.zero);
  EXPECT_EQ(e.length, 2 * kBlock);
  // Down to a base that is not asked.
  e = at(0, base.get());
  EXPECT_FALSE(e.present);
  e = at(1, base.get());
  EXPECT_TRUE(e.present);
  EXPECT_FALSE(run([&] { return chain_extent(*top, nullptr, 8 * kBlock, 1); }));
}

}  // namespace
}  // namespace platter

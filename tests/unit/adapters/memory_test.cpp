// memory and null.
#include "block/adapters/memory.h"

#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

Result<Edge> open(std::string filename, std::string_view options = {}) {
  OpenRequest request;
  request.filename = std::move(filename);
  request.options = *Options::parse_keyval(options);
  request.permissions = Permissions::writer();
  request.flags.read_only = false;
  return run([&] { return open_node(request); });
}

TEST(MemoryDisk, IsSparse) {
  constexpr std::uint64_t kPage = MemoryDisk::kPage;
  MemoryDisk disk(std::uint64_t{1} << 40);
  disk.write(10 * kPage - 1, IoVec::of_const(filled(2, 7)));
  EXPECT_EQ(disk.allocated(), 2 * kPage);
  std::uint64_t length = disk.size();
  EXPECT_FALSE(disk.stored(0, length));
  EXPECT_EQ(length, 9 * kPage);
  length = disk.size() - 9 * kPage;
  EXPECT_TRUE(disk.stored(9 * kPage, length));
  EXPECT_EQ(length, 2 * kPage);
  disk.zero(0, 10 * kPage);
  EXPECT_EQ(disk.allocated(), kPage);
  std::vector<std::byte> back(2);
  disk.read(10 * kPage - 1, IoVec(std::span(back)));
  EXPECT_EQ(back[0], std::byte{0});
  EXPECT_EQ(back[1], std::byte{7});
}

TEST(MemoryDisk, ShrinkingForgets) {
  MemoryDisk disk(100);
  disk.write(0, IoVec::of_const(filled(100, 1)));
  disk.resize(50);
  disk.resize(100);
  std::vector<std::byte> back(100);
  disk.read(0, IoVec(std::span(back)));
  auto expected = filled(100, 0);
  std::fill_n(expected.begin(), 50, std::byte{1});
  EXPECT_EQ(back, expected);
}

TEST(Memory, NamedDisksOutliveTheirNodes) {
  auto first = open("", "driver=memory,name=kept,size=4k");
  ASSERT_OK(first);
  EXPECT_EQ((*first)->size(), 4096U);
  ASSERT_OK(write_bytes(**first, 0, filled(100, 3)));
  ASSERT_OK(run([&] { return first->detach(); }));
  auto second = open("", "driver=memory,filename=memory:kept");
  ASSERT_OK(second);
  EXPECT_EQ(read_bytes(**second, 0, 100), filled(100, 3));
  EXPECT_EQ((*second)->driver().exact_filename(), "memory:kept");
  ASSERT_OK(run([&] { return second->detach(); }));
  remove_memory_disk("kept");
  EXPECT_EQ(message_of(open("memory:kept")), "Could not open 'memory:kept': No such memory disk");
}

TEST(Memory, ExtentsTellHoles) {
  auto edge = open("", "driver=memory,size=1M");
  ASSERT_OK(edge);
  ASSERT_OK(write_bytes(**edge, 128 << 10, filled(10, 1)));
  auto extent = run([&] { return (*edge)->extent(0, 1 << 20); });
  EXPECT_EQ(extent->kind, ExtentKind::kZero);
  EXPECT_EQ(extent->length, 128U << 10);
  extent = run([&] { return (*edge)->extent((128 << 10) + 5, 1 << 20); });
  EXPECT_EQ(extent->kind, ExtentKind::kData);
  EXPECT_EQ(extent->host_offset, (128U << 10) + 5);
  EXPECT_EQ(extent->node, edge->get());
  ASSERT_OK(run([&] { return edge->detach(); }));
}

TEST(Memory, CanActAsADemandingDevice) {
  auto edge =
      open("", "driver=memory,size=64k,request-alignment=512,memory-alignment=512,max-transfer=4k");
  ASSERT_OK(edge);
  ASSERT_OK(write_bytes(**edge, 100, bytes_of(20000, 1)));
  EXPECT_EQ(read_bytes(**edge, 100, 20000), bytes_of(20000, 1));
  ASSERT_OK(run([&] { return edge->detach(); }));
  EXPECT_FALSE(open("", "driver=memory,request-alignment=3"));
  EXPECT_FALSE(open("", "driver=memory,request-alignment=512,max-transfer=100"));
}

TEST(Null, HasASizeAndKeepsNothing) {
  auto edge = open("", "driver=null-co,size=1M,read-zeroes=on,latency-ns=1000");
  ASSERT_OK(edge);
  EXPECT_EQ((*edge)->size(), 1U << 20);
  ASSERT_OK(write_bytes(**edge, 0, filled(512, 1)));
  EXPECT_EQ(read_bytes(**edge, 0, 512), filled(512, 0));
  EXPECT_EQ(run([&] { return (*edge)->extent(0, 512); })->kind, ExtentKind::kZero);
  EXPECT_OK(run([&] { return (*edge)->flush(); }));
  ASSERT_OK(run([&] { return edge->detach(); }));
  auto plain = open("null-co://");
  ASSERT_OK(plain);
  EXPECT_EQ((*plain)->size(), 1U << 30);
  EXPECT_EQ(read_bytes(**plain, 0, 4), filled(4, 0xee));  // the buffer as it was
  ASSERT_OK(run([&] { return plain->detach(); }));
}

}  // namespace
}  // namespace platter

// The table of interrupt routes: what the kernel is given, and what is remembered when it refuses.
#include "tools/run/message_routes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <map>

namespace platter::run {
namespace {

struct RoutesTest : ::testing::Test {
  std::map<unsigned, std::uint32_t> sent() const {
    std::map<unsigned, std::uint32_t> messages;
    for (const kvm_irq_routing_entry& entry : last) {
      if (entry.type == KVM_IRQ_ROUTING_MSI) messages[entry.gsi] = entry.u.msi.data;
    }
    return messages;
  }
  unsigned commits = 0;
  bool refuse = false;
  std::vector<kvm_irq_routing_entry> last;
  MessageRoutes routes{[this](std::span<const kvm_irq_routing_entry> entries) -> Result<void> {
    ++commits;
    if (refuse) return fail(ENOMEM, "no memory for routes");
    last.assign(entries.begin(), entries.end());
    return {};
  }};
};

TEST_F(RoutesTest, TheWholeTableIsGivenAtEachChange) {
  const unsigned first = *routes.allocate(), second = *routes.allocate();
  EXPECT_EQ(first, MessageRoutes::kLines);
  EXPECT_EQ(second, first + 1);
  ASSERT_TRUE(routes.set(second, 0xfee01000, 0x41));
  EXPECT_EQ(last.size(), 16U + MessageRoutes::kLines + 1);
  EXPECT_EQ(sent(), (std::map<unsigned, std::uint32_t>{{second, 0x41}}));
  ASSERT_TRUE(routes.set(first, 0xfee00000, 0x40));
  EXPECT_EQ(sent(), (std::map<unsigned, std::uint32_t>{{first, 0x40}, {second, 0x41}}));
  EXPECT_TRUE(routes.set(first, 0xfee00000, 0x40));
  EXPECT_EQ(commits, 2U) << "nothing changed";
  routes.free(second);
  EXPECT_FALSE(routes.set(second, 0, 0));
  EXPECT_FALSE(routes.set(4, 0, 0));
  EXPECT_EQ(*routes.allocate(), second);
}

TEST_F(RoutesTest, ARefusedMessageIsNotTakenForSet) {
  const unsigned gsi = *routes.allocate();
  ASSERT_TRUE(routes.set(gsi, 0xfee00000, 0x40));
  refuse = true;
  EXPECT_FALSE(routes.set(gsi, 0xfee00000, 0x50));
  EXPECT_FALSE(routes.set(gsi, 0xfee00000, 0x50)) << "the kernel still does not know it";
  refuse = false;
  EXPECT_TRUE(routes.set(gsi, 0xfee00000, 0x50));
  EXPECT_EQ(sent(), (std::map<unsigned, std::uint32_t>{{gsi, 0x50}}));
}

TEST_F(RoutesTest, ThereIsABound) {
  for (unsigned i = 0; i < MessageRoutes::kMaxGsis; ++i) ASSERT_TRUE(routes.allocate());
  EXPECT_FALSE(routes.allocate());
}

}  // namespace
}  // namespace platter::run

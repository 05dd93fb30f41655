// Who may use a node beside whom, what the driver is told, and reopening.
#include "block/adapters/memory.h"
#include "block/node/registry.h"
#include "unit/node/overlay_driver.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

struct Recorder : MemoryDriver {
  Recorder() : MemoryDriver(std::make_shared<MemoryDisk>(4096)) {}
  Task<Result<void>> do_set_permissions(Permissions cumulative) override {
    if (refuse) co_return fail(EAGAIN, "Failed to get \"write\" lock");
    told.push_back(cumulative);
    co_return {};
  }
  std::vector<Permissions> told;
  bool refuse = false;
};

const DriverType kRecorder{.name = "recorder"};

class EdgeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto driver = std::make_unique<Recorder>();
    recorder_ = driver.get();
    node_ =
        BlockNode::create(kRecorder, std::move(driver), "disk", "", OpenFlags{.read_only = false});
  }
  Result<Edge> attach(std::string user, Permissions permissions) {
    return run([&] { return Edge::attach(node_, std::move(user), permissions); });
  }
  static Result<void> detach(Edge& edge) {
    return run([&] { return edge.detach(); });
  }

  NodePtr node_;
  Recorder* recorder_ = nullptr;
};

TEST_F(EdgeTest, ConflictsNameBothHolders) {
  auto writer = attach("device vda", Permissions::writer());
  ASSERT_OK(writer);
  const auto second = attach("job backup", Permissions::writer());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().message(),
            "Conflicts with use by device vda, which does not allow 'write, resize' on node "
            "'disk', to job backup");
  const auto reader = attach("export e", Permissions::reader());
  ASSERT_FALSE(reader);
  EXPECT_EQ(reader.error().message(),
            "Conflicts with use by device vda, which uses 'write, resize' on node 'disk', which "
            "export e does not allow");
  auto onlooker = attach("onlooker", Permissions::unsafe_reader());
  EXPECT_OK(onlooker);
  EXPECT_OK(detach(*onlooker));
  EXPECT_OK(detach(*writer));
}

TEST_F(EdgeTest, TheDriverHearsTheSumOfAllUsers) {
  auto one = attach("one", {.need = perm::kConsistentRead, .shared = perm::kAll});
  auto two = attach("two", {.need = perm::kWrite, .shared = perm::kConsistentRead | perm::kResize});
  ASSERT_OK(two);
  EXPECT_EQ(recorder_->told.back().need, perm::kConsistentRead | perm::kWrite);
  EXPECT_EQ(recorder_->told.back().shared, perm::kConsistentRead | perm::kResize);
  ASSERT_OK(run([&] { return two->set_permissions({.need = 0, .shared = perm::kAll}); }));
  EXPECT_EQ(recorder_->told.back().need, perm::kConsistentRead);
  EXPECT_EQ(recorder_->told.back().shared, perm::kAll);
  EXPECT_OK(detach(*one));
  EXPECT_EQ(recorder_->told.back().need, 0U);
  EXPECT_OK(detach(*two));
}

TEST_F(EdgeTest, ARefusalChangesNothing) {
  auto one = attach("one", {.need = perm::kConsistentRead, .shared = perm::kAll});
  recorder_->refuse = true;
  EXPECT_FALSE(attach("two", {.need = perm::kWrite, .shared = perm::kAll}));
  EXPECT_FALSE(
      run([&] { return one->set_permissions({.need = perm::kWrite, .shared = perm::kAll}); }));
  EXPECT_EQ(one->permissions().need, perm::kConsistentRead);
  recorder_->refuse = false;
  // Had either left a trace, a user that shares no writing would be refused.
  auto three = attach("three", {.need = 0, .shared = perm::kConsistentRead});
  EXPECT_OK(three);
  EXPECT_OK(detach(*three));
  EXPECT_OK(detach(*one));
}

TEST_F(EdgeTest, AReadOnlyNodeHasNoWriters) {
  NodePtr node = BlockNode::create(kRecorder, std::make_unique<Recorder>(), "cd", "",
                                   OpenFlags{.read_only = true});
  const auto refused = run([&] { return Edge::attach(node, "device", Permissions::writer()); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), EACCES);
}

TEST_F(EdgeTest, MovingAnEdgeKeepsTheHold) {
  auto attached = attach("one", Permissions::writer());
  Edge moved = std::move(*attached);
  Edge again;
  again = std::move(moved);
  EXPECT_FALSE(attach("two", Permissions::writer()));
  {
    const Edge dropped = std::move(again);
  }
  auto two = attach("two", Permissions::writer());
  EXPECT_OK(two);
  EXPECT_OK(detach(*two));
}

class Reopen : public ::testing::Test {
 protected:
  void SetUp() override {
    make_overlay_image("reopened", 8192, "");
    OpenRequest request;
    request.filename = "memory:reopened";
    auto opened = run([&] { return open_node(request); });
    ASSERT_OK(opened);
    edge_ = std::move(*opened);
  }
  void TearDown() override {
    OverlayDriver::refuse_reopen = false;
    EXPECT_OK(run([&] { return edge_.detach(); }));
    remove_memory_disk("reopened");
  }
  Result<void> change(bool read_only) {
    OpenFlags flags = edge_->flags();
    flags.read_only = read_only;
    return run([&] { return reopen(*edge_, flags); });
  }
  OverlayDriver& driver() { return static_cast<OverlayDriver&>(edge_->driver()); }

  Edge edge_;
};

TEST_F(Reopen, MakesANodeAndItsStorageWritableAndBack) {
  EXPECT_FALSE(write_bytes(*edge_, 0, filled(4096, 1)));
  ASSERT_OK(change(false));
  EXPECT_FALSE(edge_->storage()->read_only());
  EXPECT_EQ(driver().children()[0]->permissions().need & perm::kWrite, perm::kWrite);
  ASSERT_OK(run([&] { return edge_.set_permissions(Permissions::writer()); }));
  EXPECT_OK(write_bytes(*edge_, 0, filled(4096, 1)));
  // Not under a writer.
  const auto refused = change(true);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), EPERM);
  EXPECT_OK(write_bytes(*edge_, 0, filled(4096, 2)));
  ASSERT_OK(run([&] { return edge_.set_permissions(Permissions::reader()); }));
  ASSERT_OK(change(true));
  EXPECT_TRUE(edge_->storage()->read_only());
  EXPECT_EQ(driver().children()[0]->permissions().need & perm::kWrite, 0U);
  EXPECT_EQ(driver().commits, 2);
}

TEST_F(Reopen, AFailureLeavesAllAsItWas) {
  OverlayDriver::refuse_reopen = true;
  EXPECT_FALSE(change(false));
  EXPECT_TRUE(edge_->read_only());
  EXPECT_TRUE(edge_->storage()->read_only());
  EXPECT_EQ(driver().commits, 0);
  EXPECT_EQ(driver().aborts, 0);  // its own preparation failed
  OverlayDriver::refuse_reopen = false;
  // Another user of the file shares no writing: rights cannot be had, what was prepared is undone.
  auto other = run(
      [&] { return Edge::attach(driver().children()[0]->node(), "other", Permissions::reader()); });
  ASSERT_OK(other);
  EXPECT_FALSE(change(false));
  EXPECT_TRUE(edge_->read_only());
  EXPECT_TRUE(edge_->storage()->read_only());
  EXPECT_EQ(driver().aborts, 1);
  EXPECT_EQ(read_bytes(*edge_, 0, 16), filled(16, 0));
  EXPECT_OK(run([&] { return other->detach(); }));
}

}  // namespace
}  // namespace platter

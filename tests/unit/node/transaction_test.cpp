// Changes of several nodes at once: all of them, or none.
#include "block/node/transaction.h"

#include <gtest/gtest.h>

#include "block/adapters/memory.h"
#include "unit/node/overlay_driver.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace platter::testing;  // NOLINT: helpers of these tests

Task<Result<void>> succeed(bool* done) {
  *done = true;
  co_return {};
}
Task<Result<void>> run_out_of_space() { co_return fail_errno(ENOSPC); }

class TransactionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    make_memory_disk("one", 8192)->write(0, IoVec::of_const(bytes_of(8192, 1)));
    make_memory_disk("two", 8192)->write(0, IoVec::of_const(bytes_of(8192, 2)));
    make_overlay_image("top", 8192, "one", "raw");
    make_overlay_image("side", 8192, "");
    top_ = open("memory:top", "testovl");
    side_ = open("memory:side", "testovl");
  }
  void TearDown() override {
    for (Edge* edge : {&top_, &side_, &other_}) EXPECT_OK(run([&] { return edge->detach(); }));
    for (const char* name : {"top", "side", "one", "two"}) remove_memory_disk(name);
  }
  static Edge open(std::string filename, std::string format) {
    OpenRequest request;
    request.filename = std::move(filename);
    request.format = std::move(format);
    auto opened = run([&] { return open_node(std::move(request)); });
    EXPECT_OK(opened);
    return opened ? std::move(*opened) : Edge();
  }
  // Somebody who does not let others write to the file of `side`.
  void hold_side() {
    BlockNode& file = *side_->storage();
    auto other =
        run([&] { return Edge::attach(file.shared_from_this(), "other", Permissions::reader()); });
    ASSERT_OK(other);
    other_ = std::move(*other);
  }
  static OpenFlags writable(const Edge& edge) {
    OpenFlags flags = edge->flags();
    flags.read_only = false;
    return flags;
  }
  bool top_shows(int seed) { return read_bytes(*top_, 0, 8192) == bytes_of(8192, seed); }

  Edge top_, side_, other_;
};

TEST_F(TransactionTest, ReopensSeveralNodes) {
  Transaction transaction;
  transaction.reopen(*top_, writable(top_));
  transaction.reopen(*side_, writable(side_));
  ASSERT_OK(run([&] { return transaction.commit(); }));
  EXPECT_FALSE(top_->read_only());
  EXPECT_FALSE(side_->read_only());
}

TEST_F(TransactionTest, AStepThatFailsTakesTheOthersBack) {
  hold_side();
  Permissions rights = top_.permissions();
  rights.shared = perm::kAll;
  const Permissions before = top_.permissions();
  Transaction transaction;
  transaction.set_permissions(top_, rights);
  transaction.reopen(*top_, writable(top_));
  auto two = open("memory:two", "raw");
  transaction.replace_backing(*top_, two.node());
  transaction.reopen(*side_, writable(side_));
  const auto done = run([&] { return transaction.commit(); });
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message().find("other"), std::string::npos) << done.error().message();
  EXPECT_TRUE(top_->read_only());
  EXPECT_TRUE(top_->storage()->read_only());
  EXPECT_TRUE(side_->read_only());
  EXPECT_EQ(top_.permissions().shared, before.shared);
  EXPECT_TRUE(top_shows(1)) << "and requests go on";
  EXPECT_OK(run([&] { return two.detach(); }));
}

TEST_F(TransactionTest, WhatCannotBeTakenBackIsDoneLastAndDecides) {
  auto two = open("memory:two", "raw");
  bool done = false;
  {
    hold_side();
    Transaction transaction;
    transaction.replace_backing(*top_, two.node());
    transaction.reopen(*side_, writable(side_));
    auto last = [&] { return succeed(&done); };
    EXPECT_FALSE(run([&] { return transaction.commit(last); }));
    EXPECT_FALSE(done) << "a step had failed before";
  }
  {
    Transaction transaction;
    transaction.replace_backing(*top_, two.node());
    auto last = [] { return run_out_of_space(); };
    const auto committed = run([&] { return transaction.commit(last); });
    ASSERT_FALSE(committed);
    EXPECT_EQ(committed.error().code(), ENOSPC);
    EXPECT_TRUE(top_shows(1));
  }
  Transaction transaction;
  transaction.replace_backing(*top_, two.node());
  EXPECT_OK(run([&] { return transaction.commit(); }));
  EXPECT_TRUE(top_shows(2));
  EXPECT_OK(run([&] { return two.detach(); }));
  EXPECT_TRUE(top_shows(2)) << "its own hold keeps it open";
}

TEST_F(TransactionTest, ANodeWithoutABackingNodeGetsNone) {
  Transaction transaction;
  transaction.replace_backing(*side_, nullptr);
  const auto done = run([&] { return transaction.commit(); });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), EINVAL);
  EXPECT_EQ(read_bytes(*side_, 0, 16), std::vector<std::byte>(16));
}

}  // namespace
}  // namespace platter

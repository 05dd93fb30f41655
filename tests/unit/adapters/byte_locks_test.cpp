// The rights of two users of one file against each other, each with a description of its own.
#include "block/adapters/byte_locks.h"

#include <fcntl.h>

#include "block/adapters/posix_file.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

struct User {
  explicit User(const std::string& path, Locking locking = Locking::kOn)
      : fd(::open(path.c_str(), O_RDWR | O_CLOEXEC)), locks(locking) {}
  Result<void> want(Permissions permissions) { return locks.change(fd.get(), permissions, "disk"); }
  UniqueFd fd;
  ByteLocks locks;
};

class ByteLocksTest : public ::testing::Test {
 protected:
  ByteLocksTest() { write_file(path_, ""); }
  ScratchDir dir_;
  std::string path_ = dir_ / "disk";
};

TEST_F(ByteLocksTest, EveryPairOfNeedAndShare) {
  User first(path_);
  for (std::uint32_t need = 0; need <= perm::kAll; ++need) {
    for (std::uint32_t shared = 0; shared <= perm::kAll; shared += 3) {
      ASSERT_TRUE(first.want({need, shared}));
      for (std::uint32_t other_need = 0; other_need <= perm::kAll; other_need += 2) {
        for (std::uint32_t other_shared = 0; other_shared <= perm::kAll; other_shared += 5) {
          User second(path_);
          const bool compatible = (other_need & ~shared) == 0 && (need & ~other_shared) == 0;
          const Result<void> got = second.want({other_need, other_shared});
          EXPECT_EQ(got.has_value(), compatible);
          // A refusal leaves nothing behind, a success what was asked for.
          EXPECT_EQ(second.locks.needed(), compatible ? other_need : 0);
          EXPECT_EQ(second.locks.unshared(), compatible ? ~other_shared & perm::kAll : 0);
        }
      }
    }
  }
}

TEST_F(ByteLocksTest, MessagesNameTheRight) {
  User writer(path_);
  ASSERT_TRUE(writer.want(Permissions::writer()));
  User second(path_);
  EXPECT_EQ(error_of(second.want(Permissions::writer())),
            "Failed to get \"write\" lock: Is another process using the image [disk]?");
  EXPECT_EQ(error_of(second.want(Permissions::reader())),
            "Failed to get shared \"write\" lock: Is another process using the image [disk]?");
  EXPECT_TRUE(second.want(Permissions::unsafe_reader()));
}

TEST_F(ByteLocksTest, ARefusedRaiseKeepsWhatWasHeld) {
  User first(path_);
  User second(path_);
  ASSERT_TRUE(first.want(Permissions::reader()));
  ASSERT_TRUE(second.want(Permissions::reader()));
  EXPECT_FALSE(second.want(Permissions::writer()));
  EXPECT_EQ(second.locks.needed(), std::uint32_t{perm::kConsistentRead});
  // The refused attempt is not in the way of others.
  User third(path_);
  EXPECT_TRUE(third.want(Permissions::reader()));
  ASSERT_TRUE(first.want({0, perm::kAll}));
  ASSERT_TRUE(third.want({0, perm::kAll}));
  EXPECT_TRUE(second.want(Permissions::writer()));
  EXPECT_FALSE(first.want(Permissions::reader()));
}

TEST_F(ByteLocksTest, OffTakesNone) {
  User writer(path_, Locking::kOff);
  ASSERT_TRUE(writer.want(Permissions::writer()));
  User second(path_);
  EXPECT_TRUE(second.want(Permissions::writer()));
  EXPECT_TRUE(writer.want(Permissions::writer()));
}

TEST_F(ByteLocksTest, ACopyHoldsOn) {
  User second(path_);
  {
    User first(path_);
    ASSERT_TRUE(first.want(Permissions::writer()));
    UniqueFd copy(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(first.locks.copy_to(copy.get()));
    first.fd = std::move(copy);
    EXPECT_FALSE(second.want(Permissions::writer()));
  }
  EXPECT_TRUE(second.want(Permissions::writer()));
}

}  // namespace
}  // namespace platter

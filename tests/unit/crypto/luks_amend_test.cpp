// Key slots of a volume in a node: who opens it before and after, what is refused, what is left on
// the disk of a key that was erased. Cuts in between: tests/powercut.
#include "block/crypto/luks_amend.h"

#include <gtest/gtest.h>

#include "block/adapters/memory.h"
#include "block/crypto/luks_io.h"
#include "block/filters/fault.h"
#include "unit/crypto/hex.h"
#include "unit/node/support.h"

namespace platter::crypto {
namespace {

using platter::testing::message_of;
using platter::testing::run;

constexpr std::uint64_t kBase = 65536;

class LuksAmend : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* id : {"one", "two", "three"})
      ASSERT_OK(add_secret(id, SecretBytes::of(std::string_view(id))));
    LuksParameters parameters;
    parameters.cipher.key_bits = 128;
    parameters.iteration_milliseconds = 0;
    auto made = make_luks_volume(parameters, testing::text_bytes("one"));
    ASSERT_OK(made);
    disk_ = std::make_shared<MemoryDisk>(kBase + made->area.size());
    disk_->write(kBase, IoVec::of_const(made->area));
    auto node = run([&] { return make_fault_node("", make_memory_node("", disk_)); });
    ASSERT_OK(node);
    node_ = *node;
    faults_ = fault_points_of(*node_);
    header_ = made->header;
  }
  void TearDown() override {
    for (const char* id : {"one", "two", "three"}) remove_secret(id);
  }

  // "": done.
  std::string amend(std::string_view text, bool force = false, const char* secret = "one") {
    auto options = Options::parse_keyval(text);
    auto amendment = take_luks_amendment(*options);
    if (!amendment) return amendment.error().message();
    if (amendment->activate) amendment->iteration_milliseconds = 0;
    const auto done =
        run([&] { return amend_luks(*node_, kBase, header_, *amendment, secret, force); });
    const auto stored = stored_header();
    if (done) {
      EXPECT_TRUE(stored && *stored == header_) << "the header in memory is not that of the file";
    }
    return done ? std::string() : done.error().message();
  }
  Result<LuksHeader> stored_header() {
    return run([&] { return read_luks_header(*node_, kBase, disk_->size() - kBase); });
  }
  // The slots that a passphrase opens, as the file says: "0 3".
  std::string slots_of(std::string_view passphrase) {
    const auto header = stored_header();
    std::string found;
    for (std::size_t slot = 0; slot < kLuksSlots; ++slot) {
      const auto key = run(
          [&] { return try_luks_slot(*node_, kBase, *header, slot, SecretBytes::of(passphrase)); });
      if (key && *key) found += (found.empty() ? "" : " ") + std::to_string(slot);
    }
    return found;
  }

  std::shared_ptr<MemoryDisk> disk_;
  NodePtr node_;
  FaultPoints* faults_ = nullptr;
  LuksHeader header_;
};

TEST_F(LuksAmend, FillsTheFirstIdleSlotOrTheOneThatIsNamed) {
  EXPECT_EQ(amend("state=active,new-secret=two"), "");
  EXPECT_EQ(amend("state=active,new-secret=three,keyslot=6"), "");
  EXPECT_EQ(amend("state=active,new-secret=two,keyslot=7", false, "three"), "");
  EXPECT_EQ(slots_of("one"), "0");
  EXPECT_EQ(slots_of("two"), "1 7");
  EXPECT_EQ(slots_of("three"), "6");
  for (int i = 0; i < 4; ++i) EXPECT_EQ(amend("state=active,new-secret=three"), "");
  EXPECT_EQ(slots_of("three"), "2 3 4 5 6");
  EXPECT_EQ(amend("state=active,new-secret=three"),
            "Can't add a keyslot - all keyslots are in use");
}

TEST_F(LuksAmend, ErasesBySlotAndByPassphrase) {
  ASSERT_EQ(amend("state=active,new-secret=two,keyslot=3"), "");
  ASSERT_EQ(amend("state=active,new-secret=two,keyslot=6"), "");
  ASSERT_EQ(amend("state=active,new-secret=three,keyslot=7"), "");
  EXPECT_EQ(amend("state=inactive,keyslot=0"), "");
  EXPECT_EQ(slots_of("one"), "");
  EXPECT_EQ(amend("state=inactive,old-secret=two"), "");
  EXPECT_EQ(slots_of("two"), "");
  EXPECT_EQ(slots_of("three"), "7");
}

TEST_F(LuksAmend, LeavesNothingOfAKeyThatWasErased) {
  ASSERT_EQ(amend("state=active,new-secret=two,keyslot=6"), "");
  const LuksHeader before = header_;
  ASSERT_EQ(amend("state=inactive,keyslot=6"), "");
  EXPECT_EQ(header_.slots[6].salt, LuksSlot{}.salt);
  // Not even with the header of before.
  const auto key = run([&] {
    return try_luks_slot(*node_, kBase, before, 6, SecretBytes::of(std::string_view("two")));
  });
  ASSERT_OK(key);
  EXPECT_FALSE(*key);
}

TEST_F(LuksAmend, KeepsTheLastKeyUnlessForced) {
  EXPECT_EQ(amend("state=inactive,keyslot=0"),
            "Attempt to erase the only active keyslot 0 which will erase all the data in the image "
            "irreversibly - refusing operation");
  ASSERT_EQ(amend("state=active,new-secret=one"), "");
  EXPECT_EQ(amend("state=inactive,old-secret=one"),
            "All the active keyslots match the (old) password that was given and erasing them will "
            "erase all the data in the image irreversibly - refusing operation");
  EXPECT_EQ(slots_of("one"), "0 1");
  EXPECT_EQ(amend("state=inactive,old-secret=one", true), "");
  EXPECT_EQ(slots_of("one"), "");
}

TEST_F(LuksAmend, OverwritesOnlyByForceAndLeavesNoCopy) {
  EXPECT_EQ(amend("state=active,keyslot=0,new-secret=two"),
            "Refusing to overwrite active keyslot 0 - please erase it first");
  EXPECT_EQ(amend("state=active,keyslot=0,new-secret=two", true), "");
  EXPECT_EQ(slots_of("one"), "");
  EXPECT_EQ(slots_of("two"), "0");
  // The place that was lent holds noise again.
  LuksHeader lent = header_;
  lent.slots[1] = lent.slots[0];
  lent.slots[1].sector = header_.slots[1].sector;
  const auto key = run([&] {
    return try_luks_slot(*node_, kBase, lent, 1, SecretBytes::of(std::string_view("two")));
  });
  ASSERT_OK(key);
  EXPECT_FALSE(*key);
  for (int i = 0; i < 7; ++i) ASSERT_EQ(amend("state=active,new-secret=three", false, "two"), "");
  EXPECT_EQ(amend("state=active,keyslot=6,new-secret=one", true, "two"), "");
  EXPECT_EQ(slots_of("one"), "6");
}

// Every request fails once: somebody can open it then, and it can be done again.
TEST_F(LuksAmend, SurvivesFaults) {
  for (std::uint64_t n = 0;; ++n) {
    const std::uint64_t before = faults_->acted();
    faults_->add(
        {.operations = fault_op::kWrite | fault_op::kFlush, .skip = n, .count = 1, .error = EIO});
    const std::string said = amend("state=active,keyslot=0,new-secret=two", true,
                                   slots_of("one").empty() ? "two" : "one");
    const bool acted = faults_->acted() != before;
    faults_->clear_rules();
    if (!acted) {
      EXPECT_GT(n, 8u);
      break;
    }
    EXPECT_NE(said, "") << "nobody is told of fault " << n;
    EXPECT_NE(slots_of("one") + slots_of("two"), "") << "after fault " << n;
    header_ = *stored_header();
    const char* const key = slots_of("one").empty() ? "two" : "one";
    ASSERT_EQ(amend("state=active,keyslot=0,new-secret=two", true, key), "") << n;
    EXPECT_EQ(slots_of("two").substr(0, 1), "0");
    EXPECT_EQ(slots_of("one"), "");
    ASSERT_EQ(amend("state=active,keyslot=0,new-secret=one", true, "two"), "") << n;
    if (slots_of("two") != "") {
      ASSERT_EQ(amend("state=inactive,old-secret=two"), "");
    }
  }
}

// Somebody else's slot may have been made on a faster machine, with much time.
TEST_F(LuksAmend, MakesNoHeaderThatIsNotOpenedAgain) {
  header_.slots[3].active = true;
  header_.slots[3].iterations = static_cast<std::uint32_t>(
      kLuksMaxHashes - header_.slots[0].iterations - 3 * header_.iterations);
  while (!check_luks_iterations(header_)) header_.slots[3].iterations -= 1000;
  const auto bytes = encode_luks_header(header_);
  disk_->write(kBase, IoVec::of_const(bytes));
  const LuksHeader before = header_;
  for (const char* where : {"", ",keyslot=5"}) {
    const std::string refused = amend(std::string("state=active,new-secret=two") + where);
    EXPECT_NE(refused.find("Can't add keyslot"), std::string::npos) << refused;
  }
  const auto stored = stored_header();
  ASSERT_OK(stored);
  EXPECT_TRUE(*stored == before);
  EXPECT_EQ(amend("state=inactive,keyslot=3"), "");
  EXPECT_EQ(amend("state=active,new-secret=two"), "");
}

TEST_F(LuksAmend, RefusesInTheWordsOfQemu) {
  EXPECT_EQ(amend("new-secret=two"), "Parameter 'state' is missing");
  EXPECT_EQ(amend("state=foo"), "Parameter 'state' does not accept value 'foo'");
  EXPECT_EQ(amend("state=active,foo=1"), "Parameter 'foo' is unexpected");
  EXPECT_EQ(amend("state=active"), "'new-secret' is required to activate a keyslot");
  EXPECT_EQ(amend("state=active,new-secret=two,old-secret=one"),
            "'old-secret' must not be given when activating keyslots");
  EXPECT_EQ(amend("state=active,new-secret=two,keyslot=8"),
            "Invalid keyslot 8 specified, must be between 0 and 7");
  EXPECT_EQ(amend("state=active,new-secret=none"), "No secret with id 'none'");
  EXPECT_EQ(amend("state=active,new-secret=two", false, "two"),
            "Invalid password, cannot unlock any keyslot");
  EXPECT_EQ(amend("state=inactive,keyslot=0,new-secret=two"),
            "'new-secret' must not be given when erasing keyslots");
  EXPECT_EQ(amend("state=inactive,keyslot=0,iter-time=10"),
            "'iter-time' must not be given when erasing keyslots");
  EXPECT_EQ(amend("state=inactive,keyslot=9"),
            "Invalid keyslot 9 specified, must be between 0 and 7");
  EXPECT_EQ(amend("state=inactive,keyslot=1"), "Given keyslot 1 is already erased (inactive) ");
  EXPECT_EQ(amend("state=inactive,old-secret=two"),
            "No keyslots match given (old) password for erase operation");
  EXPECT_EQ(
      amend("state=inactive"),
      "To erase keyslot(s), either explicit keyslot index or the password currently contained "
      "in them must be given");
  EXPECT_EQ(slots_of("one"), "0");
}

}  // namespace
}  // namespace platter::crypto

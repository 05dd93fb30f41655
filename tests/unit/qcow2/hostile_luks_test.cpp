// I-27: LUKS headers that lie, inside an image, one lie each; and header extensions that lie about
// where it is.
#include "block/crypto/secret.h"
#include "unit/qcow2/hostile_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;

constexpr std::string_view kLuksKey = "encrypt.key-secret=hostile";

class HostileLuks : public Hostile {
 protected:
  void SetUp() override {
    ASSERT_OK(crypto::add_secret("hostile", crypto::SecretBytes::of(std::string_view("key"))));
    use("encrypt.format=luks,encrypt.key-secret=hostile,encrypt.iter-time=0,"
        "preallocation=metadata",
        kMiB);
    luks_ = header_.extensions.encryption->offset;
    honest_.resize(crypto::kLuksHeaderBytes);
    disk_->read(luks_, IoVec(std::span(honest_)));
  }
  void TearDown() override {
    crypto::remove_secret("hostile");
    Hostile::TearDown();
  }

  // What is said of the honest header with some of its bytes changed: by who opens it, and by
  // `info`.
  void expect(std::size_t at, const std::vector<unsigned>& bytes, const std::string& message) {
    put(luks_, honest_);
    std::vector<std::byte> lie;
    for (const unsigned b : bytes) lie.push_back(static_cast<std::byte>(b));
    put(luks_ + at, lie);
    EXPECT_THAT(outcome(kLuksKey), HasSubstr(message)) << "at " << at;
    put(luks_, honest_);
  }
  void expect32(std::size_t at, std::uint32_t value, const std::string& message) {
    expect(at, {value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255}, message);
  }
  static std::vector<unsigned> text(std::string_view letters) {
    std::vector<unsigned> bytes(letters.begin(), letters.end());
    bytes.push_back(0);
    return bytes;
  }
  static constexpr std::size_t slot(std::size_t number, std::size_t field) {
    return 208 + 48 * number + field;
  }
  void point_to(std::uint64_t offset, std::uint64_t length) {
    Header header = header_;
    header.extensions.encryption = EncryptionPointer{offset, length};
    put(0, *encode_header(header));
  }

  std::uint64_t luks_ = 0;
  std::vector<std::byte> honest_;
};

TEST_F(HostileLuks, AnHonestOneIsQuiet) { EXPECT_EQ(outcome(kLuksKey), ""); }

TEST_F(HostileLuks, MagicAndVersion) {
  expect(0, {'L', 'U', 'K', 'S', 0xba, 0xbf}, "Volume is not in LUKS format");
  expect(6, {0, 0}, "LUKS version 0 is not supported");
  expect(6, {0, 2}, "LUKS version 2 is not supported");
  expect(6, {255, 255}, "LUKS version 65535 is not supported");
}

TEST_F(HostileLuks, Names) {
  const std::vector<unsigned> endless(40, 'a');
  const std::vector<unsigned> name(endless.begin(), endless.begin() + 32);
  expect(8, name, "LUKS header cipher name is not NUL terminated");
  expect(40, name, "LUKS header cipher mode is not NUL terminated");
  expect(72, name, "LUKS header hash spec is not NUL terminated");
  expect(168, endless, "LUKS header UUID is not NUL terminated");
  expect(8, text(""), "Algorithm '' with key size 64 bytes is not supported");
  expect(8, text("rot13"), "Algorithm 'rot13' with key size 64 bytes is not supported");
  expect(8, text("\xff\x01\n"), "with key size 64 bytes is not supported");
  expect(40, text(""), "Unexpected cipher mode string format ''");
  expect(40, text("xts"), "Unexpected cipher mode string format 'xts'");
  expect(40, text("xts-"), "Unexpected cipher mode string format 'xts-'");
  expect(40, text("foo-plain64"), "Cipher mode 'foo' is not supported");
  expect(40, text("xts-foo"), "IV generator 'foo' is not supported");
  expect(40, text("xts-essiv"), "Hash algorithm for ESSIV is missing");
  expect(40, text("xts-essiv:foo"), "Hash algorithm 'foo' is not supported");
  expect(72, text(""), "Hash algorithm '' is not supported");
  expect(72, text("foo"), "Hash algorithm 'foo' is not supported");
}

TEST_F(HostileLuks, PayloadAndKey) {
  expect32(104, 0, "LUKS payload is overlapping with the header");
  expect32(104, 7, "LUKS payload is overlapping with the header");
  expect32(104, 8, "Keyslot 0 is overlapping with the encrypted payload");
  expect32(104, 4041, "LUKS payload offset 2068992 is beyond the 2068480 bytes there are");
  expect32(104, 0xffffffff, "LUKS payload offset 2199023255040 is beyond");
  expect32(108, 0, "LUKS master key of 0 bytes");
  expect32(108, 63, "with key size 63 bytes is not supported");
  expect32(108, 65, "LUKS master key of 65 bytes");
  expect32(108, 0xffffffff, "LUKS master key of 4294967295 bytes");
}

TEST_F(HostileLuks, Iterations) {
  expect32(164, 0, "LUKS key iteration count is zero");
  expect32(164, 0xffffffff, "LUKS key iteration count 4294967295 is too large");
  expect32(slot(0, 4), 0, "Keyslot 0 iteration count is zero");
  expect32(slot(0, 4), 0xffffffff, "Keyslot 0 iteration count 4294967295 is too large");
  expect32(slot(0, 4), 0x08000000, "LUKS iteration counts add up to");
}

TEST_F(HostileLuks, Slots) {
  for (const std::size_t number : {0u, 6u, 7u}) {
    const std::string name = "Keyslot " + std::to_string(number);
    expect32(slot(number, 0), 0, name + " state (active/disable) is corrupted (0x0)");
    expect32(slot(number, 0), 0x00ac71f2, name + " state (active/disable) is corrupted (0xac71f2)");
    expect32(slot(number, 40), 0, name + " is overlapping with the LUKS header");
    expect32(slot(number, 40), 7, name + " is overlapping with the LUKS header");
    expect32(slot(number, 40), 0xffffffff, name + " is overlapping with the encrypted payload");
    expect32(slot(number, 40), 0x80000000, name + " is overlapping with the encrypted payload");
    expect32(slot(number, 44), 0, name + " is corrupted (stripes 0 != 4000)");
    expect32(slot(number, 44), 3999, name + " is corrupted (stripes 3999 != 4000)");
    expect32(slot(number, 44), 0xffffffff, name + " is corrupted (stripes 4294967295 != 4000)");
  }
  expect32(slot(3, 40), 9, "Keyslots 0 and 3 are overlapping in the header");
  // An active slot that nobody has filled.
  expect32(slot(5, 0), 0x00ac71f3, "Keyslot 5 iteration count is zero");
}

TEST_F(HostileLuks, SaltsDigestsAndMaterialThatAreNobodys) {
  for (const std::size_t at : {std::size_t{112}, std::size_t{132}, slot(0, 8)})
    expect(at, {1, 2, 3, 4, 5, 6, 7, 8}, "Invalid password, cannot unlock any keyslot");
  put64(luks_ + crypto::kLuksKeyAreaOffset, 0x123456789abcdef0);
  EXPECT_THAT(outcome(kLuksKey), HasSubstr("Invalid password, cannot unlock any keyslot"));
}

TEST_F(HostileLuks, TheExtensionLies) {
  constexpr std::uint64_t kHuge = 0xffffffffffff0000;
  const std::uint64_t length = header_.extensions.encryption->length;
  point_to(0, length);
  EXPECT_THAT(outcome(kLuksKey), HasSubstr("ncryption header"));
  for (const std::uint64_t offset : {kHuge, std::uint64_t{1} << 62, luks_ + 64 * kMiB}) {
    point_to(offset, length);
    EXPECT_THAT(outcome(kLuksKey), HasSubstr("ncryption header")) << offset;
  }
  point_to(luks_ + 512, length);
  EXPECT_THAT(outcome(kLuksKey), HasSubstr("ncryption header"));
  point_to(luks_, 0);
  EXPECT_NE(outcome(kLuksKey), "");
  point_to(luks_, 591);
  EXPECT_THAT(outcome(kLuksKey), HasSubstr("LUKS header is cut off"));
  point_to(luks_, length - 65536);
  EXPECT_THAT(outcome(kLuksKey),
              HasSubstr("LUKS payload offset 2068480 is beyond the 2002944 bytes"));
  for (const std::uint64_t too_long : {17 * kMiB, kHuge}) {
    point_to(luks_, too_long);
    EXPECT_THAT(outcome(kLuksKey), HasSubstr("is too long or outside the file")) << too_long;
  }
  // Over tables of the image.
  point_to(kRefcountTable, length);
  EXPECT_THAT(outcome(kLuksKey), HasSubstr("Volume is not in LUKS format"));
}

TEST_F(HostileLuks, TheMethodAndTheExtensionDisagree) {
  Header header = header_;
  header.extensions.encryption.reset();
  put(0, *encode_header(header));
  EXPECT_THAT(outcome(kLuksKey), HasSubstr("no encryption header"));
  header = header_;
  header.crypt_method = CryptMethod::kNone;
  put(0, *encode_header(header));
  EXPECT_NE(outcome(), "");
}

}  // namespace
}  // namespace platter::qcow2

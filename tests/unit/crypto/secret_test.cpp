#include "block/crypto/secret.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "unit/crypto/hex.h"

namespace platter::crypto {
namespace {

using namespace platter::crypto::testing;

std::string text_of(const Result<SecretBytes>& secret) {
  if (!secret) return secret.error().message();
  std::string text;
  for (const std::byte b : secret->span()) text += static_cast<char>(b);
  return text;
}

std::string added(std::string_view definition) {
  const Result<void> result = add_secret_object(definition);
  return result ? "" : result.error().message();
}

class Secrets : public ::testing::Test {
 protected:
  ~Secrets() override {
    for (const char* id : {"s0", "s1"}) remove_secret(id);
  }
};

TEST_F(Secrets, AreFoundById) {
  EXPECT_EQ(added("secret,id=s0,data=abc"), "");
  EXPECT_EQ(added("qom-type=secret,id=s1,format=base64,data=eHl6"), "");
  EXPECT_EQ(text_of(find_secret("s0")), "abc");
  EXPECT_EQ(text_of(find_secret("s1")), "xyz");
  EXPECT_EQ(text_of(find_secret("s2")), "No secret with id 's2'");
}

TEST_F(Secrets, ComeFromFilesByteForByte) {
  const std::string path = ::testing::TempDir() + "platter_secret_test";
  std::ofstream(path) << "with a newline\n";
  EXPECT_EQ(added("secret,id=s0,file=" + path), "");
  EXPECT_EQ(text_of(find_secret("s0")), "with a newline\n");
  std::remove(path.c_str());
  EXPECT_EQ(added("secret,id=s1,file=" + path),
            fmt::format("Unable to read {0}: Failed to open file \u201c{0}\u201d: No such file or "
                        "directory",
                        path));
  EXPECT_EQ(added("secret,id=s1,file=/dev/zero"),
            "Unable to read /dev/zero: a secret has at most 1048576 bytes");
}

TEST_F(Secrets, AreRefusedWithTheWordsOfQemu) {
  EXPECT_EQ(added("secret,id=s0,data=abc"), "");
  EXPECT_EQ(added("secret,id=s0,data=abc"),
            "attempt to add duplicate property 's0' to object (type 'container')");
  EXPECT_EQ(added("secret,data=abc"), "Parameter 'id' is missing");
  EXPECT_EQ(added("id=s1,data=abc"), "Parameter 'qom-type' is missing");
  EXPECT_EQ(added("foo,id=s1"), "Parameter 'qom-type' does not accept value 'foo'");
  EXPECT_EQ(added("secret,id=1,data=abc"),
            "Parameter 'id' expects an identifier: Identifiers consist of letters, digits, '-', "
            "'.', '_', starting with a letter");
  EXPECT_EQ(added("secret,id=s1"), "Either 'file' or 'data' must be provided");
  EXPECT_EQ(added("secret,id=s1,data=a,file=b"), "'file' and 'data' are mutually exclusive");
  EXPECT_EQ(added("secret,id=s1,data=a,foo=b"), "Parameter 'foo' is unexpected");
  EXPECT_EQ(added("secret,id=s1,data=a,format=hex"),
            "Parameter 'format' does not accept value 'hex'");
  EXPECT_EQ(added("secret,id=s1,data=a!b,format=base64"),
            "Base64 data contains invalid characters");
  EXPECT_EQ(added("secret,id=s1,data=a,keyid=k"), "No secret with id 'k'");
  EXPECT_EQ(added("secret,id=s1,data=a,keyid=s0"),
            "secret 's1' is encrypted by secret 's0' (keyid), which is not supported");
}

TEST(Base64, IsDecoded) {
  EXPECT_EQ(text_of(decode_base64("")), "");
  EXPECT_EQ(text_of(decode_base64("Zg==")), "f");
  EXPECT_EQ(text_of(decode_base64("Zm8=")), "fo");
  EXPECT_EQ(text_of(decode_base64("Zm9v\nYmFy\n")), "foobar");
  for (const char* bad : {"Z", "Zg", "Zg=", "Zg=a", "Zm9v=", "Zg===", "=", "Zm8=Zm8="}) {
    EXPECT_FALSE(decode_base64(bad)) << bad;
  }
}

TEST(SecretBytes, AreWipedWhenTheyAreReplaced) {
  std::byte memory[4] = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  wipe(memory);
  for (const std::byte b : memory) EXPECT_EQ(b, std::byte{0});
  SecretBytes first = SecretBytes::of("abc");
  SecretBytes second = std::move(first);
  EXPECT_EQ(second.size(), 3u);
  EXPECT_EQ(second.copy().size(), 3u);
}

}  // namespace
}  // namespace platter::crypto

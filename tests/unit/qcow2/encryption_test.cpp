// Encrypted images: what is written is read back and lies encrypted in the file, wherever data
// goes.
#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "block/crypto/secret.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/driver.h"
#include "formats/qcow2/info.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

struct Kind {
  const char* name;
  const char* create;
};

class Encryption : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    ASSERT_OK(crypto::add_secret("good", crypto::SecretBytes::of(std::string_view("passphrase"))));
    ASSERT_OK(crypto::add_secret("bad", crypto::SecretBytes::of(std::string_view("other"))));
  }
  void TearDown() override {
    crypto::remove_secret("good");
    crypto::remove_secret("bad");
  }
  static std::string options(std::string_view more = {}) {
    return fmt::format("{},encrypt.key-secret=good,{}", GetParam().create,
                       more.empty() ? "cluster_size=64K" : more);
  }
  // As the disk should read, and is written.
  static Task<Result<void>> write(BlockNode& node, Bytes& model, std::uint64_t offset,
                                  std::uint64_t length, unsigned seed) {
    Bytes data = pattern(length, seed);
    std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
    auto written = co_await node.write(offset, iov(data));
    co_return written;
  }
  static Bytes read_all(BlockNode& node) {
    Bytes bytes(node.size());
    const IoVec to = iov(bytes);
    EXPECT_OK(run([&] { return node.read(0, to); }));
    return bytes;
  }
  // No sector of `data` lies in the file as it is.
  static void expect_hidden(const MemoryImage& image, const Bytes& data) {
    OpenRequest request;
    request.filename = image.filename();
    request.format = "raw";
    request.permissions = Permissions::unsafe_reader();
    auto raw = run([&] { return open_node(std::move(request)); });
    ASSERT_OK(raw);
    const Bytes file = read_all(**raw);
    ASSERT_OK(run([&] { return raw->detach(); }));
    std::set<Bytes> starts;
    for (std::size_t at = 0; at + 16 <= file.size(); at += 512) starts.insert(start_of(file, at));
    for (std::size_t at = 0; at + 16 <= data.size(); at += 512) {
      const Bytes start = start_of(data, at);
      if (is_zero(start)) continue;
      EXPECT_FALSE(starts.contains(start)) << "the data at " << at << " is there to read";
    }
  }
  static Bytes start_of(const Bytes& bytes, std::size_t at) {
    const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    return Bytes(from, from + 16);
  }
};

constexpr std::string_view kKey = "encrypt.key-secret=good";

TEST_P(Encryption, WritesOfAllShapesAreReadBackAndHidden) {
  for (const char* more : {"cluster_size=512", "cluster_size=64K",
                           "cluster_size=64K,extended_l2=on", "cluster_size=2M", "compat=0.10"}) {
    SCOPED_TRACE(more);
    MemoryImage image("crypt", 5 * kMiB, options(more));
    Bytes model(5 * kMiB);
    auto edge = run([&] { return image.open(true, kKey); });
    ASSERT_OK(edge);
    EXPECT_EQ((*edge)->limits().request_alignment, 512u);
    const std::pair<std::uint64_t, std::uint64_t> ranges[] = {
        {1000, 5000},        {0, 512},
        {700'000, 1},        {kMiB, 3 * kMiB / 2},
        {2 * kMiB, 300'001}, {5 * kMiB - 100, 100},
        {65536, 65536}};
    unsigned seed = 0;
    for (const auto& [offset, length] : ranges) {
      ASSERT_OK(run([&] { return write(**edge, model, offset, length, ++seed); }));
    }
    EXPECT_EQ(read_all(**edge), model);
    // Zeroes over parts and over whole clusters.
    ASSERT_OK(run([&] { return (*edge)->write_zeroes(1200, 100'000); }));
    std::fill_n(model.begin() + 1200, 100'000, std::byte{0});
    EXPECT_EQ(read_all(**edge), model);
    ASSERT_OK(run([&] { return check(**edge); }));
    ASSERT_OK(run([&] { return edge->detach(); }));
    expect_hidden(image, model);

    edge = run([&] { return image.open(false, kKey); });
    ASSERT_OK(edge);
    EXPECT_EQ(read_all(**edge), model);
    ASSERT_OK(run([&] { return edge->detach(); }));
  }
}

TEST_P(Encryption, SnapshotsKeepWhatWasAndOverlaysShowThrough) {
  MemoryImage base("crypt", kMiB, options());
  Bytes model(kMiB);
  auto edge = run([&] { return base.open(true, kKey); });
  ASSERT_OK(edge);
  ASSERT_OK(run([&] { return write(**edge, model, 10'000, 300'000, 1); }));
  SnapshotAbility& snapshots = *(*edge)->driver().snapshots();
  ASSERT_OK(run([&] { return snapshots.create("s", 0, 0); }));
  const Bytes before = model;
  ASSERT_OK(run([&] { return write(**edge, model, 70'001, 3, 2); }));
  EXPECT_EQ(read_all(**edge), model);
  VmStateAbility& vm = *(*edge)->driver().vm_state();
  Bytes state = pattern(100'003, 9);
  const IoVec state_iov = iov(state);
  ASSERT_OK(run([&] { return vm.write(77, state_iov); }));
  Bytes again(state.size());
  const IoVec again_iov = iov(again);
  ASSERT_OK(run([&] { return vm.read(77, again_iov); }));
  EXPECT_EQ(again, state);
  EXPECT_EQ(read_all(**edge), model);
  ASSERT_OK(run([&] { return snapshots.apply("s"); }));
  EXPECT_EQ(read_all(**edge), before);
  ASSERT_OK(run([&] { return check(**edge); }));
  ASSERT_OK(run([&] { return edge->detach(); }));

  // An encrypted overlay on it, with another cluster size: heads and tails come from below.
  MemoryImage top("crypt-top", kMiB,
                  options("cluster_size=4K,backing_fmt=qcow2,backing_file=memory:crypt"));
  model = before;
  const std::string both = fmt::format("{0},backing.{0}", kKey);
  edge = run([&] { return top.open(true, both); });
  ASSERT_OK(edge);
  ASSERT_OK(run([&] { return write(**edge, model, 20'001, 100, 3); }));
  ASSERT_OK(run([&] { return (*edge)->write_zeroes(40'100, 100); }));
  std::fill_n(model.begin() + 40'100, 100, std::byte{0});
  EXPECT_EQ(read_all(**edge), model);
  ASSERT_OK(run([&] { return edge->detach(); }));
  expect_hidden(top, model);
}

TEST_P(Encryption, PreallocatedSpaceReadsAsZeroes) {
  for (const char* mode : {"metadata", "full"}) {
    MemoryImage image("crypt", kMiB, options(fmt::format("preallocation={}", mode)));
    auto edge = run([&] { return image.open(true, kKey); });
    ASSERT_OK(edge);
    Bytes model(kMiB);
    EXPECT_EQ(read_all(**edge), model);
    ASSERT_OK(run([&] { return write(**edge, model, 5'000, 100, 3); }));
    EXPECT_EQ(read_all(**edge), model);
    ASSERT_OK(run([&] {
      return (*edge)->resize({.size = 2 * kMiB, .preallocation = Preallocation::kMetadata});
    }));
    model.resize(2 * kMiB);
    EXPECT_EQ(read_all(**edge), model);
    ASSERT_OK(run([&] { return check(**edge); }));
    ASSERT_OK(run([&] { return edge->detach(); }));
  }
}

TEST_P(Encryption, NeedsItsKey) {
  MemoryImage image("crypt", kMiB, options());
  const auto error = [&](std::string_view more) {
    auto edge = run([&] { return image.open(false, more); });
    EXPECT_FALSE(edge);
    return edge ? std::string() : edge.error().message();
  };
  EXPECT_THAT(error(""), HasSubstr("Parameter 'encrypt.key-secret' is required for cipher"));
  EXPECT_THAT(error("encrypt.key-secret=none"), HasSubstr("No secret with id 'none'"));
  EXPECT_THAT(error("encrypt.key-secret=good,encrypt.foo=1"),
              HasSubstr("Parameter 'foo' is unexpected"));
  EXPECT_THAT(
      error("encrypt.key-secret=good,encrypt.format=bar"),
      HasSubstr(fmt::format("Header reported '{}' encryption format but options specify 'bar'",
                            GetParam().name)));
  if (std::string_view(GetParam().name) == "luks") {
    EXPECT_THAT(error("encrypt.key-secret=bad"),
                HasSubstr("Invalid password, cannot unlock any keyslot"));
  }
}

TEST_P(Encryption, TakesNoCompressedData) {
  MemoryImage image("crypt", kMiB, options());
  auto edge = run([&] { return image.open(true, kKey); });
  ASSERT_OK(edge);
  Bytes data(65536, std::byte{7});
  const IoVec from = iov(data);
  WriteFlags flags;
  flags.compressed = true;
  const auto written = run([&] { return (*edge)->write(0, from, flags); });
  ASSERT_FALSE(written);
  EXPECT_THAT(written.error().message(),
              HasSubstr("Compression and encryption not supported at the same time"));
  ASSERT_OK(run([&] { return edge->detach(); }));
}

TEST_P(Encryption, ExtentsDoNotTellWhereCipherTextLies) {
  MemoryImage image("crypt", kMiB, options());
  auto edge = run([&] { return image.open(true, kKey); });
  ASSERT_OK(edge);
  Bytes model(kMiB);
  ASSERT_OK(run([&] { return write(**edge, model, 0, 65536, 3); }));
  const auto extent = run([&] { return (*edge)->extent(0, kMiB); });
  ASSERT_OK(extent);
  EXPECT_EQ(extent->kind, ExtentKind::kData);
  EXPECT_EQ(extent->length, 65536u);
  EXPECT_FALSE(extent->has_host_offset());
  ASSERT_OK(run([&] { return edge->detach(); }));
}

INSTANTIATE_TEST_SUITE_P(Kinds, Encryption,
                         ::testing::Values(Kind{"luks", "encrypt.format=luks,encrypt.iter-time=0"},
                                           Kind{"aes", "encrypt.format=aes"}),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST(EncryptionPlan, IsRefusedWithTheWordsOfQemu) {
  const auto error = [](std::string_view text) {
    Options options = *Options::parse_keyval(text);
    const auto plan = plan_create(options, kMiB);
    return plan ? std::string() : plan.error().message();
  };
  EXPECT_EQ(error("encrypt.format=foo"), "Parameter 'format' does not accept value 'foo'");
  EXPECT_EQ(error("encrypt.cipher-alg=aes-256"), "Parameter 'encrypt.format' is missing");
  EXPECT_EQ(error("encrypt.format=aes,encrypt.cipher-alg=aes-256"),
            "Parameter 'encrypt.cipher-alg' is unexpected");
  EXPECT_EQ(error("encryption=on,encrypt.format=aes"),
            "'encrypt.format' and its alias 'encryption' can't be used at the same time");
  EXPECT_EQ(error("encrypt.format=luks,encrypt.cipher-alg=serpent-256"),
            "Algorithm 'serpent-256' not supported");
  EXPECT_EQ(error("encrypt.format=luks,encrypt.hash-alg=foo"),
            "Parameter 'hash-alg' does not accept value 'foo'");
  EXPECT_EQ(error("encrypt.format=luks,encrypt.ivgen-alg=essiv,encrypt.cipher-mode=cbc,"
                  "encrypt.ivgen-hash-alg=sha1"),
            "No AES cipher with key size 20 available");
  EXPECT_EQ(error("encrypt.format=luks,preallocation=metadata,compat=0.10"),
            "Preallocation of encrypted images is only supported with compatibility level 1.1 and "
            "above (use version=v3 or greater)");
}

// The header extension may say anything.
TEST(EncryptionHeader, LiesWithinTheFileOrIsRefused) {
  const auto error = [](std::optional<EncryptionPointer> at, std::uint64_t file_size) {
    Header header;
    header.crypt_method = CryptMethod::kLuks;
    header.extensions.encryption = at;
    const NodePtr file = make_memory_node("luks", file_size);
    const auto read = run([&] { return read_encryption_header(*file, header); });
    return read ? std::string() : read.error().message();
  };
  EXPECT_EQ(error(std::nullopt, kMiB), "the image has LUKS encryption, but no encryption header");
  constexpr std::uint64_t kHuge = ~std::uint64_t{0} << 16;
  for (const EncryptionPointer& at :
       {EncryptionPointer{0x10000, kHuge}, EncryptionPointer{kHuge, 0x10000},
        EncryptionPointer{0x10000, 17 * kMiB}, EncryptionPointer{0, 0x10000},
        EncryptionPointer{kMiB, 0x10000}}) {
    EXPECT_THAT(error(at, kMiB), HasSubstr("is too long or outside the file")) << at.offset;
  }
  EXPECT_THAT(error(EncryptionPointer{0x10000, 0x10000}, kMiB), HasSubstr("not in LUKS format"));
  EXPECT_THAT(error(EncryptionPointer{0x10000, 100}, kMiB), HasSubstr("LUKS header is cut off"));
  EXPECT_THAT(error(EncryptionPointer{0x10000, 0x10000}, 0x10000 + 100),
              HasSubstr("is outside the file"));
}

TEST(EncryptionPlan, HeaderIsCountedAndInfoTellsIt) {
  Options options = *Options::parse_keyval("encrypt.format=luks,encrypt.ivgen-alg=essiv");
  const auto plan = plan_create(options, kMiB);
  ASSERT_OK(plan);
  ASSERT_TRUE(plan->header.extensions.encryption);
  EXPECT_EQ(plan->header.extensions.encryption->length, 2068480u);
  const auto luks = crypto::plan_luks_header(plan->encryption.luks.cipher, "sha256");
  ASSERT_OK(luks);
  const FormatInfo info = format_info(plan->header, {}, &*luks);
  const auto found = std::find_if(info.specific.begin(), info.specific.end(),
                                  [](const InfoField& f) { return f.name == "encrypt"; });
  ASSERT_NE(found, info.specific.end());
  std::string names;
  for (const InfoField& field : std::get<InfoField::Fields>(found->value))
    names += field.name + " ";
  EXPECT_EQ(names,
            "ivgen-alg hash-alg cipher-alg uuid ivgen-hash-alg format cipher-mode slots "
            "payload-offset master-key-iters ");
}

}  // namespace
}  // namespace platter::qcow2

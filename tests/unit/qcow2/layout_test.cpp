#include "formats/qcow2/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "block/base/bytes.h"
#include "formats/qcow2/header_io.h"

namespace platter::qcow2 {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kFileSize = 1 << 20;

Header sample() {
  Header h;
  h.size = std::uint64_t{1} << 30;
  h.l1_size = 2;
  h.l1_table_offset = 0x30000;
  h.refcount_table_offset = 0x10000;
  h.refcount_table_clusters = 1;
  h.extensions.feature_names = known_feature_names();
  return h;
}

std::vector<std::byte> bytes_of(const Header& h) {
  auto encoded = encode_header(h);
  EXPECT_TRUE(encoded) << encoded.error().message();
  return encoded ? *encoded : std::vector<std::byte>{};
}

TEST(Layout, HeaderRoundTripsWithEveryExtension) {
  Header h = sample();
  h.backing_file = "base.raw";
  h.incompatible_features =
      incompatible::kDirty | incompatible::kDataFile | incompatible::kCompressionType;
  h.compression_type = CompressionType::kZstd;
  h.compatible_features = compatible::kLazyRefcounts | 0x100;
  h.autoclear_features = autoclear::kBitmaps | 0x4000;
  h.refcount_order = 6;
  h.crypt_method = CryptMethod::kLuks;
  h.nb_snapshots = 3;
  h.snapshots_offset = 0x50000;
  h.unknown_fields.assign(16, std::byte{7});
  h.extensions.backing_format = "raw";
  h.extensions.data_file = "data.raw";
  h.extensions.bitmaps = BitmapsExtension{2, 100, 0x60000};
  h.extensions.encryption = EncryptionPointer{0x70000, 5000};
  h.extensions.unknown = {{0xabcdef01, {std::byte{1}, std::byte{2}, std::byte{3}}},
                          {0xabcdef01, {}}};
  auto parsed = parse_header(bytes_of(h), kFileSize);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed, h);
}

TEST(Layout, Version2HasNoFeatureFields) {
  Header h = sample();
  h.version = 2;
  h.backing_file = "b";
  h.extensions.feature_names.clear();
  h.extensions.backing_format = "qcow2";
  const auto bytes = bytes_of(h);
  EXPECT_EQ(load_be<std::uint32_t>(bytes.data() + 72), extension::kBackingFormat);
  auto parsed = parse_header(bytes, kFileSize);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed, h);
}

TEST(Layout, WhatDoesNotFitIntoTheFirstClusterIsRefused) {
  Header h = sample();
  h.cluster_bits = 9;
  h.backing_file = std::string(200, 'b');
  auto encoded = encode_header(h);
  ASSERT_FALSE(encoded);
  EXPECT_EQ(encoded.error().code(), ENOSPC);
}

// One lie per field (HOSTILE.md I-1 to I-6 and I-8): what is patched, and what the error says.
struct Lie {
  const char* name;
  std::size_t at;
  unsigned width;  // bytes
  std::uint64_t value;
  const char* message;
};

class LayoutLie : public ::testing::TestWithParam<Lie> {};

TEST_P(LayoutLie, IsRefusedByName) {
  const Lie& lie = GetParam();
  Header h = sample();
  h.backing_file = "base.raw";
  auto bytes = bytes_of(h);
  std::byte* p = bytes.data() + lie.at;
  if (lie.width == 4) store_be(p, static_cast<std::uint32_t>(lie.value));
  if (lie.width == 8) store_be(p, lie.value);
  if (lie.width == 1) *p = static_cast<std::byte>(lie.value);
  auto parsed = parse_header(bytes, kFileSize);
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message(), HasSubstr(lie.message));
}

constexpr std::uint64_t kTop = std::uint64_t{1} << 63;
INSTANTIATE_TEST_SUITE_P(
    Fields, LayoutLie,
    ::testing::Values(
        Lie{"magic", 0, 4, 0x514649fa, "not in qcow2 format"},
        Lie{"version_1", 4, 4, 1, "Unsupported qcow2 version 1"},
        Lie{"version_4", 4, 4, 4, "Unsupported qcow2 version 4"},
        Lie{"backing_offset_huge", 8, 8, kTop, "Invalid backing file offset 9223372036854775808"},
        Lie{"backing_offset_in_header", 8, 8, 60, "Invalid backing file offset 60"},
        Lie{"backing_size_1024", 16, 4, 1024, "backing_file_size is 1024, at most 1023"},
        Lie{"backing_beyond_cluster", 8, 8, 65530, "backing_file_size is 8, at most 6"},
        Lie{"cluster_bits_0", 20, 4, 0, "2^0"}, Lie{"cluster_bits_8", 20, 4, 8, "2^8"},
        Lie{"cluster_bits_22", 20, 4, 22, "2^22"}, Lie{"cluster_bits_31", 20, 4, 31, "2^31"},
        Lie{"cluster_bits_max", 20, 4, 0xffffffff, "2^4294967295"},
        Lie{"size_max", 24, 8, ~std::uint64_t{0}, "Image is too big: size 18446744073709551615"},
        Lie{"crypt_method_9", 32, 4, 9, "Unsupported encryption method 9"},
        Lie{"l1_size_1", 36, 4, 1, "L1 table is too small: l1_size is 1"},
        Lie{"l1_size_huge", 36, 4, 0x7fffffff, "Active L1 table too large: 2147483647 entries"},
        Lie{"l1_size_past_end", 36, 4, 0x100000, "Active L1 table lies beyond the end of the file"},
        Lie{"l1_unaligned", 40, 8, 0x30200, "Active L1 table offset invalid: 0x30200"},
        Lie{"l1_zero", 40, 8, 0, "Active L1 table offset invalid: 0"},
        Lie{"l1_wraps", 40, 8, 0xffffffffffff0000, "Active L1 table offset invalid"},
        Lie{"snapshots_65537", 60, 4, 65537, "Snapshot table too large: nb_snapshots is 65537"},
        Lie{"snapshots_at_0", 60, 4, 1, "Snapshot table offset invalid: 0"},
        Lie{"incompatible_63", 72, 8, kTop, "Unknown incompatible feature: 8000000000000000"},
        Lie{"compression_bit_alone", 72, 8, 8, "bit must not be set"},
        Lie{"compression_type_alone", 104, 1, 1, "bit must be set"},
        Lie{"compression_type_255", 104, 1, 255, "unknown compression type: 255"},
        Lie{"refcount_order_7", 96, 4, 7, "refcount_order is 7"},
        Lie{"refcount_order_63", 96, 4, 63, "refcount_order is 63"},
        Lie{"header_length_96", 100, 4, 96, "header_length is 96, at least 104"},
        Lie{"header_length_105", 100, 4, 105, "105 is not a multiple of 8"},
        Lie{"header_length_huge", 100, 4, 0xfffffff8, "header exceeds cluster size"},
        Lie{"header_length_past_name", 100, 4, 60000, "within the header of 60000"},
        Lie{"extension_too_long", 116, 4, 0x1000, "Header extension too large: type 0x6803f857"},
        Lie{"extension_max", 116, 4, 0xffffffff, "Header extension too large"}),
    [](const auto& lie) { return std::string(lie.param.name); });

class RefcountTableLie : public ::testing::TestWithParam<Lie> {};

TEST_P(RefcountTableLie, IsNamedAndTheRestCanStillBeRead) {
  const Lie& lie = GetParam();
  auto bytes = bytes_of(sample());
  std::byte* p = bytes.data() + lie.at;
  if (lie.width == 4) store_be(p, static_cast<std::uint32_t>(lie.value));
  if (lie.width == 8) store_be(p, lie.value);
  const auto parsed = parse_header(bytes, kFileSize);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->refcount_table_bytes(), 0U);
  const auto counted = require_refcount_table(*parsed);
  ASSERT_FALSE(counted);
  EXPECT_THAT(counted.error().message(), HasSubstr(lie.message));
  // A header that is written for another reason takes nothing away.
  const auto again = parse_header(bytes_of(*parsed), kFileSize);
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, *parsed);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, RefcountTableLie,
    ::testing::Values(
        Lie{"zero_offset", 48, 8, 0, "(refcount_table_offset is 0)"},
        Lie{"zero_clusters", 56, 4, 0, "(refcount_table_clusters is 0)"},
        Lie{"unaligned", 48, 8, 0x10001, "Reference count table offset invalid: 0x10001"},
        Lie{"wraps", 48, 8, 0xffffffffffff0000, "Reference count table offset invalid"},
        Lie{"past_end", 48, 8, 0x1000000, "Reference count table lies beyond the end"},
        Lie{"clusters_129", 56, 4, 129, "Reference count table too large: 129 entries"},
        Lie{"clusters_max", 56, 4, 0xffffffff, "Reference count table too large"}),
    [](const auto& lie) { return std::string(lie.param.name); });

TEST(Layout, ExtendedL2NeedsLargeClusters) {
  Header h = sample();
  h.cluster_bits = 12;
  h.size = 4096;
  h.refcount_table_clusters = 1;
  h.extensions.feature_names.clear();
  h.incompatible_features = incompatible::kExtendedL2;
  auto parsed = parse_header(bytes_of(h), kFileSize);
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message(), HasSubstr("at least 16384 bytes, not 4096"));
}

TEST(Layout, UnknownFeaturesAreNamedByTheImage) {
  Header h = sample();
  h.extensions.feature_names.push_back({0, 42, "time\x1b travel"});
  auto bytes = bytes_of(h);
  store_be(bytes.data() + 72, (std::uint64_t{1} << 42) | (std::uint64_t{1} << 50));
  auto parsed = parse_header(bytes, kFileSize);
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().code(), ENOTSUP);
  EXPECT_EQ(parsed.error().message(),
            "Unsupported qcow2 feature(s): time? travel, Unknown incompatible feature: "
            "4000000000000");
}

TEST(Layout, EveryTruncationIsRefusedOrParsed) {
  Header h = sample();
  h.backing_file = "base.raw";
  const auto bytes = bytes_of(h);
  for (std::size_t n = 0; n < 700; ++n) {
    auto parsed = parse_header(std::span(bytes).first(n), n);
    EXPECT_FALSE(parsed) << "tables of a file of " << n << " bytes lie beyond its end";
  }
}

TEST(Layout, BitmapsExtensionBounds) {
  const auto refusal = [](const std::function<void(BitmapsExtension&)>& change) {
    Header h = sample();
    h.autoclear_features = autoclear::kBitmaps;
    h.extensions.bitmaps = BitmapsExtension{1, 100, 0x60000};
    change(*h.extensions.bitmaps);
    auto parsed = parse_header(bytes_of(h), kFileSize);
    return parsed ? std::string() : parsed.error().message();
  };
  EXPECT_EQ(refusal([](BitmapsExtension&) {}), "");
  EXPECT_THAT(refusal([](BitmapsExtension& b) { b.count = 0; }), HasSubstr("zero bitmaps"));
  EXPECT_THAT(refusal([](BitmapsExtension& b) { b.count = 65536; }), HasSubstr("65536 bitmaps"));
  EXPECT_THAT(refusal([](BitmapsExtension& b) { b.directory_offset = 0x60001; }),
              HasSubstr("0x60001"));
  EXPECT_THAT(refusal([](BitmapsExtension& b) { b.directory_size = ~std::uint64_t{0}; }),
              HasSubstr("exceeds the maximum supported size"));
}

TEST(Layout, StaleBitmapsExtensionIsDropped) {
  Header h = sample();
  h.extensions.bitmaps = BitmapsExtension{0, 0, 5};
  auto parsed = parse_header(bytes_of(h), kFileSize);
  ASSERT_TRUE(parsed) << "without autoclear bit 0 the extension means nothing";
  EXPECT_FALSE(parsed->extensions.bitmaps);
  EXPECT_TRUE(parsed->extensions.stale_bitmaps);
}

TEST(Layout, EncryptionPointerNeedsLuks) {
  Header h = sample();
  h.extensions.encryption = EncryptionPointer{0x70000, 10};
  auto parsed = parse_header(bytes_of(h), kFileSize);
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message(), HasSubstr("only expected with LUKS"));
  h.crypt_method = CryptMethod::kLuks;
  h.extensions.encryption->offset = 0x70001;
  parsed = parse_header(bytes_of(h), kFileSize);
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message(), HasSubstr("'458753' is not a multiple"));
}

TEST(Layout, ABackingNameThatNobodyCouldReadIsNotWritten) {
  Header header = sample();
  header.backing_file.assign(kMaxBackingNameBytes, 'n');
  EXPECT_TRUE(encode_header(header));
  header.backing_file += 'n';
  auto refused = encode_header(header);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(), "Backing file name too long: 1024 bytes, at most 1023");
}

TEST(Layout, ClusterSizeIsKnownFromTheFirstBytes) {
  const auto bytes = bytes_of(sample());
  auto size = probe_cluster_size(std::span(bytes).first(32));
  ASSERT_TRUE(size);
  EXPECT_EQ(*size, 65536U);
  EXPECT_FALSE(probe_cluster_size(std::span(bytes).first(31)));
}

}  // namespace
}  // namespace platter::qcow2

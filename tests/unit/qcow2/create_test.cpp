#include "formats/qcow2/create.h"

#include <gmock/gmock.h>

#include "unit/qcow2/image_support.h"

namespace platter::qcow2 {
namespace {

using platter::qcow2::testing::kMiB;
using platter::qcow2::testing::run;
using ::testing::HasSubstr;

Result<CreatePlan> plan(std::string_view text, std::uint64_t size) {
  Options options = *Options::parse_keyval(text);
  return plan_create(options, size);
}

std::string refusal(std::string_view options, std::uint64_t size = kMiB) {
  auto made = plan(options, size);
  return made ? std::string() : made.error().message();
}

TEST(Create, MistakesGetTheWordsOfQemuImg) {
  const std::string cluster_size = "Cluster size must be a power of two between 512 and 2048k";
  EXPECT_EQ(refusal("cluster_size=1000"), cluster_size);
  EXPECT_EQ(refusal("cluster_size=4M"), cluster_size);
  EXPECT_EQ(refusal("cluster_size=256"), cluster_size);
  EXPECT_EQ(refusal("compat=0.9"), "Parameter 'version' does not accept value '0.9'");
  const std::string width = "Refcount width must be a power of two and may not exceed 64 bits";
  EXPECT_EQ(refusal("refcount_bits=3"), width);
  EXPECT_EQ(refusal("refcount_bits=0"), width);
  EXPECT_EQ(refusal("refcount_bits=128"), width);
  EXPECT_EQ(refusal("compat=0.10,refcount_bits=8"),
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use "
            "version=v3 or greater)");
  EXPECT_EQ(refusal("compat=0.10,lazy_refcounts=on"),
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 "
            "or greater)");
  EXPECT_EQ(refusal("compat=v2,compression_type=zstd"),
            "Non-zlib compression type is only supported with compatibility level 1.1 and above "
            "(use version=v3 or greater)");
  EXPECT_EQ(refusal("compat=0.10,extended_l2=on"),
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use "
            "version=v3 or greater)");
  EXPECT_EQ(refusal("extended_l2=on,cluster_size=4k"),
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  EXPECT_EQ(refusal("compression_type=lz"),
            "Parameter 'compression-type' does not accept value 'lz'");
  EXPECT_EQ(refusal("preallocation=foo"), "Parameter 'preallocation' does not accept value 'foo'");
  EXPECT_EQ(
      refusal("preallocation=metadata,backing_file=b,backing_fmt=raw"),
      "Backing file and preallocation can only be used at the same time if extended_l2 is on");
  EXPECT_EQ(refusal("backing_fmt=raw"), "Backing format cannot be used without backing file");
  EXPECT_EQ(refusal("data_file_raw=on"), "data-file-raw requires data-file");
  EXPECT_EQ(refusal("compat=0.10,data_file=d"),
            "External data files are only supported with compatibility level 1.1 and above (use "
            "version=v3 or greater)");
  EXPECT_EQ(refusal("encrypt.format=foo"), "Parameter 'format' does not accept value 'foo'");
  EXPECT_EQ(refusal("encrypt.cipher-alg=aes-256"), "Parameter 'encrypt.format' is missing");
  const std::string too_large =
      "The image size is too large for file format 'qcow2' (try using a larger cluster size)";
  EXPECT_EQ(refusal("cluster_size=512", std::uint64_t{1} << 40), too_large);
  EXPECT_EQ(refusal("", std::uint64_t{7} << 60), too_large);
  EXPECT_EQ(refusal("cluster_size=2M", std::uint64_t{3} << 60), too_large);
  EXPECT_EQ(refusal("cluster_size=2M", std::uint64_t{2} << 60), "");
}

TEST(Create, NamesMustFitIntoTheFirstCluster) {
  EXPECT_THAT(refusal("backing_fmt=raw,backing_file=" + std::string(1024, 'x')),
              HasSubstr("Backing file name too long: 1024 bytes"));
  EXPECT_THAT(refusal("cluster_size=512,backing_fmt=raw,backing_file=" + std::string(600, 'x')),
              HasSubstr("do not fit into the first cluster"));
  EXPECT_EQ(refusal("cluster_size=512,backing_fmt=raw,backing_file=" + std::string(300, 'x')), "");
}

TEST(Create, TheFeatureTableIsLeftOutOfSmallClusters) {
  EXPECT_TRUE(plan("cluster_size=4096", kMiB)->header.extensions.feature_names.empty());
  EXPECT_FALSE(plan("cluster_size=8192", kMiB)->header.extensions.feature_names.empty());
  EXPECT_TRUE(plan("compat=0.10", kMiB)->header.extensions.feature_names.empty());
}

TEST(Create, SizesAreRoundedToSectors) {
  EXPECT_EQ(plan("", 1000)->header.size, 1024U);
  EXPECT_EQ(plan("", 0)->header.size, 0U);
}

TEST(Create, DefaultLayoutIsThatOfQemuImg) {
  const auto p = plan("", std::uint64_t{1} << 30);
  ASSERT_TRUE(p);
  EXPECT_EQ(p->header.refcount_table_offset, 0x10000U);
  EXPECT_EQ(p->refcount_blocks_offset, 0x20000U);
  EXPECT_EQ(p->header.l1_table_offset, 0x30000U);
  EXPECT_EQ(p->file_size, 196624U);
}

// Figures of qemu-img 7.2 measure: "fully allocated size".
TEST(Create, FullyAllocatedSizeIsThatOfQemuImg) {
  const std::uint64_t sizes[] = {0, 1, 1000, kMiB, 1 << 30, std::uint64_t{1} << 40, 7777777777};
  const auto figures = [&](const Geometry& g) {
    std::vector<std::uint64_t> all;
    for (const std::uint64_t size : sizes) all.push_back(fully_allocated_size(g, size));
    return all;
  };
  using ::testing::ElementsAre;
  Geometry g;
  EXPECT_THAT(figures(g),
              ElementsAre(196608, 393216, 393216, 1376256, 1074135040, 1099679662080, 7779254272));
  g.extended_l2 = true;
  EXPECT_THAT(figures(g),
              ElementsAre(196608, 393216, 393216, 1376256, 1074266112, 1099813879808, 7780171776));
  g.extended_l2 = false;
  g.refcount_order = 0;
  EXPECT_THAT(figures(g),
              ElementsAre(196608, 393216, 393216, 1376256, 1074135040, 1099648204800, 7779057664));
  g.refcount_order = 6;
  EXPECT_THAT(figures(g),
              ElementsAre(196608, 393216, 393216, 1376256, 1074266112, 1099780325376, 7779975168));
  g.refcount_order = 4;
  g.cluster_bits = 21;
  EXPECT_THAT(figures(g), ElementsAre(6291456, 12582912, 12582912, 12582912, 1084227584,
                                      1099524210688, 7788822528));
  g.cluster_bits = 9;
  EXPECT_EQ(fully_allocated_size(g, 1000), 3584U);
  EXPECT_EQ(fully_allocated_size(g, kMiB), 1071104U);
  EXPECT_EQ(fully_allocated_size(g, 7777777777), 7932677120U);
}

CheckResult made_and_checked(std::string_view options, std::uint64_t size) {
  auto p = plan(options, size);
  EXPECT_TRUE(p) << (p ? "" : p.error().message());
  const NodePtr node = make_memory_node("n", 0);
  const Header wanted = p->header;
  const std::uint64_t end = p->clusters << p->header.cluster_bits;
  auto written = run([&] { return write_image(*node, *p); });
  EXPECT_OK(written);
  auto header = run([&] { return read_header(*node); });
  EXPECT_OK(header);
  if (!header) return {};
  EXPECT_EQ(*header, wanted);
  CheckRequest request;
  std::string findings;
  request.report = [&](std::string_view line) { findings += std::string(line) + "\n"; };
  auto checked = run([&] { return check_image(*node, *header, request); });
  EXPECT_OK(checked);
  EXPECT_EQ(findings, "");
  if (!checked) return {};
  EXPECT_EQ(checked->corruptions + checked->leaks + checked->check_errors, 0U);
  EXPECT_EQ(checked->image_end_offset, end);
  return *checked;
}

TEST(Create, EveryClusterSizeAndRefcountWidthIsClean) {
  for (unsigned bits = 9; bits <= 21; ++bits) {
    for (unsigned width = 1; width <= 64; width *= bits == 9 || bits == 16 ? 2 : 64) {
      const std::string options =
          fmt::format("cluster_size={},refcount_bits={}", 1u << bits, width);
      SCOPED_TRACE(options);
      made_and_checked(options, 6 * kMiB + 512);
      const std::uint64_t some =
          std::min<std::uint64_t>(3 * kMiB, std::uint64_t{200} << bits) + 512;
      const CheckResult full = made_and_checked(options + ",preallocation=metadata", some);
      EXPECT_EQ(full.allocated_clusters, full.total_clusters);
      EXPECT_EQ(full.fragmented_clusters, 0U);
    }
  }
}

TEST(Create, LargeL1AndManyRefcountBlocks) {
  made_and_checked("cluster_size=512", std::uint64_t{100} << 30);
  made_and_checked("cluster_size=512,refcount_bits=64,preallocation=metadata", 64 * kMiB);
}

TEST(Create, WhatWasThereDoesNotShowThrough) {
  auto p = plan("cluster_size=4096", kMiB);
  ASSERT_TRUE(p);
  const NodePtr node = make_memory_node("n", 0);
  const auto old = platter::testing::filled(2 * kMiB, 0xff);
  ASSERT_OK(platter::testing::write_bytes(*node, 0, old));
  ASSERT_OK(run([&] { return write_image(*node, *p); }));
  auto header = run([&] { return read_header(*node); });
  ASSERT_OK(header);
  auto l1 =
      run([&] { return read_table(*node, "L1 table", header->l1_table_offset, header->l1_size); });
  ASSERT_OK(l1);
  for (const std::uint64_t entry : *l1) EXPECT_EQ(entry, 0U);
  auto table =
      run([&] { return read_table(*node, "refcount table", header->refcount_table_offset, 512); });
  ASSERT_OK(table);
  for (std::size_t i = 1; i < 512; ++i) EXPECT_EQ((*table)[i], 0U);
}

TEST(Create, MeasureOfASize) {
  MeasureRequest request;
  request.size = 1 << 30;
  auto measured = run([&] { return measure(request); });
  ASSERT_OK(measured);
  EXPECT_EQ(measured->required, 393216U);
  EXPECT_EQ(measured->fully_allocated, 1074135040U);
  EXPECT_FALSE(measured->bitmaps);
  request.options.set("preallocation", "full");
  measured = run([&] { return measure(request); });
  ASSERT_OK(measured);
  EXPECT_EQ(measured->required, 1074135040U);
  request.options.set("cluster_size", "512");
  request.size = std::uint64_t{1} << 40;
  measured = run([&] { return measure(request); });
  ASSERT_FALSE(measured);
  EXPECT_EQ(measured.error().message(),
            "The image size is too large (try using a larger cluster size)");
}

}  // namespace
}  // namespace platter::qcow2

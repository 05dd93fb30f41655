#include "tools/img/format.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace platter::img {
namespace {

TEST(Format, SizesHaveThreeDigits) {
  EXPECT_EQ(size_text(0), "0 B");
  EXPECT_EQ(size_text(999), "999 B");
  EXPECT_EQ(size_text(1000), "0.977 KiB");
  EXPECT_EQ(size_text(1024), "1 KiB");
  EXPECT_EQ(size_text(200704), "196 KiB");
  EXPECT_EQ(size_text(1610612736), "1.5 GiB");
  EXPECT_EQ(size_text(std::uint64_t{1} << 40), "1 TiB");
  EXPECT_EQ(size_text(~std::uint64_t{0}), "16 EiB");
}

TEST(Format, VmClock) {
  EXPECT_EQ(vm_clock_text(0), "00:00:00.000");
  EXPECT_EQ(vm_clock_text(3'723'004'999'999), "01:02:03.004");
  EXPECT_EQ(vm_clock_text(std::uint64_t{360'000} * 1'000'000'000), "100:00:00.000");
}

SnapshotInfo example() {
  SnapshotInfo snapshot;
  snapshot.id = "1";
  snapshot.name = "s1";
  snapshot.date_seconds = 1'795'357'811;
  snapshot.date_nanoseconds = 548'771'000;
  snapshot.vm_clock_nanoseconds = 1'500'000'000;
  snapshot.icount = 7;
  return snapshot;
}

TEST(Format, SnapshotTable) {
  setenv("TZ", "UTC", 1);
  SnapshotInfo other = example();
  other.name = "0123456789012345678901234";
  other.icount.reset();
  EXPECT_EQ(
      snapshot_table({example(), other}),
      "Snapshot list:\n"
      "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n"
      "1         s1                    0 B 2026-11-22 14:30:11 00:00:01.500          7\n"
      "1         0123456789012345678901234      0 B 2026-11-22 14:30:11 00:00:01.500           \n");
}

TEST(Format, SnapshotJsonSplitsTheClock) {
  const std::string text = snapshot_json(example()).compact();
  EXPECT_NE(text.find(R"("vm-clock-sec": 1)"), std::string::npos);
  EXPECT_NE(text.find(R"("vm-clock-nsec": 500000000)"), std::string::npos);
  EXPECT_NE(text.find(R"("icount": 7)"), std::string::npos);
}

TEST(Format, FieldsNestAndListsCount) {
  const std::vector<InfoField> fields = {
      {"compat", std::string("1.1")},
      {"lazy-refcounts", false},
      {"bitmaps", InfoField::Fields{{"", InfoField::Fields{{"name", std::string("b")}}}}},
      {"refcount-bits", std::uint64_t{16}}};
  EXPECT_EQ(fields_text(fields, 1),
            "    compat: 1.1\n"
            "    lazy refcounts: false\n"
            "    bitmaps:\n"
            "        [0]:\n"
            "            name: b\n"
            "    refcount bits: 16\n");
  EXPECT_EQ(
      fields_json(fields).compact(),
      R"({"compat": "1.1", "lazy-refcounts": false, "bitmaps": [{"name": "b"}], "refcount-bits": 16})");
}

}  // namespace
}  // namespace platter::img

#include "formats/qcow2/info.h"

#include <gtest/gtest.h>

namespace platter::qcow2 {
namespace {

std::string names(const InfoField::Fields& fields) {
  std::string all;
  for (const InfoField& field : fields) all += field.name + ' ';
  return all;
}

TEST(Info, Version2SaysLess) {
  Header header;
  header.version = 2;
  EXPECT_EQ(names(format_info(header).specific), "compat compression-type refcount-bits ");
}

TEST(Info, EverythingInQemusOrder) {
  Header header;
  header.incompatible_features = incompatible::kDataFile | incompatible::kDirty;
  header.autoclear_features = autoclear::kDataFileRaw;
  header.crypt_method = CryptMethod::kLuks;
  header.extensions.data_file = "data";
  BitmapEntry bitmap;
  bitmap.name = "b";
  bitmap.flags = bitmap_flag::kAuto | bitmap_flag::kInUse;
  const FormatInfo info = format_info(header, std::span(&bitmap, 1));
  EXPECT_TRUE(info.dirty);
  EXPECT_TRUE(info.encrypted);
  EXPECT_EQ(names(info.specific),
            "compat compression-type lazy-refcounts bitmaps refcount-bits encrypt data-file "
            "data-file-raw corrupt extended-l2 ");
  const auto& list = std::get<InfoField::Fields>(info.specific[3].value);
  ASSERT_EQ(list.size(), 1U);
  const auto& fields = std::get<InfoField::Fields>(list[0].value);
  EXPECT_EQ(names(fields), "flags name granularity ");
  EXPECT_EQ(std::get<InfoField::Fields>(fields[0].value).size(), 2U);
  EXPECT_EQ(std::get<std::uint64_t>(fields[2].value), 65536U);
}

}  // namespace
}  // namespace platter::qcow2

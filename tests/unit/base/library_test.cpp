#include "block/base/library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace platter {
namespace {

using ::testing::HasSubstr;

TEST(SharedLibrary, GivesItsFunctions) {
  const auto library = SharedLibrary::load("libm.so.6", "libc6");
  ASSERT_TRUE(library) << library.error().message();
  double (*cube_root)(double) = nullptr;
  ASSERT_TRUE(library->find("cbrt", cube_root));
  EXPECT_DOUBLE_EQ(cube_root(27.0), 3.0);
}

TEST(SharedLibrary, AMissingOneIsNamedWithItsPackage) {
  const auto library = SharedLibrary::load("libplatter-none.so.1", "platter-none");
  ASSERT_FALSE(library);
  EXPECT_EQ(library.error().code(), ENOENT);
  EXPECT_THAT(library.error().message(), HasSubstr("'libplatter-none.so.1'"));
  EXPECT_THAT(library.error().message(), HasSubstr("package 'platter-none'"));
}

TEST(SharedLibrary, AMissingFunctionIsNamed) {
  const auto library = SharedLibrary::load("libm.so.6", "libc6");
  ASSERT_TRUE(library) << library.error().message();
  void (*none)() = nullptr;
  const auto found = library->find("platter_none", none);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code(), ENOSYS);
  EXPECT_THAT(found.error().message(), HasSubstr("'platter_none'"));
}

}  // namespace
}  // namespace platter

// Lines to a reader that does not read.
#include "tools/run/report.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <string>

#include "block/base/unique_fd.h"

namespace platter::run {
namespace {

struct ReportTest : ::testing::Test {
  void SetUp() override {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    reader = UniqueFd(ends[0]);
    writer = UniqueFd(ends[1]);
  }
  std::string read() {
    std::array<char, 65536> bytes;
    const ssize_t count = ::read(reader.get(), bytes.data(), bytes.size());
    return {bytes.data(), count < 0 ? 0 : static_cast<std::size_t>(count)};
  }
  UniqueFd reader, writer;
};

TEST_F(ReportTest, LinesArriveWhole) {
  EXPECT_TRUE(report(writer.get(), "one"));
  EXPECT_TRUE(report(writer.get(), "two"));
  EXPECT_EQ(read(), "one\ntwo\n");
  EXPECT_TRUE(report(writer.get(), std::string(10000, 'x')));
  EXPECT_EQ(read(), std::string(4095, 'x') + "\n");
}

TEST_F(ReportTest, AFullPipeIsNotWaitedFor) {
  unsigned taken = 0;
  while (report(writer.get(), std::string(4000, 'x'))) ASSERT_LT(++taken, 100000U);
  EXPECT_GT(taken, 0U);
  read();
  EXPECT_TRUE(report(writer.get(), "again"));
}

TEST_F(ReportTest, NobodyThere) {
  writer.close();
  EXPECT_FALSE(report(reader.get(), "x"));
}

}  // namespace
}  // namespace platter::run

// Who is told of a write that the kernel took and could not keep.
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "unit/adapters/adapter_test.h"

namespace {
std::atomic<bool> lose_a_write{false};
}

// In the place of the library's: the kernel tells of a lost write once, whoever asks first.
extern "C" int fsync(int fd) {
  if (lose_a_write.exchange(false)) {
    errno = EIO;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

namespace platter {
namespace {

class LostWrite : public ::testing::Test {
 protected:
  void TearDown() override { lose_a_write = false; }
  const ScratchDir dir_;
};

TEST_F(LostWrite, ThatGrowthIsToldOfFailsTheNextFlush) {
  write_file(dir_ / "disk", std::string(4096, 'x'));
  OpenDriver file("file", filename_options(dir_ / "disk"), {.read_only = false});
  ASSERT_TRUE(file) << file.error();
  std::vector<std::byte> bytes(4096);
  ASSERT_TRUE(file.write(0, IoVec(std::span(bytes))));
  lose_a_write = true;
  const Result<void> grown = file.resize({.size = 65536, .preallocation = Preallocation::kFull});
  const Result<void> flushed = file.flush();
  EXPECT_TRUE(grown || !flushed) << error_of(grown);
  EXPECT_EQ(file->size(), grown ? 65536U : 4096U);
}

TEST_F(LostWrite, FailsTheCreationOfAFile) {
  CreateRequest request{.filename = dir_ / "disk", .size = 65536, .options = {}};
  request.options.set("preallocation", "full");
  auto executor = Executor::create();
  lose_a_write = true;
  const auto created = (*executor)->block_on([&] { return find_driver("file")->create(request); });
  EXPECT_EQ(error_of(created), "Could not flush file to disk: Input/output error");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "disk"));
}

}  // namespace
}  // namespace platter

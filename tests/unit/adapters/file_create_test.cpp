// Creating image files, and what is left of them when that fails.
#include "block/adapters/file_create.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "block/adapters/byte_locks.h"
#include "block/adapters/posix_file.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

Result<void> create(const std::string& path, std::uint64_t size,
                    std::initializer_list<std::pair<const char*, const char*>> options = {}) {
  CreateRequest request{.filename = path, .size = size, .options = {}};
  for (const auto& [name, value] : options) request.options.set(name, value);
  auto executor = Executor::create();
  const DriverType* type = find_driver("file");
  return (*executor)->block_on([&] { return type->create(request); });
}

std::uint64_t blocks(const std::string& path) {
  struct stat status{};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

TEST(FileCreate, SizeAndPreallocation) {
  const ScratchDir dir;
  ASSERT_TRUE(create(dir / "off", 1 << 20));
  EXPECT_EQ(std::filesystem::file_size(dir / "off"), 1U << 20);
  EXPECT_EQ(blocks(dir / "off"), 0U);
  for (const char* mode : {"falloc", "full"}) {
    ASSERT_TRUE(create("file:" + (dir / mode), 1 << 20, {{"preallocation", mode}}));
    EXPECT_EQ(std::filesystem::file_size(dir / mode), 1U << 20);
    EXPECT_GE(blocks(dir / mode), 1U << 20);
  }
  ASSERT_TRUE(create(dir / "cow", 4096, {{"nocow", "on"}, {"extent_size_hint", "1M"}}));
}

TEST(FileCreate, ReplacesWhatWasThere) {
  const ScratchDir dir;
  write_file(dir / "disk", std::string(10'000, 'x'));
  ASSERT_TRUE(create(dir / "disk", 5000));
  EXPECT_EQ(read_file(dir / "disk"), std::string(5000, '\0'));
}

TEST(FileCreate, AnExistingFileSurvivesRefusals) {
  const ScratchDir dir;
  const std::string path = dir / "disk";
  write_file(path, "precious");
  struct statvfs space{};
  ASSERT_EQ(::statvfs(dir.path().c_str(), &space), 0);
  EXPECT_EQ(error_of(create(path, 1, {{"preallocation", "metadata"}})),
            "Unsupported preallocation mode: metadata");
  EXPECT_FALSE(create(path, 1, {{"preallocation", "some"}}));
  EXPECT_FALSE(create(path, 1, {{"nocow", "perhaps"}}));
  EXPECT_FALSE(create(path, std::uint64_t{1} << 63));
  // More than any file system here can have in one file, or has free.
  const std::uint64_t too_much = space.f_blocks * space.f_frsize * 4;
  EXPECT_EQ(error_of(create(path, too_much, {{"preallocation", "full"}})),
            "Could not preallocate data for the new file: No space left on device");
  EXPECT_FALSE(create(path, std::uint64_t{7} << 60));
  EXPECT_EQ(read_file(path), "precious");

  UniqueFd user(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  ByteLocks locks(Locking::kOn);
  ASSERT_TRUE(locks.change(user.get(), Permissions::writer(), path));
  EXPECT_EQ(error_of(create(path, 1)),
            "Failed to get \"write\" lock: Is another process using the image [" + path + "]?");
  EXPECT_EQ(read_file(path), "precious");
}

TEST(FileCreate, ANewFileIsGoneAfterAFailure) {
  const ScratchDir dir;
  EXPECT_FALSE(create(dir / "disk", std::uint64_t{7} << 60));
  EXPECT_FALSE(std::filesystem::exists(dir / "disk"));
  EXPECT_EQ(error_of(create(dir / "none/disk", 1)),
            "Could not create '" + (dir / "none/disk") + "': No such file or directory");
  EXPECT_EQ(error_of(create(dir.path(), 1)),
            "Could not create '" + dir.path() + "': Is a directory");
}

TEST(FileCreate, FifosAndDevicesAreRefusedWithoutWaiting) {
  const ScratchDir dir;
  ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(error_of(create(dir / "fifo", 1)),
            "'file' driver requires '" + (dir / "fifo") + "' to be a regular file");
  EXPECT_EQ(error_of(create("/dev/null", 1)),
            "'file' driver requires '/dev/null' to be a regular file");
}

TEST(FileCreate, ADanglingLinkGetsItsTarget) {
  const ScratchDir dir;
  std::filesystem::create_symlink(dir / "target", dir / "link");
  ASSERT_TRUE(create(dir / "link", 4096));
  EXPECT_EQ(std::filesystem::file_size(dir / "target"), 4096U);
}

}  // namespace
}  // namespace platter

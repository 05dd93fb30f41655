// The file driver, on a disk's file system and on one in memory.
#include "block/adapters/file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <numeric>
#include <random>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

constexpr OpenFlags kReadWrite{.read_only = false};
constexpr OpenFlags kDirect{.read_only = false, .direct = true};

std::string pattern(std::size_t size, unsigned seed = 1) {
  std::string text(size, '\0');
  std::mt19937 random(seed);
  for (char& c : text) c = static_cast<char>(random() % 255 + 1);
  return text;
}

IoVec iov_of(std::string& text) { return IoVec(std::as_writable_bytes(std::span(text))); }

// Where the tests put their files: the temporary folder, and memory.
class FileTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!std::filesystem::is_directory(GetParam())) GTEST_SKIP() << "no folder " << GetParam();
    dir_ = std::make_unique<ScratchDir>(GetParam());
    path_ = *dir_ / "disk";
  }
  OpenDriver open(OpenFlags flags = kReadWrite) {
    return OpenDriver("file", filename_options(path_), flags);
  }
  std::unique_ptr<ScratchDir> dir_;
  std::string path_;
};

INSTANTIATE_TEST_SUITE_P(Places, FileTest, ::testing::Values("/tmp", "/dev/shm"),
                         [](const auto& place) { return place.index == 0 ? "Disk" : "Memory"; });

TEST_P(FileTest, ReadsAndWrites) {
  write_file(path_, "");
  OpenDriver file = open();
  ASSERT_TRUE(file) << file.error();
  EXPECT_EQ(file->size(), 0U);
  std::string out = pattern(100'000);
  ASSERT_TRUE(file.write(7, iov_of(out)));
  EXPECT_EQ(file->size(), 100'007U);
  std::string in(out.size(), '?');
  ASSERT_TRUE(file.read(7, iov_of(in)));
  EXPECT_TRUE(in == out);
  EXPECT_TRUE(read_file(path_).substr(7) == out);
}

TEST_P(FileTest, WhatLiesBehindTheEndReadsAsZeroes) {
  write_file(path_, "abc");
  OpenDriver file = open();
  std::string in(10, '?');
  ASSERT_TRUE(file.read(1, iov_of(in)));
  EXPECT_EQ(in, std::string("bc") + std::string(8, '\0'));
  in.assign(10, '?');
  ASSERT_TRUE(file.read(1000, iov_of(in)));
  EXPECT_EQ(in, std::string(10, '\0'));
}

TEST_P(FileTest, MoreSegmentsThanTheKernelTakesAtOnce) {
  write_file(path_, "");
  OpenDriver file = open();
  std::string out = pattern(5000);
  std::vector<iovec> segments;
  for (char& c : out) segments.push_back({&c, 1});
  ASSERT_TRUE(file.write(3, IoVec(std::span<const iovec>(segments))));
  std::string in(out.size(), '?');
  std::vector<iovec> into;
  for (std::size_t i = 0; i < in.size(); i += 2) into.push_back({&in[i], 2});
  ASSERT_TRUE(file.read(3, IoVec(std::span<const iovec>(into))));
  EXPECT_TRUE(in == out);
}

TEST_P(FileTest, LongRequestsAndDurableOnes) {
  write_file(path_, "");
  OpenDriver file = open();
  std::string out = pattern(3 << 20);
  ASSERT_TRUE(file.write(0, iov_of(out)));
  std::string durable = pattern(4096, 2);
  ASSERT_TRUE(file.write(1 << 20, iov_of(durable), {.fua = true}));
  out.replace(1 << 20, durable.size(), durable);
  ASSERT_TRUE(file.flush());
  std::string in(out.size(), '?');
  ASSERT_TRUE(file.read(0, iov_of(in)));
  EXPECT_TRUE(in == out);
}

TEST_P(FileTest, DirectRequestsKeepToTheAlignmentAsked) {
  write_file(path_, pattern(10'000));
  OpenDriver file = open(kDirect);
  if (!file && file.error().find("does not support O_DIRECT") != std::string::npos) {
    GTEST_SKIP() << "no O_DIRECT here";
  }
  ASSERT_TRUE(file) << file.error();
  const Limits limits = file->limits();
  EXPECT_GE(limits.memory_alignment, limits.request_alignment);
  EXPECT_LE(limits.memory_alignment, Buffer::kAlignment);
  // To the end, rounded up: what is missing are zeroes.
  Buffer buffer(align_up<std::uint64_t>(10'000, limits.request_alignment));
  ASSERT_TRUE(file.read(0, buffer.iov()));
  EXPECT_EQ(std::memcmp(buffer.data(), pattern(10'000).data(), 10'000), 0);
  EXPECT_TRUE(is_zero(buffer.span(10'000, buffer.size() - 10'000)));
  Buffer block(4096);
  std::memset(block.data(), 0x77, block.size());
  ASSERT_TRUE(file.write(4096, block.iov()));
  ASSERT_TRUE(file.flush());
  EXPECT_EQ(read_file(path_).substr(4096, 4096), std::string(4096, 0x77));
}

TEST_P(FileTest, ZeroesInsideAndBeyondTheEnd) {
  std::string model = pattern(1 << 20);
  write_file(path_, model);
  OpenDriver file = open();
  for (const bool may_unmap : {false, true}) {
    for (const auto& [offset, length] : std::vector<std::pair<std::size_t, std::size_t>>{
             {4096, 65536}, {100'001, 50'003}, {model.size() - 5000, 9000}}) {
      const Result<void> done = file.zero(offset, length, {.may_unmap = may_unmap});
      if (!done && done.error().code() == ENOTSUP) GTEST_SKIP() << "no zeroing here";
      ASSERT_TRUE(done) << error_of(done);
      model.resize(std::max(model.size(), offset + length));
      std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset), length, '\0');
      EXPECT_EQ(file->size(), model.size());
      EXPECT_TRUE(read_file(path_) == model) << offset << " " << may_unmap;
      model += pattern(20'000, static_cast<unsigned>(model.size()));
      std::string tail = model.substr(model.size() - 20'000);
      ASSERT_TRUE(file.write(model.size() - 20'000, iov_of(tail), {.fua = true}));
    }
  }
}

std::string describe(OpenDriver& file) {
  std::string text;
  for (std::uint64_t at = 0; at < file->size();) {
    const Result<Extent> extent = file.extent(at, file->size() - at);
    if (!extent || extent->length == 0 || extent->offset != at || extent->host_offset != at) {
      return "bad answer";
    }
    text +=
        fmt::format("{}{} ", extent->kind == ExtentKind::kData ? 'd' : 'z', extent->length >> 16);
    at += extent->length;
  }
  return text;
}

TEST_P(FileTest, ExtentsFollowWhatIsWrittenAndDiscarded) {
  write_file(path_, "");
  OpenDriver file = open();
  constexpr std::uint64_t kUnit = 65536;
  ASSERT_TRUE(file.resize({.size = 16 * kUnit}));
  if (file.extent(0, 1)->kind == ExtentKind::kData) GTEST_SKIP() << "no holes here";
  EXPECT_EQ(describe(file), "z16 ");
  std::string data = pattern(2 * kUnit);
  ASSERT_TRUE(file.write(4 * kUnit, iov_of(data)));
  EXPECT_EQ(describe(file), "z4 d2 z10 ");
  // The cached extent answers within itself and is clipped to what was asked.
  EXPECT_EQ(file.extent(5 * kUnit, 2 * kUnit)->length, kUnit);
  EXPECT_EQ(file.extent(5 * kUnit + 10, 100)->length, 100U);
  ASSERT_TRUE(file.discard(5 * kUnit, kUnit));
  EXPECT_EQ(describe(file), "z4 d1 z11 ");
  std::string in(kUnit, '?');
  ASSERT_TRUE(file.read(5 * kUnit, iov_of(in)));
  EXPECT_EQ(in, std::string(kUnit, '\0'));
  ASSERT_TRUE(file.zero(4 * kUnit, kUnit, {.may_unmap = true}));
  EXPECT_EQ(describe(file), "z16 ");
  EXPECT_EQ(*file->allocated_size(), 0U);
}

TEST_P(FileTest, Resizing) {
  write_file(path_, pattern(5000));
  OpenDriver file = open();
  ASSERT_TRUE(file.resize({.size = 3000}));
  EXPECT_EQ(file->size(), 3000U);
  ASSERT_TRUE(file.resize({.size = 100'000, .preallocation = Preallocation::kFalloc}));
  EXPECT_GE(*file->allocated_size(), 98'000U);
  ASSERT_TRUE(file.resize({.size = 200'000, .preallocation = Preallocation::kFull}));
  EXPECT_EQ(read_file(path_), pattern(5000).substr(0, 3000) + std::string(197'000, '\0'));
  EXPECT_EQ(error_of(file.resize({.size = 10, .preallocation = Preallocation::kFull})),
            "Cannot use preallocation for shrinking files");
  EXPECT_EQ(error_of(file.resize({.size = 300'000, .preallocation = Preallocation::kMetadata})),
            "Unsupported preallocation mode: metadata");
  EXPECT_FALSE(file.resize({.size = ~std::uint64_t{0}}));
  EXPECT_EQ(file->size(), 200'000U);
}

TEST_P(FileTest, ReopeningChangesWhatMayBeDone) {
  write_file(path_, pattern(8192));
  OpenDriver file = open({.read_only = true});
  ASSERT_TRUE(file.permissions(Permissions::reader()));
  std::string data = "x";
  EXPECT_FALSE(file.write(0, iov_of(data)));
  ASSERT_TRUE(file.reopen(kReadWrite));
  ASSERT_TRUE(file.permissions(Permissions::writer()));
  EXPECT_TRUE(file.write(0, iov_of(data)));
  // The locks went along: another writer is kept out.
  OpenDriver other = open();
  EXPECT_EQ(error_of(other.permissions(Permissions::writer())),
            "Failed to get \"write\" lock: Is another process using the image [" + path_ + "]?");
  ASSERT_TRUE(file.permissions(Permissions::reader()));
  ASSERT_TRUE(file.reopen({.read_only = true}));
  EXPECT_FALSE(file.write(0, iov_of(data)));
  EXPECT_FALSE(other.permissions(Permissions::writer()));
  file.destroy();
  EXPECT_TRUE(other.permissions(Permissions::writer()));
}

TEST_P(FileTest, RightsMayChangeInTheMidstOfAReopen) {
  write_file(path_, pattern(8192));
  OpenDriver file = open({.read_only = true});
  OpenDriver other = open();
  ASSERT_TRUE(file.permissions(Permissions::reader()));
  ASSERT_TRUE(file.run([&] { return file->prepare_reopen(kReadWrite); }));
  EXPECT_EQ(error_of(file.permissions(Permissions::writer())), "");
  file->commit_reopen();
  EXPECT_FALSE(other.permissions(Permissions::writer()));

  ASSERT_TRUE(file.run([&] { return file->prepare_reopen({.read_only = true}); }));
  EXPECT_EQ(error_of(file.permissions(Permissions::unsafe_reader())), "");
  file->commit_reopen();
  // Nothing of the old rights is left behind.
  EXPECT_EQ(error_of(other.permissions(Permissions::writer())), "");
}

// --- opening -------------------------------------------------------------------------------------

TEST(FileOpen, OnlyRegularFiles) {
  const ScratchDir dir;
  ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
  const int sock = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  const std::string socket_path = dir / "socket";
  socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(sock, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  std::filesystem::create_symlink(dir / "fifo", dir / "link");
  for (const std::string& path :
       {dir.path(), dir / "fifo", dir / "link", socket_path, std::string("/dev/zero")}) {
    for (const bool read_only : {true, false}) {
      OpenDriver file("file", filename_options(path), {.read_only = read_only});
      const std::string reason = path == dir.path() && !read_only
                                     ? "Could not open '" + path + "': Is a directory"
                                     : "'file' driver requires '" + path + "' to be a regular file";
      EXPECT_EQ(file.error(), reason);
    }
  }
  OpenDriver missing("file", filename_options(dir / "none"), {});
  EXPECT_EQ(missing.error(), "Could not open '" + (dir / "none") + "': No such file or directory");
  EXPECT_EQ(OpenDriver("file", {}, {}).error(), "The 'file' block driver requires a file name");
  ::close(sock);
}

TEST(FileOpen, OptionsAreChecked) {
  const ScratchDir dir;
  write_file(dir / "disk", "x");
  for (const char* aio : {"threads", "io_uring"}) {
    Options options = filename_options("file:" + (dir / "disk"));
    options.set("aio", aio);
    options.set("locking", "off");
    options.set("drop-cache", "off");
    options.set("x-check-cache-dropped", "on");
    EXPECT_TRUE(OpenDriver("file", options, {}));
  }
  Options options = filename_options(dir / "disk");
  options.set("aio", "native");
  EXPECT_EQ(OpenDriver("file", options, {}).error(),
            "aio=native was specified, but it requires cache.direct=on, which was not specified.");
  options = filename_options(dir / "disk");
  options.set("drop-cache", "maybe");
  EXPECT_EQ(OpenDriver("file", options, {}).error(),
            "Parameter 'drop-cache' expects 'on' or 'off'");
  options = filename_options(dir / "disk");
  options.set("aio", "fast");
  EXPECT_EQ(OpenDriver("file", options, {}).error(), "invalid parameter value: fast");
  options = filename_options(dir / "disk");
  options.set("locking", "maybe");
  EXPECT_EQ(OpenDriver("file", options, {}).error(), "invalid parameter value: maybe");
}

// --- several at once -----------------------------------------------------------------------------

Task<Result<void>> hammer(Driver& driver, unsigned seed, std::vector<std::string>& model) {
  std::mt19937 random(seed);
  for (int i = 0; i < 200; ++i) {
    // Each coroutine has every eighth block for its own.
    const std::size_t block = random() % 16 * 8 + seed;
    std::string& expected = model[block];
    const std::uint64_t offset = block * 4096;
    if (random() % 2 == 0) {
      expected = std::string(4096, static_cast<char>(random()));
      auto written = co_await driver.do_write(offset, iov_of(expected), WriteFlags{});
      PLATTER_CO_TRY(written);
    } else {
      std::string in(4096, '?');
      auto got = co_await driver.do_read(offset, iov_of(in), ReadFlags{});
      PLATTER_CO_TRY(got);
      if (in != expected) co_return fail(EIO, "block {} differs", block);
    }
    if (i % 50 == 0) {
      auto flushed = co_await driver.do_flush();
      PLATTER_CO_TRY(flushed);
    }
  }
  co_return {};
}

Task<int> hammer_all(Driver& driver, std::vector<std::string>& model) {
  std::vector<Task<Result<void>>> tasks;
  for (unsigned seed = 0; seed < 8; ++seed) tasks.push_back(hammer(driver, seed, model));
  int good = 0;
  for (auto& task : tasks) {
    const Result<void> result = co_await task;
    good += result.has_value();
  }
  co_return good;
}

TEST_P(FileTest, ManyRequestsAtOnce) {
  std::vector<std::string> model(16 * 8, std::string(4096, '\0'));
  write_file(path_, std::string(model.size() * 4096, '\0'));
  OpenDriver file = open();
  EXPECT_EQ(file.run([&] { return hammer_all(*file, model); }), 8);
  EXPECT_TRUE(read_file(path_) == std::accumulate(model.begin(), model.end(), std::string()));
}

TEST_P(FileTest, RunningOutOfSpaceIsReported) {
  write_file(path_, "");
  OpenDriver file = open();
  // A limit on the file's size stands in for the full disk; the signal that comes with it is off.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small{8192, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string data = pattern(16384);
  const Result<void> written = file.write(0, iov_of(data));
  const Result<void> resized = file.resize({.size = 1 << 20});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), EFBIG);
  EXPECT_EQ(error_of(resized), "Failed to resize file: File too large");
  EXPECT_EQ(file->size(), 8192U);
}

}  // namespace
}  // namespace platter

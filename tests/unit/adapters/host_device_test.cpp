// Block devices, as loop devices over files.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

#include "block/adapters/posix_file.h"
#include "block/base/unique_fd.h"
#include "block/exec/buffer.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

constexpr OpenFlags kDeviceReadWrite{.read_only = false};

// First line of what a command prints; empty when it fails.
std::string output_of(const std::string& command) {
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  char line[256] = {};
  if (pipe && !fgets(line, sizeof line, pipe)) line[0] = '\0';
  if (pipe && pclose(pipe) != 0) return {};
  std::string text = line;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

class LoopDevice {
 public:
  LoopDevice(const std::string& file, const std::string& options) {
    path_ = output_of("losetup -f --show " + options + " " + file);
  }
  ~LoopDevice() {
    if (!path_.empty()) output_of("losetup -d " + path_);
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class HostDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root to set up loop devices";
    if (output_of("losetup --version").empty()) GTEST_SKIP() << "needs losetup (util-linux)";
    std::filesystem::resize_file(file_, kSize);
  }
  void TearDown() override {
    loop_.reset();
    if (!mounted_.empty()) ::umount2(mounted_.c_str(), MNT_DETACH);
  }

  // False when this machine has no loop devices.
  bool attach(const std::string& options = "") {
    loop_ = std::make_unique<LoopDevice>(file_, options);
    return !loop_->path().empty();
  }
  OpenDriver open(OpenFlags flags = kDeviceReadWrite) {
    return OpenDriver("host_device", filename_options(loop_->path()), flags);
  }

  static constexpr std::uint64_t kSize = 4 << 20;
  ScratchDir dir_;
  std::string file_ = [this] {
    write_file(dir_ / "disk", "");
    return dir_ / "disk";
  }();
  std::unique_ptr<LoopDevice> loop_;
  std::string mounted_;
};

#define ATTACH_OR_SKIP(...) \
  if (!attach(__VA_ARGS__)) GTEST_SKIP() << "this machine has no loop devices"

TEST_F(HostDevice, ReadsWritesZeroesAndDiscards) {
  ATTACH_OR_SKIP("");
  for (const bool direct : {false, true}) {
    OpenDriver device = open({.read_only = false, .direct = direct});
    ASSERT_TRUE(device) << device.error();
    EXPECT_EQ(device->size(), kSize);
    EXPECT_FALSE(device->can_grow());
    EXPECT_EQ(device->limits().request_alignment, direct ? 512U : 1U);
    EXPECT_EQ(device->limits().discard_alignment, 512U);
    Buffer out(1 << 20);
    std::memset(out.data(), 0x5a, out.size());
    ASSERT_TRUE(device.write(1 << 20, out.iov()));
    ASSERT_TRUE(device.zero((1 << 20) + 512, 8192, {.fua = true, .may_unmap = false}));
    ASSERT_TRUE(device.zero((1 << 20) + 65536, 65536, {.may_unmap = true}));
    ASSERT_TRUE(device.flush());
    Buffer in(1 << 20);
    ASSERT_TRUE(device.read(1 << 20, in.iov()));
    std::memset(out.data() + 512, 0, 8192);
    std::memset(out.data() + 65536, 0, 65536);
    EXPECT_EQ(std::memcmp(in.data(), out.data(), in.size()), 0);
    EXPECT_EQ(device.zero(1, 511).error().code(), ENOTSUP);
    // A loop device punches its file for a discard.
    ASSERT_TRUE(device.discard(1 << 20, 1 << 20));
    ASSERT_TRUE(device.read(1 << 20, in.iov()));
    EXPECT_TRUE(is_zero(in.span()));
    EXPECT_TRUE(device.discard(100, 200));  // no whole sector: nothing to do
    EXPECT_EQ(device.extent(4096, 8192)->length, 8192U);
    EXPECT_EQ(device.extent(4096, 8192)->kind, ExtentKind::kData);
  }
  EXPECT_TRUE(read_file(file_) == std::string(kSize, '\0'));
}

// The kernel does neither while another program, which has claimed the device, writes to its pages.
TEST_F(HostDevice, PagesThatAreWrittenToRefuseAndDoNotFail) {
  ATTACH_OR_SKIP("");
  const UniqueFd claimed(::open(loop_->path().c_str(), O_RDWR | O_EXCL | O_CLOEXEC));
  ASSERT_TRUE(claimed);
  constexpr std::size_t kWritten = 1 << 16;
  void* const pages =
      ::mmap(nullptr, kWritten, PROT_READ | PROT_WRITE, MAP_SHARED, claimed.get(), 0);
  ASSERT_NE(pages, MAP_FAILED);
  OpenDriver device = open();
  ASSERT_TRUE(device) << device.error();
  unsigned zeroes_refused = 0;
  unsigned discards_refused = 0;
  {
    const std::jthread writer([pages](const std::stop_token& stop) {
      volatile auto* const bytes = static_cast<unsigned char*>(pages);
      for (std::size_t at = 0; !stop.stop_requested(); at = (at + 4096) % kWritten) bytes[at] = 1;
    });
    const auto refused = [](const Result<void>& done) {
      EXPECT_TRUE(done || done.error().code() == ENOTSUP) << done.error().message();
      return done ? 0U : 1U;
    };
    for (int i = 0; i < 10'000 && (zeroes_refused == 0 || discards_refused == 0); ++i) {
      zeroes_refused += refused(device.zero(0, 1 << 20, {.may_unmap = i % 2 == 0}));
      discards_refused += refused(device.discard(0, 1 << 20));
    }
  }
  EXPECT_GT(zeroes_refused, 0U);
  EXPECT_GT(discards_refused, 0U);
  ASSERT_EQ(::munmap(pages, kWritten), 0);
  ASSERT_TRUE(device.flush());
  EXPECT_TRUE(device.zero(0, 1 << 20));
  EXPECT_TRUE(device.discard(0, 1 << 20));
}

TEST_F(HostDevice, LargeSectors) {
  ATTACH_OR_SKIP("--sector-size 4096");
  OpenDriver device = open({.read_only = false, .direct = true});
  ASSERT_TRUE(device) << device.error();
  EXPECT_EQ(device->limits().request_alignment, 4096U);
  EXPECT_EQ(device->limits().zeroes_alignment, 4096U);
  EXPECT_EQ(device.zero(512, 512).error().code(), ENOTSUP);
  ASSERT_TRUE(device.zero(4096, 4096));
}

TEST_F(HostDevice, ReadOnlyDevices) {
  ATTACH_OR_SKIP("-r");
  OpenDriver refused = open();
  EXPECT_NE(refused.error().find(loop_->path()), std::string::npos);
  EXPECT_FALSE(refused);
  OpenDriver device = open({.read_only = true});
  ASSERT_TRUE(device) << device.error();
  Buffer in(4096);
  EXPECT_TRUE(device.read(0, in.iov()));
  EXPECT_FALSE(device.reopen(kDeviceReadWrite));
  EXPECT_TRUE(device.read(0, in.iov()));
}

TEST_F(HostDevice, TheSizeIsTheDevices) {
  ATTACH_OR_SKIP("");
  OpenDriver device = open();
  EXPECT_TRUE(device.resize({.size = kSize}));
  EXPECT_EQ(error_of(device.resize({.size = kSize + 1})), "Cannot grow device files");
  EXPECT_EQ(error_of(device.resize({.size = 4096})), "Cannot resize device files");
  EXPECT_TRUE(device.resize({.size = 4096, .exact = false}));
  EXPECT_EQ(device->size(), kSize);
  EXPECT_EQ(device->allocated_size(), std::nullopt);
}

TEST_F(HostDevice, CreatingWipesTheStart) {
  ATTACH_OR_SKIP("");
  {
    OpenDriver device = open();
    Buffer out(16384);
    std::memset(out.data(), 'x', out.size());
    ASSERT_TRUE(device.write(0, out.iov()));
  }
  auto executor = Executor::create();
  const DriverType* type = find_driver("host_device");
  const auto create = [&](std::uint64_t size) {
    CreateRequest request{.filename = "host_device:" + loop_->path(), .size = size, .options = {}};
    return (*executor)->block_on([&] { return type->create(request); });
  };
  EXPECT_EQ(create(kSize + 1).error().code(), ENOSPC);
  ASSERT_TRUE(create(kSize));
  OpenDriver device = open();
  Buffer in(16384);
  ASSERT_TRUE(device.read(0, in.iov()));
  EXPECT_TRUE(is_zero(in.span(0, 4096)));
  EXPECT_EQ(static_cast<char>(in.data()[4096]), 'x');
}

TEST_F(HostDevice, OtherKindsAreRefused) {
  for (const std::string& path : {dir_.path(), file_, std::string("/dev/zero")}) {
    OpenDriver device("host_device", filename_options(path), {});
    EXPECT_EQ(device.error(), "'host_device' driver requires '" + path + "' to be a block device");
  }
}

// A device whose file has no room for what the page cache takes: the kernel reports the loss once.
class HostDeviceLosingWrites : public HostDevice {
 protected:
  static constexpr int kTogether = 8;

  void SetUp() override {
    HostDevice::SetUp();
    if (IsSkipped()) return;
    const std::string small = dir_ / "small";
    std::filesystem::create_directory(small);
    if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=64k") != 0) {
      GTEST_SKIP() << "may not mount a file system";
    }
    mounted_ = small;
    file_ = small + "/disk";
    write_file(file_, "");
    std::filesystem::resize_file(file_, kSize);
    ATTACH_OR_SKIP("");
    std::memset(out_.data(), 'x', out_.size());
  }

  // Runs what `start` starts, several at once, and gives how many failed.
  template <class Start>
  static int failures(OpenDriver& device, Start start) {
    const auto all = [](Start* one) -> Task<int> {
      std::vector<Task<Result<void>>> tasks;
      for (int i = 0; i < kTogether; ++i) tasks.push_back((*one)(i));
      int failed = 0;
      for (Task<Result<void>>& task : tasks) {
        const Result<void> done = co_await task;
        if (!done) ++failed;
      }
      co_return failed;
    };
    return device.run([&] { return all(&start); });
  }

  Buffer out_{1 << 20};
};

TEST_F(HostDeviceLosingWrites, AFailedFlushIsNeverForgotten) {
  OpenDriver device = open();
  ASSERT_TRUE(device) << device.error();
  ASSERT_TRUE(device.write(0, out_.iov()));
  EXPECT_FALSE(device.flush());
  const Result<void> second = device.flush();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().message().find("an earlier flush failed: "), 0U);
  ASSERT_TRUE(device.write(0, out_.iov().first(4096)));
  EXPECT_FALSE(device.flush());
}

// A reader of what was written takes it for what the device holds.
TEST_F(HostDeviceLosingWrites, AReopenFailsAsAFlushWould) {
  OpenDriver device = open();
  ASSERT_TRUE(device) << device.error();
  ASSERT_TRUE(device.write(0, out_.iov()));
  EXPECT_EQ(error_of(device.reopen({.read_only = true})), "Input/output error");
  EXPECT_FALSE(device.flush());
}

TEST_F(HostDeviceLosingWrites, FlushesThatMeetAllFail) {
  OpenDriver device = open();
  ASSERT_TRUE(device) << device.error();
  ASSERT_TRUE(device.write(0, out_.iov()));
  EXPECT_EQ(failures(device, [&](int) { return device->do_flush(); }), kTogether);
}

TEST_F(HostDeviceLosingWrites, DurableWritesThatMeetAllFail) {
  OpenDriver device = open();
  ASSERT_TRUE(device) << device.error();
  // Each more than the file can take.
  const std::size_t part = out_.size() / kTogether;
  EXPECT_EQ(failures(device,
                     [&](int i) {
                       const auto at = static_cast<std::size_t>(i) * part;
                       return device->do_write(at, IoVec(out_.span(at, part)), {.fua = true});
                     }),
            kTogether);
  EXPECT_FALSE(device.flush());
}

}  // namespace
}  // namespace platter

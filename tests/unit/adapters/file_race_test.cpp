// One file driver under several executors at once; the thread sanitizer watches.
#include <algorithm>
#include <random>
#include <thread>

#include "block/exec/buffer.h"
#include "block/exec/executor_thread.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

constexpr std::uint64_t kBlock = 4096;
constexpr unsigned kLanes = 4;  // per executor
constexpr unsigned kExecutors = 3;
constexpr unsigned kBlocksPerLane = 16;

// Writes, zeroes, discards and reads blocks of its own, and asks about everybody's.
Task<Result<void>> lane(Driver& driver, unsigned id, int rounds) {
  std::mt19937 random(id);
  Buffer buffer(kBlock);
  std::vector<int> model(kBlocksPerLane, 0);
  for (int i = 0; i < rounds; ++i) {
    const unsigned which = random() % kBlocksPerLane;
    const std::uint64_t offset = (std::uint64_t{which} * kLanes * kExecutors + id) * kBlock;
    switch (random() % 6) {
      case 0:
      case 1: {
        model[which] = static_cast<int>(random() % 255 + 1);
        std::memset(buffer.data(), model[which], kBlock);
        auto done = co_await driver.do_write(offset, buffer.iov(), WriteFlags{});
        PLATTER_CO_TRY(done);
        break;
      }
      case 2: {
        model[which] = 0;
        auto done =
            co_await driver.do_write_zeroes(offset, kBlock, ZeroFlags{.may_unmap = i % 2 == 0});
        PLATTER_CO_TRY(done);
        break;
      }
      case 3: {
        auto extent = co_await driver.do_extent(random() % driver.size(), kBlock * 100);
        PLATTER_CO_TRY(extent);
        if (extent->length == 0) co_return fail(EIO, "an empty extent");
        // What this lane wrote is never said to be a hole.
        if (model[which] != 0) {
          auto mine = co_await driver.do_extent(offset, kBlock);
          PLATTER_CO_TRY(mine);
          if (mine->kind != ExtentKind::kData) co_return fail(EIO, "data said to be a hole");
        }
        break;
      }
      case 4: {
        auto done = co_await driver.do_flush();
        PLATTER_CO_TRY(done);
        break;
      }
      default: {
        auto done = co_await driver.do_read(offset, buffer.iov(), ReadFlags{});
        PLATTER_CO_TRY(done);
        const auto bytes = buffer.span();
        const auto expected = static_cast<std::byte>(model[which]);
        if (std::ranges::any_of(bytes, [&](std::byte b) { return b != expected; })) {
          co_return fail(EIO, "block {} of lane {} differs", which, id);
        }
      }
    }
  }
  co_return {};
}

Task<Result<void>> lanes(Driver& driver, unsigned executor, int rounds) {
  std::vector<Task<Result<void>>> tasks;
  for (unsigned i = 0; i < kLanes; ++i) {
    tasks.push_back(lane(driver, executor * kLanes + i, rounds));
  }
  Result<void> result;
  for (auto& task : tasks) {
    Result<void> one = co_await task;
    if (!one) result = std::move(one);
  }
  co_return result;
}

class FileRace : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Places, FileRace, ::testing::Values("/tmp", "/dev/shm"),
                         [](const auto& place) { return place.index == 0 ? "Disk" : "Memory"; });

TEST_P(FileRace, SeveralExecutorsOnOneFile) {
  if (!std::filesystem::is_directory(GetParam())) GTEST_SKIP() << "no folder " << GetParam();
  const ScratchDir dir(GetParam());
  write_file(dir / "disk", "");
  std::filesystem::resize_file(dir / "disk", kBlock * kLanes * kExecutors * kBlocksPerLane);
  OpenDriver file("file", filename_options(dir / "disk"), {.read_only = false});
  ASSERT_TRUE(file) << file.error();
  const Result<void> zeroed = file.zero(0, kBlock);
  if (!zeroed) GTEST_SKIP() << "no zeroing here";
  std::vector<std::thread> callers;
  std::vector<std::string> errors(kExecutors);
  for (unsigned i = 0; i < kExecutors; ++i) {
    callers.emplace_back([&, i] {
      auto thread = ExecutorThread::start();
      if (!thread) {
        errors[i] = thread.error().message();
        return;
      }
      errors[i] =
          error_of(run_blocking((*thread)->executor(), [&] { return lanes(*file, i, 150); }));
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

}  // namespace
}  // namespace platter

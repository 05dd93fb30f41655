// Signals that come in the middle of long work: it stops, and what it leaves is consistent.
#include "tools/img/cancel.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "block/adapters/memory.h"
#include "block/node/registry.h"
#include "tools/img/commands.h"
#include "unit/img/call.h"
#include "unit/qcow2/engine_support.h"
#include "unit/sanitized.h"
#include "unit/scratch_dir.h"

namespace platter::img {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

using platter::testing::kThreadSanitized;
constexpr std::uint64_t kSize = 16 << 20;
constexpr int kInterrupted = 128 + SIGINT;
using namespace std::string_literals;  // NOLINT

// "signalling": hands everything on, and sends SIGINT when it is asked for the `after`-th byte.
class Signalling : public Driver {
 public:
  Signalling(Edge file, std::uint64_t after) : file_(std::move(file)), left_(after) {}
  std::uint64_t size() const override { return file_->size(); }
  bool can_grow() const override { return file_->driver().can_grow(); }
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    count(iov.size());
    return file_->read(offset, iov, flags);
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    count(iov.size());
    return file_->write(offset, iov, flags);
  }
  Task<Result<void>> do_flush() override { return file_->flush(); }
  Task<Result<void>> do_resize(ResizeRequest request) override { return file_->resize(request); }
  std::vector<Edge*> children() override { return {&file_}; }
  BlockNode* storage() override { return file_.get(); }

 private:
  void count(std::uint64_t bytes) {
    if (left_ != 0 && left_ <= bytes) std::raise(SIGINT);
    left_ -= std::min(left_, bytes);
  }
  Edge file_;
  std::uint64_t left_;
};

Task<Result<std::unique_ptr<Driver>>> open_signalling(OpenContext& context) {
  const auto after = context.options.take_number("after");
  PLATTER_CO_TRY(after);
  const Permissions rights =
      context.flags.read_only ? Permissions::reader() : Permissions::writer();
  auto file = co_await context.open_child("file", rights);
  PLATTER_CO_TRY(file);
  co_return std::make_unique<Signalling>(std::move(*file), after->value_or(0));
}

const RegisterDriver registered{DriverType{.name = "signalling", .open = open_signalling}};

// Options that open "memory:NAME" as qcow2 and send the signal `after` so many bytes of its file.
std::string options_of(const std::string& name, std::uint64_t after) {
  return "driver=qcow2,file.driver=signalling,file.after=" + std::to_string(after) +
         ",file.file.filename=memory:" + name;
}

std::string json_of(const std::string& name, std::uint64_t after) {
  return R"(json:{"driver":"raw","file":{"driver":"signalling","after":)" + std::to_string(after) +
         R"(,"file":{"driver":"memory","name":")" + name + R"("}}})";
}

class CancelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto base = make_memory_disk("cancel-base", kSize);
    auto data = pattern(kSize, 1);
    base->write(0, iov(data));
    auto other = make_memory_disk("cancel-other", kSize);
    data = pattern(kSize, 2);
    other->write(0, iov(data));
  }
  void TearDown() override {
    remove_memory_disk("cancel-base");
    remove_memory_disk("cancel-other");
  }

  // An overlay with lazy refcounts, so that closing it has something to put right.
  static void with_overlay(const std::function<void(const MemoryImage&)>& use) {
    const MemoryImage image("cancel-top", kSize,
                            "lazy_refcounts=on,backing_file=memory:cancel-base,backing_fmt=raw");
    run([&] { return fill(image); });
    const std::vector<std::byte> before = read(image);
    use(image);
    EXPECT_EQ(read(image), before);
    run([&] { return expect_clean(image); });
  }

  static std::vector<std::byte> read(const MemoryImage& image) {
    std::vector<std::byte> all(kSize);
    run([&] { return read_into(image, all); });
    return all;
  }

 private:
  static Task<void> fill(const MemoryImage& image) {
    auto opened = co_await image.open();
    EXPECT_TRUE(opened);
    if (!opened) co_return;
    auto data = pattern(kSize / 2, 3);
    auto written = co_await (*opened)->write(kSize / 4, iov(data));
    EXPECT_TRUE(written);
    auto closed = co_await opened->detach();
    EXPECT_TRUE(closed);
  }
  static Task<void> read_into(const MemoryImage& image, std::vector<std::byte>& all) {
    auto opened = co_await image.open(false);
    EXPECT_TRUE(opened);
    if (!opened) co_return;
    auto got = co_await (*opened)->read(0, iov(all));
    EXPECT_TRUE(got);
    auto closed = co_await opened->detach();
    EXPECT_TRUE(closed);
  }
  static Task<void> expect_clean(const MemoryImage& image) {
    auto opened = co_await image.open(false);
    EXPECT_TRUE(opened);
    if (!opened) co_return;
    EXPECT_FALSE((*opened)->driver().info().dirty);
    EXPECT_EQ((*opened)->driver().backing_reference()->backing_filename(), "memory:cancel-base");
    auto checked = co_await check(**opened);
    EXPECT_TRUE(checked);
    EXPECT_TRUE(checked && checked->corruptions + checked->leaks + checked->check_errors == 0);
    auto closed = co_await opened->detach();
    EXPECT_TRUE(closed);
  }
};

TEST_F(CancelTest, RebaseLeavesTheOldBackingFile) {
  with_overlay([](const MemoryImage& image) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(call(run_rebase, {"rebase", "-b", "memory:cancel-other", "-F", "raw", "--image-opts",
                                options_of(image.name(), 4 << 20)}),
              kInterrupted);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("rebase cancelled: "), std::string::npos) << said;
  });
}

TEST_F(CancelTest, StreamLeavesTheBackingFile) {
  with_overlay([](const MemoryImage& image) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(call(run_stream, {"stream", "-q", "--image-opts", options_of(image.name(), 1 << 20)}),
              kInterrupted);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("stream cancelled: "), std::string::npos) << said;
  });
}

TEST_F(CancelTest, CommitLeavesTheOverlayWhole) {
  with_overlay([](const MemoryImage& image) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(call(run_commit, {"commit", "-q", "--image-opts", options_of(image.name(), 2 << 20)}),
              kInterrupted);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("commit cancelled: "), std::string::npos) << said;
  });
}

TEST_F(CancelTest, ConvertRemovesTheTargetItHasMade) {
  for (const char* format : {"raw", "qcow2"}) {
    const std::string target =
        std::filesystem::temp_directory_path() / ("platter-cancel-" + std::to_string(getpid()));
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(call(run_convert, {"convert", "-O", format, json_of("cancel-base", 4 << 20), target}),
              kInterrupted);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("convert cancelled: the incomplete '" + target + "' has been removed"),
              std::string::npos)
        << said;
    EXPECT_FALSE(std::filesystem::exists(target));
    std::filesystem::remove(target);
  }
}

TEST_F(CancelTest, ConvertAndDdLeaveTheOldTarget) {
  const ScratchDir dir;
  const std::string target = dir / "old";
  std::ofstream(target) << "old contents";
  const std::string source = json_of("cancel-base", 4 << 20);
  for (const auto& words : {std::vector{"convert"s, source, target},
                            std::vector{"dd"s, "if=" + source, "of=" + target}}) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(call(words[0] == "dd" ? run_dd : run_convert, words), kInterrupted);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find(words[0] + " cancelled: '" + target + "' is as it was\n"),
              std::string::npos)
        << said;
    std::stringstream contents;
    contents << std::ifstream(target).rdbuf();
    EXPECT_EQ(contents.str(), "old contents");
    const std::filesystem::directory_iterator all(dir.path());
    EXPECT_EQ(std::distance(begin(all), end(all)), 1);
  }
}

TEST_F(CancelTest, ConvertIntoAnImageThatExistsSaysThatItIsIncomplete) {
  const MemoryImage target("cancel-target", kSize, "lazy_refcounts=on");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(call(run_convert, {"convert", "-n", "-O", "qcow2", json_of("cancel-base", 4 << 20),
                               target.filename()}),
            kInterrupted);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("'memory:cancel-target' is incomplete"), std::string::npos) << said;
  run([&]() {
    return [](const MemoryImage& image) -> Task<void> {
      auto opened = co_await image.open(false);
      EXPECT_TRUE(opened);
      if (!opened) co_return;
      EXPECT_FALSE((*opened)->driver().info().dirty);
      auto checked = co_await check(**opened);
      EXPECT_TRUE(checked && checked->corruptions + checked->leaks == 0);
      auto closed = co_await opened->detach();
      EXPECT_TRUE(closed);
    }(target);
  });
}

TEST_F(CancelTest, DdRemovesWhatItHasMade) {
  const std::string target =
      std::filesystem::temp_directory_path() / ("platter-cancel-" + std::to_string(getpid()));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(call(run_dd, {"dd", "if=" + json_of("cancel-base", 4 << 20), "of=" + target}),
            kInterrupted);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("dd cancelled: "), std::string::npos) << said;
  EXPECT_FALSE(std::filesystem::exists(target));
  std::filesystem::remove(target);
}

// What a verb that dies of the signal, or a second signal, leaves of a file nobody would know of.
TEST(Cancellation, WhoIsKilledLeavesNoFile) {
  const std::string path =
      std::filesystem::temp_directory_path() / ("platter-killed-" + std::to_string(getpid()));
  const auto killed = [&](Cancellation::Wish wish, int signals) {
    const Cancellation cancellation(wish);
    Cancellation::remove_if_killed(path);
    for (; signals != 0; --signals) std::raise(SIGTERM);
  };
  for (const auto& [wish, signals] :
       {std::pair{Cancellation::kAtOnce, 1}, {Cancellation::kStop, 2}}) {
    std::ofstream(path) << "half";
    EXPECT_EXIT(killed(wish, signals), ::testing::KilledBySignal(SIGTERM), "");
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  std::ofstream(path) << "whole";
  Cancellation::remove_if_killed(path);
  Cancellation::forget(path);
  EXPECT_EXIT(
      {
        const Cancellation cancellation(Cancellation::kAtOnce);
        std::raise(SIGTERM);
      },
      ::testing::KilledBySignal(SIGTERM), "");
  EXPECT_TRUE(std::filesystem::remove(path));
}

// The verbs that change an image in place, with the signal at many moments: the image reads as
// before and has no errors, and cancelled is said when it is what the verb ended of.
struct InPlace {
  const char* name;
  int (*verb)(int, char**);
  std::vector<std::string> words;  // before the image
  std::vector<std::string> after;  // behind it
};

class CancelInPlaceTest : public CancelTest, public ::testing::WithParamInterface<InPlace> {};

TEST_P(CancelInPlaceTest, LeavesAnImageThatIsWhole) {
  const InPlace& p = GetParam();
  int cancelled = 0;
  for (const std::uint64_t after : {1U, 70000U, 140000U, 300000U, 600000U, 5000000U}) {
    if (kThreadSanitized && after != 1 && after != 300000) continue;
    with_overlay([&](const MemoryImage& image) {
      std::vector<std::string> words{p.name};
      words.insert(words.end(), p.words.begin(), p.words.end());
      words.insert(words.end(), {"--image-opts", options_of(image.name(), after)});
      words.insert(words.end(), p.after.begin(), p.after.end());
      ::testing::internal::CaptureStderr();
      ::testing::internal::CaptureStdout();
      const int status = call(p.verb, words);
      ::testing::internal::GetCapturedStdout();
      const std::string said = ::testing::internal::GetCapturedStderr();
      const bool told = said.find(std::string(p.name) + " cancelled: ") != std::string::npos;
      EXPECT_EQ(status, told ? kInterrupted : 0) << said;
      if (told) ++cancelled;
    });
  }
  EXPECT_GT(cancelled, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Verbs, CancelInPlaceTest,
    ::testing::Values(InPlace{"amend", run_amend, {"-o", "refcount_bits=64"}, {}},
                      InPlace{"amend", run_amend, {"-o", "compat=0.10"}, {}},
                      InPlace{"resize", run_resize, {"--preallocation=metadata"}, {"+64M"}},
                      InPlace{"check", run_check, {"-r", "all"}, {}}));

TEST(Cancellation, LeavesIgnoredSignalsIgnored) {
  const auto before = std::signal(SIGHUP, SIG_IGN);
  {
    const Cancellation cancellation;
    std::raise(SIGHUP);
    EXPECT_FALSE(Cancellation::flag()->load());
    std::raise(SIGTERM);
    EXPECT_TRUE(Cancellation::flag()->load());
    EXPECT_EQ(Cancellation::status(), 128 + SIGTERM);
  }
  std::signal(SIGHUP, before);
}

}  // namespace
}  // namespace platter::img

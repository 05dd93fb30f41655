// On a disk that takes nothing new what has been written can be flushed: the tables that lead to it
// have their space.
#include <atomic>
#include <memory>
#include <vector>

#include "block/node/registry.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kFullSector = 512;

// A disk in memory that, once it is full, takes writes only where it has been written before.
class FullDisk : public MemoryDriver {
 public:
  explicit FullDisk(std::shared_ptr<MemoryDisk> disk)
      : MemoryDriver(disk), written_(disk->size() / kFullSector + 1, true) {}

  static inline bool full = false;

  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    const std::uint64_t first = offset / kFullSector;
    const std::uint64_t end = (offset + iov.size() + kFullSector - 1) / kFullSector;
    if (end > written_.size()) written_.resize(end, false);
    for (std::uint64_t i = first; i < end; ++i) {
      if (full && !written_[i]) co_return fail_errno(ENOSPC);
      written_[i] = true;
    }
    auto done = co_await MemoryDriver::do_write(offset, iov, flags);
    co_return done;
  }

 private:
  std::vector<bool> written_;
};

Task<Result<std::unique_ptr<Driver>>> open_full_disk(OpenContext& context) {
  co_return std::make_unique<FullDisk>(
      find_memory_disk(context.options.take_string("disk").value()));
}

const RegisterDriver kFullDisk{
    DriverType{.name = "full-disk", .protocol = true, .open = open_full_disk}};

struct FullCase {
  const char* create;
  std::uint64_t stride;  // from one cluster that is written to the next
  bool snapshots;
};

class AFullDisk : public ::testing::TestWithParam<FullCase> {};

Task<void> fill_again_and_again(const MemoryImage& image, const FullCase& tried) {
  constexpr int kRounds = 700;
  OpenRequest request;
  request.format = "qcow2";
  request.options = options("file.driver=full-disk,file.disk=" + image.name());
  request.permissions = Permissions::writer();
  request.flags.read_only = false;
  FullDisk::full = false;
  auto edge = co_await open_node(std::move(request));
  CO_OK(edge);
  BlockNode& node = **edge;
  std::vector<std::byte> old(kFullSector, std::byte{7});
  for (int i = 0; i < kRounds; ++i) {
    const std::uint64_t offset = static_cast<std::uint64_t>(i) * tried.stride;
    if (tried.snapshots && i % 200 == 199) {
      auto taken = co_await node.driver().snapshots()->create("s" + std::to_string(i), 1, 1);
      CO_OK(taken);
    }
    auto data = pattern(kFullSector, static_cast<unsigned>(i));
    // With a snapshot: into what it shares.
    auto written = co_await node.write(tried.snapshots ? offset / 4 : offset, iov(data));
    CO_OK(written);
    FullDisk::full = true;
    auto refused = co_await node.write(node.size() - kFullSector, iov(old));
    EXPECT_FALSE(refused);
    auto flushed = co_await node.flush();
    CO_OK(flushed);
    FullDisk::full = false;
  }
  auto clean = testing::expect_clean(node);
  co_await clean;
  FullDisk::full = true;
  auto closed = co_await edge->detach();
  CO_OK(closed);
  if (tried.snapshots) co_return;
  auto again = co_await image.open(false);
  CO_OK(again);
  for (int i = 0; i < kRounds; ++i) {
    std::vector<std::byte> now(kFullSector);
    auto read = co_await (*again)->read(static_cast<std::uint64_t>(i) * tried.stride, iov(now));
    CO_OK(read);
    EXPECT_EQ(now, pattern(kFullSector, static_cast<unsigned>(i))) << i;
  }
  auto ended = co_await again->detach();
  CO_OK(ended);
}

TEST_P(AFullDisk, LosesNothingThatItHasTaken) {
  const FullCase& tried = GetParam();
  MemoryImage image("full", 64 << 20, tried.create);
  run([&] { return fill_again_and_again(image, tried); });
}

INSTANTIATE_TEST_SUITE_P(
    Tables, AFullDisk,
    ::testing::Values(
        // A new L2 table for each write; a new refcount block for each 64 clusters.
        FullCase{"cluster_size=512,refcount_bits=64", 32 << 10, false},
        FullCase{"cluster_size=512,refcount_bits=64", 512, false},
        FullCase{"cluster_size=512,refcount_bits=64,lazy_refcounts=on", 16 << 10, false},
        FullCase{"cluster_size=4k", 64 << 10, false}, FullCase{"cluster_size=512", 4 << 10, true}));

TEST(ANewImage, HasSpaceForItsL1Table) {
  MemoryImage image("l1", std::uint64_t{100} << 40, "");  // an L1 table of 1.6 MiB
  EXPECT_GE(image.disk().allocated() + MemoryDisk::kPage, image.disk().size());
}

}  // namespace
}  // namespace platter::qcow2

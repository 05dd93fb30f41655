// Random operations on an image and on a byte array, over the shapes an image can have.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

struct Shape {
  std::string create;
  std::uint64_t size;
  std::uint64_t backing;  // bytes; 0: none
  std::string open;
};

void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.create << " size=" << shape.size << " backing=" << shape.backing << " "
       << shape.open;
}

class Model : public ::testing::TestWithParam<Shape> {};

class Player {
 public:
  Player(const Shape& shape, unsigned seed) : shape_(shape), random_(seed), model_(shape.size) {}

  Task<void> play(MemoryImage* image, int steps) {
    for (int round = 0; round < 2; ++round) {
      auto opened = co_await image->open(true, shape_.open);
      EXPECT_TRUE(opened) << (opened ? "" : opened.error().message());
      if (!opened) co_return;
      Edge node = std::move(*opened);
      for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
        auto one = step(*node);
        co_await one;
      }
      auto all = compare(*node);
      co_await all;
      auto checked = co_await testing::check(*node);
      EXPECT_TRUE(checked) << (checked ? "" : checked.error().message());
      if (checked) {
        EXPECT_EQ(checked->corruptions, 0u);
        EXPECT_EQ(checked->leaks, 0u);
        EXPECT_EQ(checked->check_errors, 0u);
      }
      auto closed = co_await node.detach();
      EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
      if (::testing::Test::HasFailure()) co_return;
    }
  }

  std::vector<std::byte>& model() { return model_; }

 private:
  std::uint64_t below(std::uint64_t n) {
    return std::uniform_int_distribution<std::uint64_t>(0, n - 1)(random_);
  }

  Task<void> step(BlockNode& node) {
    const std::uint64_t size = model_.size();
    const std::uint64_t offset = below(size);
    std::uint64_t length =
        std::min(below(10) == 0 ? below(size) + 1 : below(200000) + 1, size - offset);
    const std::uint64_t kind = below(100);
    Result<void> done;
    if (kind < 42) {
      auto data = pattern(length, static_cast<unsigned>(random_()));
      done = co_await node.write(offset, iov(data));
      std::copy(data.begin(), data.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset));
    } else if (kind < 54) {
      ZeroFlags flags{.may_unmap = below(2) == 0};
      done = co_await node.write_zeroes(offset, length, flags);
      std::fill_n(model_.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    } else if (kind < 62) {
      done = co_await node.discard(offset, length);
      // What was discarded is old or zero: ask.
      std::vector<std::byte> now(length);
      auto got = co_await node.read(offset, iov(now));
      EXPECT_TRUE(got);
      std::uint64_t wrong = 0;
      for (std::uint64_t i = 0; i < length; ++i) {
        if (now[i] != model_[offset + i] && now[i] != std::byte{0}) ++wrong;
      }
      EXPECT_EQ(wrong, 0u) << "discarded " << offset << "+" << length;
      std::copy(now.begin(), now.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset));
    } else if (kind < 67) {
      // Compressed, whole clusters.
      const std::uint64_t unit = node.limits().optimal_transfer;
      const std::uint64_t start = offset / unit * unit;
      length = std::min(unit * (1 + below(4)), size - start);
      auto data = pattern(length, 1);
      for (std::size_t i = 0; i < data.size(); i += 3) data[i] = std::byte{7};
      if (below(2) == 0) std::fill(data.begin(), data.end(), static_cast<std::byte>(below(256)));
      WriteFlags flags{.compressed = !has("data_file")};
      done = co_await node.write(start, iov(data), flags);
      std::copy(data.begin(), data.end(), model_.begin() + static_cast<std::ptrdiff_t>(start));
    } else if (kind < 72) {
      done = co_await node.flush();
    } else if (kind < 82) {
      done = co_await snapshot(node);
    } else if (kind < 86) {
      done = co_await resize(node);
    } else {
      std::vector<std::byte> now(length);
      done = co_await node.read(offset, iov(now));
      EXPECT_TRUE(
          std::equal(now.begin(), now.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset)))
          << "read " << offset << "+" << length;
    }
    EXPECT_TRUE(done) << "kind " << kind << ": " << (done ? "" : done.error().message());
  }

  bool has(std::string_view option) const {
    return shape_.create.find(option) != std::string::npos;
  }

  // Narrow refcounts cannot count packed neighbours many times over.
  bool too_many(const Result<void>& result) const {
    return !result && result.error().code() == EINVAL &&
           shape_.create.find("refcount_bits=2") != std::string::npos;
  }

  Task<Result<void>> snapshot(BlockNode& node) {
    SnapshotAbility& ability = *node.driver().snapshots();
    const std::uint64_t what = below(3);
    if (has("data_file")) {
      auto refused = co_await ability.create("none", 1000000, 5);
      EXPECT_FALSE(refused) << "data that lies outside has no refcounts";
      co_return {};
    }
    if (what == 0 || snapshots_.empty()) {
      const bool full = snapshots_.size() >=
                        (shape_.create.find("refcount_bits=1") != std::string::npos ? 0u : 2u);
      if (full) co_return {};
      const std::string name = "s" + std::to_string(named_++);
      snapshots_.push_back({name, model_});
      auto created = co_await ability.create(name, 1000000 + named_, 5);
      if (too_many(created)) {
        snapshots_.pop_back();
        co_return {};
      }
      co_return created;
    }
    const std::size_t which = below(snapshots_.size());
    if (what == 1) {
      auto applied = co_await ability.apply(snapshots_[which].first);
      if (too_many(applied)) co_return {};
      model_ = snapshots_[which].second;
      co_return applied;
    }
    auto removed = co_await ability.remove(snapshots_[which].first);
    snapshots_.erase(snapshots_.begin() + static_cast<std::ptrdiff_t>(which));
    co_return removed;
  }

  Task<Result<void>> resize(BlockNode& node) {
    if (shape_.create.find("0.10") != std::string::npos && !snapshots_.empty()) co_return {};
    const std::uint64_t size =
        std::max<std::uint64_t>(shape_.size / 2 + below(shape_.size), 512) / 512 * 512;
    ResizeRequest request{.size = size};
    if (size > model_.size() && below(4) == 0) request.preallocation = Preallocation::kMetadata;
    model_.resize(size, std::byte{0});
    auto resized = co_await node.resize(request);
    co_return resized;
  }

  Task<void> compare(BlockNode& node) {
    std::vector<std::byte> now(model_.size());
    EXPECT_EQ(node.size(), model_.size());
    auto got = co_await node.read(0, iov(now));
    EXPECT_TRUE(got) << (got ? "" : got.error().message());
    const auto differ = std::mismatch(now.begin(), now.end(), model_.begin());
    EXPECT_TRUE(differ.first == now.end()) << "differs at " << differ.first - now.begin();
    if (!has("data_file_raw")) co_return;
    const MemoryDisk& raw = *find_memory_disk("model-data");
    EXPECT_EQ(raw.size(), model_.size());
    raw.read(0, iov(now));
    const auto raw_differs = std::mismatch(now.begin(), now.end(), model_.begin());
    EXPECT_TRUE(raw_differs.first == now.end())
        << "the raw data file differs at " << raw_differs.first - now.begin();
  }

  const Shape shape_;
  std::mt19937 random_;
  std::vector<std::byte> model_;
  std::vector<std::pair<std::string, std::vector<std::byte>>> snapshots_;
  unsigned named_ = 0;
};

TEST_P(Model, ReadsAsAByteArrayDoes) {
  const Shape& shape = GetParam();
  unsigned seed = 20250601;
  if (const char* given = std::getenv("PLATTER_SEED"))
    seed = static_cast<unsigned>(std::atoi(given));
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Player player(shape, seed);
  std::string create = shape.create;
  std::shared_ptr<MemoryDisk> backing;
  if (shape.backing != 0) {
    backing = make_memory_disk("model-backing", shape.backing);
    auto data = pattern(shape.backing, 5);
    backing->write(0, iov(data));
    std::copy_n(data.begin(), std::min(shape.backing, shape.size), player.model().begin());
    if (!create.empty()) create += ",";
    create += "backing_file=memory:model-backing,backing_fmt=raw";
  }
  MemoryImage image("model", shape.size, create);
  if (HasFailure()) return;
  run([&] { return player.play(&image, 50); });
  remove_memory_disk("model-backing");
  remove_memory_disk("model-data");
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Model,
    ::testing::Values(
        Shape{"", 8 << 20, 0, ""},
        Shape{"cluster_size=4k", 3 << 20, 0, "l2-cache-size=8k,refcount-cache-size=8k"},
        Shape{"cluster_size=512", 400384, 0, ""},
        Shape{"cluster_size=512,refcount_bits=64", 400384, 0, "l2-cache-size=1024"},
        Shape{"cluster_size=512,refcount_bits=1", 400384, 100000, ""},
        Shape{"cluster_size=1k,refcount_bits=2", 700123 / 512 * 512, 300000, ""},
        Shape{"compat=0.10", 4 << 20, 0, ""},
        Shape{"compat=0.10,cluster_size=4k", 2 << 20, 1 << 20, "discard=unmap"},
        Shape{"", 5 << 20, 6 << 20, "discard=unmap"},
        Shape{"lazy_refcounts=on,cluster_size=8k", 3 << 20, 1 << 20, ""},
        Shape{"compression_type=zstd,cluster_size=32k", 3 << 20, 1 << 20, "discard=unmap"},
        Shape{"cluster_size=2M", 9 << 20, 3 << 20, "l2-cache-entry-size=512"},
        Shape{"cluster_size=64k,refcount_bits=8", 6 << 20, 1 << 20,
              "l2-cache-entry-size=4k,cache-size=128k"},
        Shape{"extended_l2=on", 6 << 20, 0, ""},
        Shape{"extended_l2=on", 6 << 20, 3 << 20, "discard=unmap"},
        Shape{"extended_l2=on,cluster_size=16k", 3 << 20, 4 << 20,
              "l2-cache-size=1024,l2-cache-entry-size=512"},
        Shape{"extended_l2=on,cluster_size=2M,lazy_refcounts=on", 9 << 20, 5 << 20, ""},
        Shape{"data_file=memory:model-data", 4 << 20, 0, ""},
        Shape{"data_file=memory:model-data,cluster_size=4k", 3 << 20, 1 << 20, "discard=unmap"},
        Shape{"data_file=memory:model-data,data_file_raw=on", 4 << 20, 0, "discard=unmap"},
        Shape{"data_file=memory:model-data,extended_l2=on", 4 << 20, 2 << 20, "discard=unmap"}));

}  // namespace
}  // namespace platter::qcow2

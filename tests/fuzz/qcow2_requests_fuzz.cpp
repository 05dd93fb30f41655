// Fuzzes sequences of requests and operations on a small qcow2 image. The input's first bytes
// choose the image, then come steps of five bytes. An image that nobody has changed from outside is
// compared with a model in memory, and checked at the end; where a step has poked bytes into the
// file, nothing is promised but that it ends, without touching what it must not.
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "block/adapters/memory.h"
#include "block/base/bytes.h"
#include "block/exec/executor.h"
#include "block/node/dirty_bitmap.h"
#include "block/node/graph.h"
#include "formats/qcow2/create.h"
#include "fuzz/require.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kMaxSize = 256 << 10;
constexpr unsigned kMaxSteps = 24;
using Bytes = std::vector<std::byte>;

Executor& executor() {
  static const std::unique_ptr<Executor> one = std::move(*Executor::create());
  return *one;
}

constexpr const char* kImages[] = {
    "cluster_size=512",
    "cluster_size=512,compat=0.10",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=1024,refcount_bits=64,lazy_refcounts=on",
    "cluster_size=16384,extended_l2=on",
    "cluster_size=512,backing_file=memory:below,backing_fmt=raw",
    "cluster_size=16384,extended_l2=on,backing_file=memory:below,backing_fmt=raw",
    "cluster_size=4096,data_file=memory:outside",
};

struct Step {
  std::uint8_t what = 0;
  std::uint16_t place = 0;
  std::uint16_t extent = 0;
};

class Game {
 public:
  explicit Game(unsigned image) : options_(kImages[image % std::size(kImages)]) {}

  Task<void> play(std::span<const Step> steps) {
    auto started = start();
    co_await started;
    for (const Step& s : steps) {
      auto one = step(s);
      co_await one;
    }
    auto ended = end();
    co_await ended;
  }

 private:
  Task<void> start() {
    for (const char* name : {"image", "below", "outside"}) remove_memory_disk(name);
    const auto below = make_memory_disk("below", 0);
    Bytes bytes(kMaxSize / 4);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i / 97 + 1);
    below->write(0, IoVec(std::span(bytes)));
    model_.assign(kMaxSize / 2, std::byte{0});
    if (options_.find("backing") != std::string::npos)
      std::copy(bytes.begin(), bytes.end(), model_.begin());
    auto made = co_await create_image("qcow2", "memory:image", model_.size(),
                                      *Options::parse_keyval(options_));
    require(made.has_value(), "the image can be made");
    auto opened = open();
    co_await opened;
  }

  Task<void> open() {
    OpenRequest request;
    request.filename = "memory:image";
    request.format = "qcow2";
    request.options = *Options::parse_keyval(
        "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024");
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    auto edge = co_await open_node(std::move(request));
    require(edge.has_value() || poked_, "an honest image opens");
    if (edge) edge_ = std::move(*edge);
  }

  Task<void> close() {
    if (!edge_) co_return;
    auto closed = co_await edge_.detach();
    require(closed.has_value() || poked_, "an honest image closes");
    edge_ = {};
  }

  Task<void> compare(std::uint64_t offset, std::uint64_t length) {
    Bytes now(length);
    auto read = co_await edge_->read(offset, IoVec(std::span(now)));
    if (poked_) co_return;
    require(read.has_value(), "an honest image reads");
    require(
        std::equal(now.begin(), now.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset)),
        "reads give what was written");
  }

  // Refused or done; an honest image's requests are done.
  void must(const Result<void>& done) {
    if (!done && !poked_) std::fprintf(stderr, "%s\n", done.error().message().c_str());
    require(done.has_value() || poked_, "an honest image takes requests");
  }

  Task<void> step(const Step& s) {
    if (s.what % 20 == 19) {
      auto closed = close();
      co_await closed;
      poke(s);
      auto opened = open();
      co_await opened;
      co_return;
    }
    if (!edge_ || edge_->size() != model_.size()) co_return;
    const std::uint64_t size = model_.size();
    const std::uint64_t unit = s.what & 0x80 ? 512 : 1;
    const std::uint64_t offset = std::uint64_t{s.place} * size / 65536 / unit * unit;
    const std::uint64_t length =
        std::min<std::uint64_t>((s.extent % 40000 / unit + 1) * unit, size - offset);
    const auto from = model_.begin() + static_cast<std::ptrdiff_t>(offset);
    const auto to = from + static_cast<std::ptrdiff_t>(length);
    switch (s.what % 20) {
      case 0:
      case 1:
      case 2:
      case 3: {
        const Bytes data(length, static_cast<std::byte>(s.what + s.place + 1));
        auto written = co_await edge_->write(offset, IoVec::of_const(data),
                                             WriteFlags{.fua = s.what % 20 == 3});
        must(written);
        std::copy(data.begin(), data.end(), from);
        break;
      }
      case 4:
      case 5: {
        const ZeroFlags flags{.may_unmap = s.what % 20 == 4};
        auto zeroed = co_await edge_->write_zeroes(offset, length, flags);
        must(zeroed);
        std::fill(from, to, std::byte{0});
        break;
      }
      case 6: {
        auto discarded = co_await edge_->discard(offset, length);
        must(discarded);
        Bytes now(length);
        auto read = co_await edge_->read(offset, IoVec(std::span(now)));
        must(read);
        // Each byte is as it was, or as a discard leaves it: zero.
        for (std::size_t i = 0; i < now.size() && !poked_; ++i) {
          const std::byte was = *(from + static_cast<std::ptrdiff_t>(i));
          require(now[i] == was || now[i] == std::byte{0}, "a discard makes zeroes or nothing");
        }
        std::copy(now.begin(), now.end(), from);
        break;
      }
      case 7:
      case 8: {
        auto same = compare(offset, length);
        co_await same;
        break;
      }
      case 9: {
        auto flushed = co_await edge_->flush();
        must(flushed);
        break;
      }
      case 10: {
        auto packed = pack(offset);
        co_await packed;
        break;
      }
      case 11: {
        auto resized = resize(std::uint64_t{s.extent} % (kMaxSize / 512) * 512 + 512);
        co_await resized;
        break;
      }
      case 12:
      case 13:
      case 14: {
        auto done = snapshot(s.what % 20, "s" + std::to_string(s.place % 3));
        co_await done;
        break;
      }
      case 15:
      case 16: {
        auto done = bitmap(s.what % 20 == 15, "b" + std::to_string(s.place % 3));
        co_await done;
        break;
      }
      case 17: {
        auto closed = close();
        co_await closed;
        auto opened = open();
        co_await opened;
        break;
      }
      default: {
        auto checked = check((s.extent & 1) != 0);
        co_await checked;
        break;
      }
    }
  }

  Task<void> pack(std::uint64_t offset) {
    constexpr std::uint64_t kWhole = 16384;  // a multiple of every cluster size above
    offset = offset / kWhole * kWhole;
    const std::uint64_t length = std::min<std::uint64_t>(kWhole, model_.size() - offset);
    const Bytes data(length, std::byte{0x77});
    auto written =
        co_await edge_->write(offset, IoVec::of_const(data), WriteFlags{.compressed = true});
    if (written) {
      std::copy(data.begin(), data.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset));
    } else if (!poked_) {
      // Refused as a whole (an external data file), or the model does not know any more.
      auto same = compare(offset, length);
      co_await same;
    }
  }

  Task<void> resize(std::uint64_t size) {
    ResizeRequest request{.size = size};
    auto resized = co_await edge_->resize(request);
    if (resized) model_.resize(size);
  }

  Task<void> snapshot(unsigned what, std::string name) {
    SnapshotAbility* const snapshots = edge_->driver().snapshots();
    if (snapshots == nullptr) co_return;
    if (what == 12 && kept_.size() < 3 && !kept_.contains(name)) {
      auto made = co_await snapshots->create(name, 1, 2);
      if (made) kept_[name] = model_;
    } else if (what == 13) {
      auto applied = co_await snapshots->apply(name);
      if (applied && kept_.contains(name)) model_ = kept_[name];
    } else if (what == 14) {
      auto removed = co_await snapshots->remove(name);
      require(removed.has_value() == kept_.contains(name) || poked_, "a snapshot can be removed");
      kept_.erase(name);
    }
  }

  Task<void> bitmap(bool add, std::string name) {
    BitmapAbility* const bitmaps = edge_->driver().bitmaps();
    if (bitmaps == nullptr) co_return;
    if (add) {
      auto added = co_await bitmaps->add(name, 4096, true);
      static_cast<void>(added);
    } else {
      auto removed = co_await bitmaps->remove(name);
      static_cast<void>(removed);
    }
  }

  Task<void> check(bool fix) {
    CheckRequest request{.fix_leaks = fix, .fix_errors = fix, .report = {}};
    request.report = [this](std::string_view line) {
      if (!poked_) std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
    };
    auto checked = co_await edge_->driver().checker()->check(request);
    if (poked_) co_return;
    require(checked.has_value() && checked->corruptions == 0 && checked->check_errors == 0,
            "an honest image has no errors");
    require(checked->leaks == 0, "an honest image has no leaks");
  }

  void poke(const Step& s) {
    const auto disk = find_memory_disk("image");
    poked_ = true;
    // Most of what is worth changing lies in the first clusters.
    const std::uint64_t offset =
        std::uint64_t{s.place} * (s.what & 0x80 ? 1 : 8) % (disk->size() - 8);
    Bytes bytes(8, std::byte{0});
    store_be(bytes.data() + (s.extent >> 13 & 6), s.extent);
    disk->write(offset, IoVec(std::span(bytes)).first(s.what & 0x40 ? 8 : 2));
  }

  Task<void> end() {
    if (edge_ && edge_->size() == model_.size()) {
      auto same = compare(0, model_.size());
      co_await same;
      auto checked = check(false);
      co_await checked;
    }
    auto closed = close();
    co_await closed;
    if (poked_) co_return;
    auto opened = open();
    co_await opened;
    auto same = compare(0, model_.size());
    co_await same;
    auto checked = check(false);
    co_await checked;
    closed = close();
    co_await closed;
  }

  const std::string options_;
  Edge edge_;
  Bytes model_;
  std::map<std::string, Bytes> kept_;
  bool poked_ = false;
};

}  // namespace
}  // namespace platter::qcow2

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace platter;
  using namespace platter::qcow2;
  Reader in(std::as_bytes(std::span(data, size)));
  if (in.remaining() < 1) return 0;
  const auto image = in.be<std::uint8_t>();
  std::vector<Step> steps;
  while (in.remaining() >= 5 && steps.size() < kMaxSteps) {
    Step step;
    step.what = in.be<std::uint8_t>();
    step.place = in.be<std::uint16_t>();
    step.extent = in.be<std::uint16_t>();
    steps.push_back(step);
  }
  Game game(image);
  executor().block_on([&] { return game.play(steps); });
  return 0;
}

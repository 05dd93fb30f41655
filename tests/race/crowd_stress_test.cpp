// Many small writers in each cluster, on several executors, while everything else is done with the
// image: it is streamed into, snapshots are taken, applied and removed, it grows and shrinks over a
// backing image that is longer, VM state comes and goes, its version, the width of its refcounts
// and other properties are changed, it is reopened. No two writers share a sector, so that what
// each has written has to be there, and in the bitmap that was there from the start.
#include <fmt/format.h>

#include <chrono>
#include <iostream>
#include <memory>

#include "block/crypto/secret.h"
#include "block/exec/executor_thread.h"
#include "block/jobs/stream.h"
#include "race/lanes.h"
#include "race/stamped.h"
#include "unit/scratch_dir.h"
#include "unit/side_threads.h"

namespace platter::qcow2::crowd {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kDisk = std::uint64_t{4} << 20;  // where the lanes are
constexpr std::uint64_t kMost = std::uint64_t{6}
                                << 20;  // as far as the disk grows, and its backing
constexpr std::uint64_t kSectors = kDisk / kStamped;
constexpr std::uint64_t kBlock = 8;  // sectors that belong to one lane
constexpr unsigned kLanes = 64;
constexpr unsigned kQueues = 3;
constexpr std::uint32_t kBelow = 2;          // the change that the backing image shows
constexpr std::uint64_t kHidden = 1u << 30;  // added to the numbers of what must never show

struct Setting {
  std::string create;  // @: the data file
  std::string_view open = "discard=unmap";
  std::uint64_t cluster_size = 65536;
  bool version2 = false;  // to begin with; snapshots have the disk's size
  bool snapshots = true;
  bool packs = true;  // whole clusters are written compressed, too

  bool resizes(bool with_snapshots) const { return !with_snapshots || !version2; }
};

constexpr std::uint64_t kGranule = 4096;  // of the bitmap
constexpr std::string_view kBitmap = "since";
constexpr std::string_view kKey = "encrypt.key-secret=key";

constexpr unsigned kFirstSeed = 20261123;
enum class Beside : std::uint8_t { kStream, kSnapshots };

// What all that goes on at once knows of each other.
struct Scene {
  BlockNode& node;
  const Setting& setting;
  unsigned seed = 0;
  unsigned rounds = from_environment("PLATTER_STEPS", 12);  // of each operation
  Numbers numbers{kSectors, kBelow};
  std::atomic<unsigned> working{0};  // operations' tasks that have not ended
  // A snapshot that is being applied, until each lane has looked at what has become of its blocks.
  std::atomic<const Taken*> applied{nullptr};
  std::atomic<unsigned> looks{0};  // how often all were asked to look
  std::atomic<unsigned> looked{0};
};

bool failed() { return ::testing::Test::HasFailure(); }

void expect_done(const Result<void>& done, std::string_view what) {
  EXPECT_TRUE(done) << what << ": " << (done ? "" : done.error().message());
}

// One request after the other, on blocks of its own.
class Writer {
 public:
  Writer(Scene& scene, unsigned index)
      : scene_(scene), node_(scene.node), index_(index), random_(scene.seed * 97 + index) {}

  Task<void> play() {
    while (!failed()) {
      // Asked before the look: it is the last one's turn too.
      const bool last = scene_.working.load() == 0;
      if (const unsigned asked = scene_.looks.load(); asked != looked_) {
        auto looking = look();
        co_await looking;
        looked_ = asked;
        scene_.looked.fetch_add(1);
      }
      if (last) break;
      auto one = step();
      co_await one;
    }
  }

 private:
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  // The snapshot has come back, but for what was written while it did.
  Task<void> look() {
    const Taken* const applied = scene_.applied.load();
    for (std::uint64_t block = index_; block < kSectors / kBlock && !failed(); block += kLanes) {
      const std::uint64_t first = block * kBlock;
      std::vector<std::byte> now(kBlock * kStamped);
      auto got = co_await node_.read(first * kStamped, iov(now));
      expect_done(got, "read");
      for (std::uint64_t i = 0; i < kBlock; ++i) {
        expect_fair(now.data() + i * kStamped, first + i, applied);
        scene_.numbers.set(first + i, change_in(now.data() + i * kStamped));
      }
    }
  }

  void expect_fair(const std::byte* shown, std::uint64_t sector, const Taken* applied) {
    const std::uint32_t own = scene_.numbers.ended[sector].load();
    const bool is_own = fair(shown, sector, own, own);
    const bool is_old =
        applied != nullptr && fair(shown, sector, applied->from[sector], applied->to[sector]);
    if (is_own || is_old) return;
    std::uint64_t word = 0;
    std::memcpy(&word, shown, sizeof(word));
    ADD_FAILURE() << fmt::format("lane {}: sector {} shows change {} of sector {} in place of {}",
                                 index_, sector, word >> 32, word & 0xffffffff, own);
  }

  Task<void> read(std::uint64_t first, std::uint64_t sectors) {
    const Taken* const before = scene_.applied.load();
    std::vector<std::byte> now(sectors * kStamped);
    auto got = co_await node_.read(first * kStamped, iov(now));
    expect_done(got, "read");
    const Taken* const after = scene_.applied.load();
    for (std::uint64_t i = 0; i < sectors; ++i)
      expect_fair(now.data() + i * kStamped, first + i, after ? after : before);
  }

  // What becomes of it is the format's choice.
  Task<void> discard(std::uint64_t first, std::uint64_t sectors) {
    const std::vector<std::uint32_t> before(
        scene_.numbers.ended.begin() + static_cast<std::ptrdiff_t>(first),
        scene_.numbers.ended.begin() + static_cast<std::ptrdiff_t>(first + sectors));
    scene_.numbers.begin(first, sectors, true);
    auto done = co_await node_.discard(first * kStamped, sectors * kStamped);
    expect_done(done, "discard");
    std::vector<std::byte> now(sectors * kStamped);
    done = co_await node_.read(first * kStamped, iov(now));
    expect_done(done, "read");
    for (std::uint64_t i = 0; i < sectors; ++i) {
      const std::byte* const shown = now.data() + i * kStamped;
      if (change_in(shown) == 1) {
        scene_.numbers.end(first + i, 1);
      } else {
        scene_.numbers.set(first + i, before[i]);
        expect_fair(shown, first + i, scene_.applied.load());
      }
    }
  }

  Task<void> step() {
    const std::uint64_t block = below(kSectors / kBlock / kLanes) * kLanes + index_;
    const bool whole = below(4) == 0;
    const std::uint64_t in = whole ? 0 : below(kBlock);
    const std::uint64_t sectors = whole ? kBlock : 1 + below(kBlock - in);
    const std::uint64_t first = block * kBlock + in;
    const std::uint64_t at = first * kStamped;
    const std::uint64_t length = sectors * kStamped;
    const std::uint64_t kind = below(16);
    if (kind == 0) {
      auto done = co_await node_.flush();
      expect_done(done, "flush");
    } else if (kind == 1) {
      auto discarding = discard(first, sectors);
      co_await discarding;
    } else if (kind == 2) {
      const ZeroFlags flags{.may_unmap = below(2) == 0};
      scene_.numbers.begin(first, sectors, true);
      auto done = co_await node_.write_zeroes(at, length, flags);
      expect_done(done, "zeroes");
      scene_.numbers.end(first, sectors);
    } else if (kind < 7) {
      auto reading = read(first, sectors);
      co_await reading;
    } else {
      const WriteFlags flags{
          .fua = kind == 7,
          .compressed = kind == 8 && scene_.setting.packs && length == scene_.setting.cluster_size};
      scene_.numbers.begin(first, sectors, false);
      std::vector<std::byte> data(length);
      for (std::uint64_t i = 0; i < sectors; ++i)
        stamp(data.data() + i * kStamped, first + i, scene_.numbers.begun[first + i].load());
      auto done = co_await node_.write(at, iov(data), flags);
      expect_done(done, "write");
      scene_.numbers.end(first, sectors);
    }
  }

  Scene& scene_;
  BlockNode& node_;
  const unsigned index_;
  std::mt19937 random_;
  unsigned looked_ = 0;
};

Task<void> play_lanes(Scene& scene, unsigned queue) {
  std::vector<std::unique_ptr<Writer>> writers;
  std::vector<Task<void>> playing;
  for (unsigned i = queue; i < kLanes; i += kQueues) {
    writers.push_back(std::make_unique<Writer>(scene, i));
    playing.push_back(writers.back()->play());
  }
  for (Task<void>& one : playing) co_await one;
}

// Operations -------------------------------------------------------------------------------------
// All on one executor, as graph changes have to be: they take turns where they wait.

Task<void> apply(Scene& scene, const Taken& taken) {
  scene.applied.store(&taken);
  auto done = co_await scene.node.driver().snapshots()->apply(taken.name);
  expect_done(done, "apply");
  const unsigned asked = scene.looks.fetch_add(1) + 1;
  while (scene.looked.load() < asked * kLanes && !failed()) {
    done = co_await scene.node.flush();
    expect_done(done, "flush");
  }
  scene.applied.store(nullptr);
}

Task<void> take_and_apply(Scene& scene, std::vector<std::unique_ptr<Taken>>& taken,
                          std::vector<std::unique_ptr<Taken>>& removed) {
  SnapshotAbility& snapshots = *scene.node.driver().snapshots();
  std::mt19937 random(scene.seed);
  for (unsigned i = 0; i < scene.rounds && !failed(); ++i) {
    auto one = std::make_unique<Taken>();
    one->name = fmt::format("s{}", i);
    one->from = copy_of(scene.numbers.ended);
    auto done = co_await snapshots.create(one->name, i, 0);
    expect_done(done, "create");
    one->to = copy_of(scene.numbers.begun);
    taken.push_back(std::move(one));
    if (i % 3 == 2) {
      auto applying = apply(scene, *taken[random() % taken.size()]);
      co_await applying;
    }
    if (taken.size() < 4) continue;
    const auto gone = taken.begin() + static_cast<std::ptrdiff_t>(random() % taken.size());
    done = co_await snapshots.remove((*gone)->name);
    expect_done(done, "remove");
    // A read that began while it was applied may still look at it.
    removed.push_back(std::move(*gone));
    taken.erase(gone);
  }
}

Task<void> stream_up(Scene& scene) {
  StreamOptions options;
  options.in_flight = 4;
  auto done = co_await stream(scene.node, options);
  expect_done(done, "stream");
}

Task<void> mark(Scene& scene) {
  BitmapAbility& bitmaps = *scene.node.driver().bitmaps();
  for (unsigned i = 0; i < scene.rounds && !failed(); ++i) {
    auto done = co_await bitmaps.add("marks", 4096, true);
    expect_done(done, "bitmap");
    done = co_await bitmaps.clear("marks");
    expect_done(done, "clear");
    auto contents = co_await bitmaps.contents("marks");
    EXPECT_TRUE(contents);
    done = co_await bitmaps.remove("marks");
    expect_done(done, "remove");
  }
}

bool is_zero(const std::vector<std::byte>& bytes) {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

// Behind the lanes' part nobody writes: what comes there is zeroes, and is once more when it was
// cut off.
Task<void> resize(Scene& scene) {
  std::mt19937 random(scene.seed + 1);
  for (unsigned i = 0; i < scene.rounds && !failed(); ++i) {
    const ResizeRequest request{.size = kDisk + random() % ((kMost - kDisk) / 512) * 512};
    auto done = co_await scene.node.resize(request);
    expect_done(done, "resize");
    const unsigned looks = scene.looks.load();
    const std::uint64_t size = scene.node.size();
    if (size <= kDisk || scene.applied.load() != nullptr) continue;
    std::vector<std::byte> now(size - kDisk);
    done = co_await scene.node.read(kDisk, iov(now));
    // A snapshot that comes in between has a size of its own.
    if (scene.applied.load() != nullptr || scene.looks.load() != looks) continue;
    expect_done(done, "read");
    EXPECT_TRUE(is_zero(now)) << "what has come is not zero";
  }
}

// The state may be gone at any time, but it is never another's data.
Task<void> keep_state(Scene& scene) {
  VmStateAbility& state = *scene.node.driver().vm_state();
  std::mt19937 random(scene.seed + 2);
  for (unsigned i = 0; i < scene.rounds * 2 && !failed(); ++i) {
    auto data = filled(4096 * (1 + random() % 40), static_cast<int>(1 + i % 250));
    auto done = co_await state.write(0, iov(data));
    expect_done(done, "VM state");
    std::vector<std::byte> now(data.size());
    done = co_await state.read(0, iov(now));
    expect_done(done, "VM state");
    for (std::size_t at = 0; at < now.size() && !failed(); at += kStamped) {
      const std::byte first = now[at];
      EXPECT_EQ(std::memcmp(now.data() + at, now.data() + at + 1, kStamped - 1), 0) << at;
      EXPECT_LE(static_cast<unsigned>(first), 250u);
    }
  }
}

std::string amendment(const Setting& setting, unsigned random) {
  if (setting.version2) return random % 2 == 0 ? "compat=1.1" : "compat=0.10";
  const bool lazy = random % 2 == 0;
  if (random / 2 % 2 == 0) return lazy ? "lazy_refcounts=on" : "lazy_refcounts=off";
  return fmt::format("refcount_bits={}", 8U << random / 4 % 4);
}

Task<void> change_properties(Scene& scene) {
  Driver& driver = scene.node.driver();
  std::mt19937 random(scene.seed + 3);
  for (unsigned i = 0; i < scene.rounds * 2 && !failed(); ++i) {
    BackingAbility& reference = *driver.backing_reference();
    const std::string filename = reference.backing_filename();
    const auto is_same = [&]() -> Result<void> {
      if (reference.backing_filename() != filename) return fail(EBUSY, "streamed");
      return {};
    };
    const std::function<Result<void>()> same(is_same);
    Result<void> done;
    switch (random() % 3) {
      case 0:
        // The stream may have ended it by then.
        done = co_await reference.change_backing(filename, "raw", same);
        if (!done && done.error().code() == EBUSY) done = {};
        expect_done(done, "backing reference");
        break;
      case 1: {
        OpenFlags flags = scene.node.flags();
        flags.discard_unmap = !flags.discard_unmap;
        done = co_await reopen(scene.node, flags);
        expect_done(done, "reopen");
        break;
      }
      default: {
        const Options change = options(amendment(scene.setting, static_cast<unsigned>(random())));
        const std::function<void(std::uint64_t, std::uint64_t)> untold;
        done = co_await driver.amender()->amend(change, false, untold, nullptr);
        expect_done(done, "amend");
        break;
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------

class Crowd : public ::testing::Test {
 protected:
  Crowd() {
    const auto key = crypto::add_secret("key", crypto::SecretBytes::of(std::string_view("open")));
    EXPECT_TRUE(key);
    auto data = std::vector<std::byte>(kMost);
    for (std::uint64_t s = 0; s < kMost / kStamped; ++s)
      stamp(data.data() + s * kStamped, s < kSectors ? s : s + kHidden, kBelow);
    auto made = run([&] { return create_image("raw", backing(), kMost, {}); });
    EXPECT_TRUE(made);
    run([&] { return fill_backing(data); });
  }
  ~Crowd() override { crypto::remove_secret("key"); }

  void play(const Setting& setting, Beside beside, unsigned seed);

 private:
  std::string backing() const { return dir_ / "backing"; }
  std::string image() const { return dir_ / "image"; }
  std::string data_file() const { return dir_ / "data"; }

  Task<Result<Edge>> open(std::string_view format, const std::string& filename,
                          std::string_view more) {
    OpenRequest request;
    request.filename = filename;
    request.format = format;
    request.options = options(more);
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    return open_node(std::move(request));
  }
  Task<void> fill_backing(std::vector<std::byte>& data) {
    auto opened = co_await open("raw", backing(), "");
    CO_OK(opened);
    auto written = co_await (*opened)->write(0, iov(data));
    CO_OK(written);
    auto closed = co_await opened->detach();
    CO_OK(closed);
  }
  // Whatever is not as it was at first has been marked.
  Task<void> look_for_marks(BlockNode& node, const std::vector<std::uint32_t>& last) {
    auto marked = co_await node.driver().bitmaps()->contents(std::string(kBitmap));
    CO_OK(marked);
    for (std::uint64_t s = 0; s < kSectors && !failed(); ++s)
      EXPECT_TRUE(last[s] == kBelow || (*marked)->get(s * kStamped)) << "sector " << s;
  }
  Task<void> compare(BlockNode& node, const std::vector<std::uint32_t>& from,
                     const std::vector<std::uint32_t>& to) {
    std::vector<std::byte> now(kDisk);
    auto got = co_await node.read(0, iov(now));
    CO_OK(got);
    for (std::uint64_t s = 0; s < kSectors && !failed(); ++s)
      EXPECT_TRUE(fair(now.data() + s * kStamped, s, from[s], to[s])) << "sector " << s;
  }
  Task<void> verify(const std::vector<std::uint32_t>& last,
                    const std::vector<std::unique_ptr<Taken>>& taken, bool marked) {
    auto opened = co_await open("qcow2", image(), kKey);
    CO_OK(opened);
    if (marked) {
      auto looking = look_for_marks(**opened, last);
      co_await looking;
    }
    auto comparing = compare(**opened, last, last);
    co_await comparing;
    for (const auto& one : taken) {
      SCOPED_TRACE(one->name);
      auto applied = co_await (*opened)->driver().snapshots()->apply(one->name);
      CO_OK(applied);
      auto looking = compare(**opened, one->from, one->to);
      co_await looking;
    }
    const std::uint64_t leaks = co_await leaks_of(**opened);
    EXPECT_EQ(leaks, 0u);
    auto closed = co_await opened->detach();
    CO_OK(closed);
  }

  ScratchDir dir_;
};

void Crowd::play(const Setting& setting, Beside beside, unsigned seed) {
  SCOPED_TRACE(fmt::format("{}, seed {}", setting.create, seed));
  std::filesystem::remove(image());
  std::filesystem::remove(data_file());
  std::string create = fmt::format("backing_file={},backing_fmt=raw,{}", backing(), setting.create);
  if (const std::size_t at = create.find('@'); at != std::string::npos)
    create.replace(at, 1, data_file());
  auto made = run([&] { return create_image("qcow2", image(), kDisk, options(create)); });
  ASSERT_TRUE(made) << made.error().message();
  auto main = ExecutorThread::start();
  ASSERT_TRUE(main);
  Executor& executor = (*main)->executor();
  const std::string how = fmt::format("{},{}", setting.open, kKey);
  auto opening = [&] { return open("qcow2", image(), how); };
  auto opened = run_blocking(executor, opening);
  ASSERT_TRUE(opened) << opened.error().message();
  Scene scene{.node = **opened, .setting = setting, .seed = seed};
  const bool snapshots = beside == Beside::kSnapshots && setting.snapshots;
  const bool marked = !snapshots && scene.node.driver().bitmaps()->supported();
  if (marked) {
    auto marking = [&] {
      return scene.node.driver().bitmaps()->add(std::string(kBitmap), kGranule, true);
    };
    const auto added = run_blocking(executor, marking);
    ASSERT_TRUE(added) << added.error().message();
  }
  std::vector<std::unique_ptr<Taken>> taken;
  std::vector<std::unique_ptr<Taken>> removed;
  std::vector<std::function<Task<void>()>> operations;
  operations.emplace_back([&] { return keep_state(scene); });
  operations.emplace_back([&] { return change_properties(scene); });
  if (setting.resizes(snapshots)) operations.emplace_back([&] { return resize(scene); });
  if (snapshots) {
    operations.emplace_back([&] { return take_and_apply(scene, taken, removed); });
  } else {
    operations.emplace_back([&] { return stream_up(scene); });
    if (marked) operations.emplace_back([&] { return mark(scene); });
  }
  scene.working.store(static_cast<unsigned>(operations.size()));
  {
    SideThreads side;
    for (unsigned i = 0; i < kQueues; ++i) side.start([&, i] { return play_lanes(scene, i); });
    side.start([&]() -> Task<void> {
      std::vector<Task<void>> working;
      for (const auto& operation : operations) working.push_back(operation());
      for (Task<void>& one : working) {
        co_await one;
        scene.working.fetch_sub(1);
      }
    });
  }
  const std::vector<std::uint32_t> last = copy_of(scene.numbers.ended);
  auto comparing = [&] { return compare(scene.node, last, last); };
  run_blocking(executor, comparing);
  if (marked) {
    auto looking = [&] { return look_for_marks(scene.node, last); };
    run_blocking(executor, looking);
  }
  auto checking = [&] { return leaks_of(scene.node); };
  EXPECT_EQ(run_blocking(executor, checking), 0u);
  auto closing = [&] { return opened->detach(); };
  auto closed = run_blocking(executor, closing);
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
  auto verifying = [&] { return verify(last, taken, marked); };
  run_blocking(executor, verifying);
}

const Setting kSettings[] = {
    {.create = "cluster_size=64k"},
    {.create = "cluster_size=4k", .cluster_size = 4096},
    {.create = "cluster_size=16k,extended_l2=on", .cluster_size = 16384},
    {.create = "cluster_size=64k,compat=0.10", .version2 = true},
    {.create = "cluster_size=512,refcount_bits=64", .cluster_size = 512},
    {.create = "cluster_size=4k",
     .open = "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024",
     .cluster_size = 4096},
    {.create = "cluster_size=4k,compression_type=zstd", .cluster_size = 4096},
    {.create = "cluster_size=4k,data_file=@",
     .cluster_size = 4096,
     .snapshots = false,
     .packs = false},
    {.create = "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=0",
     .cluster_size = 4096,
     .packs = false},
};

TEST_F(Crowd, UnderAStream) {
  for (const Setting& setting : kSettings) play(setting, Beside::kStream, kFirstSeed);
}

TEST_F(Crowd, UnderSnapshots) {
  for (const Setting& setting : kSettings) play(setting, Beside::kSnapshots, kFirstSeed);
}

TEST_F(Crowd, ForLong) {
  using Clock = std::chrono::steady_clock;
  unsigned seed = from_environment("PLATTER_SEED", kFirstSeed);
  const auto end = Clock::now() + std::chrono::duration<double>(stress_seconds() * 0.25);
  unsigned rounds = 0;
  for (; Clock::now() < end && !failed(); ++seed, ++rounds) {
    play(kSettings[seed % std::size(kSettings)],
         seed / 2 % 2 == 0 ? Beside::kStream : Beside::kSnapshots, seed);
  }
  std::cout << rounds << " seeds\n";
  EXPECT_GT(rounds, 0u);
}

}  // namespace
}  // namespace platter::qcow2::crowd

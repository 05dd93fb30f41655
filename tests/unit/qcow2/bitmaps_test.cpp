// Persistent bitmaps of an open image: marking, storing, changing, and what a crash leaves.
#include "formats/qcow2/bitmaps.h"

#include <gmock/gmock.h>

#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using ::testing::HasSubstr;

constexpr std::uint64_t kKiB = 1 << 10;
using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

Task<Ranges> marked(BlockNode& node, std::string name) {
  Ranges all;
  auto contents = co_await node.driver().bitmaps()->contents(name);
  EXPECT_TRUE(contents) << (contents ? "" : contents.error().message());
  if (!contents) co_return all;
  const DirtyBitmap& bits = **contents;
  for (auto r = bits.next(0); r.length != 0; r = bits.next(r.offset + r.length))
    all.emplace_back(r.offset, r.length);
  co_return all;
}

Task<Result<void>> fill(BlockNode& node, std::uint64_t offset, std::size_t size,
                        WriteFlags flags = {}) {
  auto data = pattern(size, 1);
  auto written = co_await node.write(offset, iov(data), flags);
  co_return written;
}

// What the directory in the file says now.
std::vector<BitmapEntry> on_disk(const MemoryImage& image) {
  std::vector<std::byte> bytes(image.disk().size());
  image.disk().read(0, iov(bytes));
  const auto header = parse_header(std::span(bytes).first(65536), bytes.size());
  EXPECT_TRUE(header);
  if (!header || !header->extensions.bitmaps) return {};
  const BitmapsExtension& extension = *header->extensions.bitmaps;
  EXPECT_NE(header->autoclear_features & autoclear::kBitmaps, 0u);
  auto entries = parse_bitmap_directory(
      std::span(bytes).subspan(extension.directory_offset, extension.directory_size), extension,
      *header);
  EXPECT_TRUE(entries) << (entries ? "" : entries.error().message());
  return entries ? *entries : std::vector<BitmapEntry>{};
}

TEST(Bitmaps, EveryChangeIsMarkedAndStored) {
  MemoryImage image("bitmaps-marked", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    auto added = co_await bitmaps.add("a", 4096, true);
    CO_OK(added);
    added = co_await bitmaps.add("off", 0, false);
    CO_OK(added);
    auto done = co_await fill(**node, 100, 10);
    CO_OK(done);
    done = co_await fill(**node, kMiB, 64 * kKiB, WriteFlags{.compressed = true});
    CO_OK(done);
    done = co_await fill(**node, 200, 10);  // in place
    CO_OK(done);
    done = co_await (*node)->write_zeroes(2 * kMiB + 1000, 100 * kKiB);
    CO_OK(done);
    done = co_await fill(**node, 4 * kMiB, 64 * kKiB);
    CO_OK(done);
    done = co_await fill(**node, 5 * kMiB, 512, WriteFlags{.unchanged = true});
    CO_OK(done);
    auto closed = co_await node->detach();
    CO_OK(closed);

    node = co_await image.open();
    CO_OK(node);
    const Ranges expected{
        {0, 4096}, {kMiB, 64 * kKiB}, {2 * kMiB, 104 * kKiB}, {4 * kMiB, 64 * kKiB}};
    const Ranges first = co_await marked(**node, "a");
    EXPECT_EQ(first, expected);
    const Ranges off = co_await marked(**node, "off");
    EXPECT_EQ(off, Ranges{});
    co_await expect_clean(**node);
    closed = co_await node->detach();
    CO_OK(closed);
  });
  EXPECT_EQ(on_disk(image).size(), 2u);
}

TEST(Bitmaps, DiscardsAreMarked) {
  MemoryImage image("bitmaps-discard", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open(true, "discard=unmap");
    CO_OK(node);
    auto added = co_await (*node)->driver().bitmaps()->add("a", 0, true);
    CO_OK(added);
    auto done = co_await (*node)->discard(kMiB, kMiB);
    CO_OK(done);
    const Ranges now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{kMiB, kMiB}}));
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
}

// Flagged on disk before the first change and not before; a crash leaves it so.
TEST(Bitmaps, ACrashLeavesThemInUse) {
  MemoryImage image("bitmaps-crash", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    for (const char* name : {"a", "b"}) {
      auto added = co_await bitmaps.add(name, 0, *name == 'a');
      CO_OK(added);
    }
    auto flushed = co_await (*node)->flush();
    CO_OK(flushed);
    EXPECT_EQ(on_disk(image)[0].flags, bitmap_flag::kAuto);
    auto written = co_await fill(**node, 0, 512);
    CO_OK(written);
    EXPECT_EQ(on_disk(image)[0].flags, bitmap_flag::kAuto | bitmap_flag::kInUse);
    EXPECT_EQ(on_disk(image)[1].flags, 0u);
    Edge crashed = std::move(*node);  // destroyed without being closed
  });
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    EXPECT_TRUE(bitmaps.list()[0].inconsistent);
    EXPECT_FALSE(bitmaps.list()[1].inconsistent);
    auto refused = co_await bitmaps.clear("a");
    EXPECT_FALSE(refused);
    if (!refused) {
      EXPECT_THAT(refused.error().message(),
                  HasSubstr("Bitmap 'a' is inconsistent and cannot be used"));
    }
    refused = co_await bitmaps.set_enabled("a", false);
    EXPECT_FALSE(refused);
    ResizeRequest larger{.size = 128 * kMiB};
    refused = co_await (*node)->resize(larger);
    EXPECT_FALSE(refused);
    auto written = co_await fill(**node, kMiB, 512);
    CO_OK(written);
    auto closed = co_await node->detach();
    CO_OK(closed);
    EXPECT_NE(on_disk(image)[0].flags & bitmap_flag::kInUse, 0u);

    node = co_await image.open();
    CO_OK(node);
    auto removed = co_await (*node)->driver().bitmaps()->remove("a");
    CO_OK(removed);
    co_await expect_clean(**node);
    closed = co_await node->detach();
    CO_OK(closed);
    EXPECT_EQ(on_disk(image).size(), 1u);
  });
}

TEST(Bitmaps, OpeningChangesNothing) {
  MemoryImage image("bitmaps-quiet", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto added = co_await (*node)->driver().bitmaps()->add("a", 0, true);
    CO_OK(added);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  const auto contents = [&] {
    std::vector<std::byte> bytes(image.disk().size());
    image.disk().read(0, iov(bytes));
    return bytes;
  };
  const auto before = contents();
  for (const bool writable : {false, true}) {
    run([&]() -> Task<void> {
      auto node = co_await image.open(writable);
      CO_OK(node);
      auto closed = co_await node->detach();
      CO_OK(closed);
    });
    EXPECT_EQ(contents(), before) << writable;
  }
}

TEST(Bitmaps, EnableDisableClearMergeRemove) {
  MemoryImage image("bitmaps-ops", 64 * kMiB, "cluster_size=4k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    auto done = co_await bitmaps.add("a", 512, true);
    CO_OK(done);
    EXPECT_EQ(bitmaps.list()[0].granularity, 512u);
    done = co_await fill(**node, 0, 1024);
    CO_OK(done);
    done = co_await bitmaps.set_enabled("a", false);
    CO_OK(done);
    done = co_await fill(**node, kMiB, 1024);
    CO_OK(done);
    Ranges now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{0, 1024}}));
    done = co_await bitmaps.set_enabled("a", true);
    CO_OK(done);
    done = co_await fill(**node, 2 * kMiB, 1024);
    CO_OK(done);
    now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{0, 1024}, {2 * kMiB, 1024}}));
    done = co_await bitmaps.add("b", 65536, false);
    CO_OK(done);
    auto contents = co_await bitmaps.contents("a");
    CO_OK(contents);
    done = co_await bitmaps.merge("b", *contents);
    CO_OK(done);
    now = co_await marked(**node, "b");
    EXPECT_EQ(now, (Ranges{{0, 65536}, {2 * kMiB, 65536}}));
    done = co_await bitmaps.clear("a");
    CO_OK(done);
    now = co_await marked(**node, "a");
    EXPECT_EQ(now, Ranges{});
    done = co_await fill(**node, 3 * kMiB, 512);
    CO_OK(done);
    co_await expect_clean(**node);
    auto closed = co_await node->detach();
    CO_OK(closed);

    node = co_await image.open();
    CO_OK(node);
    now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{3 * kMiB, 512}}));
    now = co_await marked(**node, "b");
    EXPECT_EQ(now, (Ranges{{0, 65536}, {2 * kMiB, 65536}}));
    for (const char* name : {"a", "b"}) {
      done = co_await (*node)->driver().bitmaps()->remove(name);
      CO_OK(done);
    }
    co_await expect_clean(**node);
    closed = co_await node->detach();
    CO_OK(closed);
  });
  EXPECT_TRUE(on_disk(image).empty());
}

TEST(Bitmaps, Refusals) {
  MemoryImage image("bitmaps-refused", 64 * kMiB, "cluster_size=64k");
  MemoryImage old("bitmaps-v2", kMiB, "compat=0.10");
  MemoryImage large("bitmaps-large", std::uint64_t{1} << 50, "cluster_size=2M");
  MemoryImage empty("bitmaps-empty", 0, "");
  const auto refusal = [](const MemoryImage& of, std::string name, std::uint64_t granularity,
                          bool writable = true) {
    std::string message;
    run([&]() -> Task<void> {
      auto node = co_await of.open(writable, "node-name=n");
      CO_OK(node);
      auto added = co_await (*node)->driver().bitmaps()->add(name, granularity, true);
      if (!added) message = added.error().message();
      auto closed = co_await node->detach();
      CO_OK(closed);
    });
    return message;
  };
  EXPECT_EQ(refusal(image, "", 0), "Bitmap name cannot be empty");
  EXPECT_EQ(refusal(image, "a", 513), "Granularity must be power of 2 and at least 512");
  EXPECT_EQ(refusal(image, "a", 256), "Granularity must be power of 2 and at least 512");
  EXPECT_EQ(refusal(image, "a", std::uint64_t{1} << 32),
            "Granularity must be power of 2 and at least 512");
  const std::string head = "Can't make bitmap 'a' persistent in 'n': ";
  EXPECT_EQ(refusal(old, "a", 0), head + "Cannot store dirty bitmaps in qcow2 v2 files");
  EXPECT_EQ(refusal(large, "a", 512),
            head + "Too much space will be occupied by the bitmap. Use larger granularity");
  EXPECT_EQ(refusal(empty, "a", 0), head + "The disk is empty");
  EXPECT_THAT(refusal(image, std::string(1024, 'x'), 0), HasSubstr("(1023 characters)"));
  EXPECT_EQ(refusal(image, "a", 0, false), "the image is read-only");
  EXPECT_EQ(refusal(image, "a", 0), "");
  EXPECT_EQ(refusal(image, "a", 0), "Bitmap already exists: a");
}

TEST(Bitmaps, NoMoreAreEnabledThanCanBeLoaded) {
  MemoryImage image("bitmaps-memory", std::uint64_t{2} << 40, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    for (const char* name : {"a", "b"}) {
      auto added = co_await bitmaps.add(name, 512, true);
      CO_OK(added);
    }
    auto third = co_await bitmaps.add("c", 512, true);
    EXPECT_FALSE(third);
    third = co_await bitmaps.add("c", 512, false);
    CO_OK(third);
    third = co_await bitmaps.set_enabled("c", true);
    EXPECT_FALSE(third);
    auto closed = co_await node->detach();
    CO_OK(closed);
    node = co_await image.open();
    CO_OK(node);
    auto removed = co_await (*node)->driver().bitmaps()->remove("a");
    CO_OK(removed);
    closed = co_await node->detach();
    CO_OK(closed);
  });
}

TEST(Bitmaps, ResizingKeepsThem) {
  MemoryImage image("bitmaps-resize", 64 * kMiB, "cluster_size=512");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    for (const char* name : {"a", "b"}) {
      auto added = co_await bitmaps.add(name, 512, true);
      CO_OK(added);
    }
    auto done = co_await fill(**node, 60 * kMiB, 1024);
    CO_OK(done);
    done = co_await bitmaps.set_enabled("b", false);
    CO_OK(done);
    for (const std::uint64_t size : {100 * kMiB, 61 * kMiB, 10 * kMiB, 80 * kMiB}) {
      ResizeRequest request{.size = size};
      done = co_await (*node)->resize(request);
      CO_OK(done);
      co_await expect_clean(**node);
      const Ranges expected =
          size >= 61 * kMiB && size != 80 * kMiB ? Ranges{{60 * kMiB, 1024}} : Ranges{};
      for (const char* name : {"a", "b"}) {
        const Ranges now = co_await marked(**node, name);
        EXPECT_EQ(now, expected) << size;
      }
    }
    done = co_await fill(**node, 70 * kMiB, 512);
    CO_OK(done);
    ResizeRequest none{.size = 0};
    done = co_await (*node)->resize(none);
    EXPECT_FALSE(done);
    auto closed = co_await node->detach();
    CO_OK(closed);
    node = co_await image.open();
    CO_OK(node);
    const Ranges now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{70 * kMiB, 512}}));
    closed = co_await node->detach();
    CO_OK(closed);
  });
}

TEST(Bitmaps, SnapshotsAreTakenButNotApplied) {
  MemoryImage image("bitmaps-snapshots", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto done = co_await (*node)->driver().bitmaps()->add("a", 0, true);
    CO_OK(done);
    done = co_await fill(**node, 0, 512);
    CO_OK(done);
    done = co_await (*node)->driver().snapshots()->create("s", 0, 0);
    CO_OK(done);
    done = co_await fill(**node, kMiB, 512);
    CO_OK(done);
    done = co_await (*node)->driver().snapshots()->apply("s");
    EXPECT_FALSE(done);
    if (!done) {
      EXPECT_EQ(done.error().message(), "Device has active dirty bitmaps");
    }
    done = co_await (*node)->driver().snapshots()->remove("s");
    CO_OK(done);
    co_await expect_clean(**node);
    const Ranges now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{0, 65536}, {kMiB, 65536}}));
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  EXPECT_EQ(on_disk(image)[0].flags, bitmap_flag::kAuto);
}

// A program that does not know bitmaps has written: they mean nothing any more.
TEST(Bitmaps, WithoutTheAutoclearBitTheyAreStale) {
  MemoryImage image("bitmaps-stale", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto done = co_await (*node)->driver().bitmaps()->add("a", 0, true);
    CO_OK(done);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  std::vector<std::byte> none(8);
  image.disk().write(88, iov(none));
  const auto header = [&] {
    std::vector<std::byte> bytes(65536);
    image.disk().read(0, iov(bytes));
    return parse_header(bytes, image.disk().size());
  };
  EXPECT_TRUE(header()->extensions.stale_bitmaps);
  for (const bool writable : {false, true}) {
    run([&]() -> Task<void> {
      auto node = co_await image.open(writable);
      CO_OK(node);
      EXPECT_TRUE((*node)->driver().bitmaps()->list().empty());
      auto closed = co_await node->detach();
      CO_OK(closed);
    });
    EXPECT_EQ(header()->extensions.stale_bitmaps, !writable);
  }
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    const CheckRequest repair{.fix_leaks = true, .fix_errors = false, .report = {}};
    auto checked = co_await (*node)->driver().checker()->check(repair);
    CO_OK(checked);
    EXPECT_EQ(checked->leaks_fixed, 2u);  // the directory and one table
    auto done = co_await (*node)->driver().bitmaps()->add("a", 0, true);
    CO_OK(done);
    co_await expect_clean(**node);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
}

// What nobody here understands stays as it is.
TEST(Bitmaps, OthersExtraDataIsKept) {
  MemoryImage image("bitmaps-extra", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto done = co_await (*node)->driver().bitmaps()->add("a", 0, false);
    CO_OK(done);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  std::vector<BitmapEntry> entries = on_disk(image);
  ASSERT_EQ(entries.size(), 1u);
  entries[0].extra = pattern(24, 5);
  {
    std::vector<std::byte> bytes(65536);
    image.disk().read(0, iov(bytes));
    Header header = *parse_header(bytes, image.disk().size());
    auto directory = encode_bitmap_directory(entries);
    image.disk().write(header.extensions.bitmaps->directory_offset, iov(directory));
    header.extensions.bitmaps->directory_size = directory.size();
    auto encoded = *encode_header(header);
    image.disk().write(0, iov(encoded));
  }
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    BitmapAbility& bitmaps = *(*node)->driver().bitmaps();
    auto refused = co_await bitmaps.clear("a");
    EXPECT_FALSE(refused);
    auto done = co_await bitmaps.add("b", 0, true);
    CO_OK(done);
    done = co_await fill(**node, 0, 512);
    CO_OK(done);
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  const auto after = on_disk(image);
  ASSERT_EQ(after.size(), 2u);
  EXPECT_EQ(after[0], entries[0]);
}

TEST(Bitmaps, ReopeningStoresAndLoads) {
  MemoryImage image("bitmaps-reopen", 64 * kMiB, "cluster_size=64k");
  run([&]() -> Task<void> {
    auto node = co_await image.open();
    CO_OK(node);
    auto done = co_await (*node)->driver().bitmaps()->add("a", 0, true);
    CO_OK(done);
    done = co_await fill(**node, 0, 512);
    CO_OK(done);
    OpenFlags flags = (*node)->flags();
    flags.read_only = true;
    done = co_await node->set_permissions(Permissions::reader());
    CO_OK(done);
    done = co_await reopen(**node, flags);
    CO_OK(done);
    EXPECT_EQ(on_disk(image)[0].flags, bitmap_flag::kAuto);
    flags.read_only = false;
    done = co_await reopen(**node, flags);
    CO_OK(done);
    done = co_await node->set_permissions(Permissions::writer());
    CO_OK(done);
    done = co_await fill(**node, kMiB, 512);
    CO_OK(done);
    EXPECT_EQ(on_disk(image)[0].flags, bitmap_flag::kAuto | bitmap_flag::kInUse);
    const Ranges now = co_await marked(**node, "a");
    EXPECT_EQ(now, (Ranges{{0, 65536}, {kMiB, 65536}}));
    auto closed = co_await node->detach();
    CO_OK(closed);
  });
  EXPECT_EQ(on_disk(image)[0].flags, bitmap_flag::kAuto);
}

}  // namespace
}  // namespace platter::qcow2

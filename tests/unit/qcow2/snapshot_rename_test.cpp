// A snapshot gets another name, also that of one that it takes the place of.
#include <cerrno>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::snapshot_rename {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kDisk = 1 << 20;

// "ID NAME, ..." as listed.
std::string names_of(BlockNode& node) {
  std::string names;
  for (const SnapshotInfo& one : node.driver().snapshots()->list())
    names += fmt::format("{}{} {}", names.empty() ? "" : ", ", one.id, one.name);
  return names;
}

Task<Result<void>> fill_disk(BlockNode& node, int value) {
  std::vector<std::byte> bytes(kDisk / 2, static_cast<std::byte>(value));
  auto written = co_await node.write(0, iov(bytes));
  co_return written;
}

// Snapshots of these names, in which the disk's first half holds 1, 2, ...; then it holds 9. The
// last quarter is shared by all.
Task<Result<void>> snap_all(BlockNode& node, std::vector<std::string> names) {
  std::vector<std::byte> shared(kDisk / 4, std::byte{8});
  auto written = co_await node.write(kDisk / 4 * 3, iov(shared));
  PLATTER_CO_TRY(written);
  int value = 0;
  for (const std::string& name : names) {
    auto done = co_await fill_disk(node, ++value);
    PLATTER_CO_TRY(done);
    done = co_await node.driver().snapshots()->create(name, 5, 6);
    PLATTER_CO_TRY(done);
  }
  auto done = co_await fill_disk(node, 9);
  co_return done;
}

// What the first byte of a snapshot is ("": of the disk), seen by somebody who opens the image.
Task<int> shown(const MemoryImage& image, std::string name) {
  auto opened = co_await image.open(false);
  EXPECT_TRUE(opened);
  if (!opened) co_return -1;
  if (!name.empty()) {
    auto loaded = co_await (*opened)->driver().snapshots()->load(name);
    EXPECT_TRUE(loaded);
  }
  std::vector<std::byte> bytes(kDisk / 2);
  auto got = co_await (*opened)->read(0, iov(bytes));
  EXPECT_TRUE(got);
  EXPECT_EQ(bytes, std::vector<std::byte>(bytes.size(), bytes[0]));
  auto closed = co_await opened->detach();
  EXPECT_TRUE(closed);
  co_return static_cast<int>(bytes[0]);
}

Task<void> give_another_name(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  const std::vector<std::string> names{"one", "two"};
  auto done = co_await snap_all(node, names);
  CO_OK(done);
  const SnapshotInfo before = node.driver().snapshots()->list()[0];
  done = co_await node.driver().snapshots()->rename("one", "a longer name than it had");
  CO_OK(done);
  EXPECT_EQ(names_of(node), "1 a longer name than it had, 2 two");
  const SnapshotInfo after = node.driver().snapshots()->list()[0];
  EXPECT_EQ(after.date_seconds, before.date_seconds);
  EXPECT_EQ(after.date_nanoseconds, before.date_nanoseconds);
  EXPECT_EQ(after.disk_size, before.disk_size);
  co_await expect_clean(node);
  // By its id.
  done = co_await node.driver().snapshots()->rename("2", "three");
  CO_OK(done);
  EXPECT_EQ(names_of(node), "1 a longer name than it had, 2 three");
  co_await expect_clean(node);
  done = co_await opened->detach();
  CO_OK(done);
  int value = co_await shown(image, "a longer name than it had");
  EXPECT_EQ(value, 1);
  value = co_await shown(image, "three");
  EXPECT_EQ(value, 2);
  value = co_await shown(image, "");
  EXPECT_EQ(value, 9);
}

TEST(SnapshotRename, ItKeepsAllButItsName) {
  for (const char* create : {"", "compat=0.10", "lazy_refcounts=on"}) {
    const MemoryImage image("rename", kDisk, create);
    run([&] { return give_another_name(image); });
  }
}

Task<void> take_the_place(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  // A name may be there more than once.
  const std::vector<std::string> names{"same", "other", "same", "new"};
  auto done = co_await snap_all(node, names);
  CO_OK(done);
  CheckRequest request;
  auto before = co_await node.driver().checker()->check(request);
  CO_OK(before);
  done = co_await node.driver().snapshots()->rename("new", "same");
  CO_OK(done);
  EXPECT_EQ(names_of(node), "2 other, 4 same");
  co_await expect_clean(node);
  // Space of the two is there again for others.
  const std::uint64_t size = node.storage()->size();
  std::vector<std::byte> bytes(kDisk / 2, std::byte{9});
  done = co_await node.write(kDisk / 2, iov(bytes));
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  EXPECT_EQ(node.storage()->size(), size);
  // What is the disk's alone is written in place: no flag is missing.
  done = co_await fill_disk(node, 9);
  CO_OK(done);
  EXPECT_EQ(node.storage()->size(), size);
  // It alone has the name, also where it had it before.
  done = co_await node.driver().snapshots()->create("same", 1, 0);
  CO_OK(done);
  EXPECT_EQ(names_of(node), "2 other, 4 same, 5 same");
  done = co_await node.driver().snapshots()->rename("4", "same");
  CO_OK(done);
  EXPECT_EQ(names_of(node), "2 other, 4 same");
  co_await expect_clean(node);
  done = co_await opened->detach();
  CO_OK(done);
  int value = co_await shown(image, "same");
  EXPECT_EQ(value, 4);
  value = co_await shown(image, "other");
  EXPECT_EQ(value, 2);
  value = co_await shown(image, "");
  EXPECT_EQ(value, 9);
}

TEST(SnapshotRename, ItTakesThePlaceOfAllThatHaveTheName) {
  for (const char* create : {"cluster_size=4k", "cluster_size=4k,compat=0.10"}) {
    const MemoryImage image("rename", kDisk, create);
    run([&] { return take_the_place(image); });
  }
}

std::vector<std::byte> bytes_of(const MemoryImage& image) {
  std::vector<std::byte> bytes(image.disk().size());
  image.disk().read(0, iov(bytes));
  return bytes;
}

Task<void> refuse_to(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  const std::vector<std::string> names{"one", "two"};
  auto done = co_await snap_all(**opened, names);
  CO_OK(done);
  done = co_await (*opened)->flush();
  CO_OK(done);
  SnapshotAbility& snapshots = *(*opened)->driver().snapshots();
  const std::vector<std::byte> before = bytes_of(image);
  struct Case {
    std::string snapshot;
    std::string name;
    int code;
    std::string said;
  };
  const std::string longest(255, 'x');
  const Case cases[] = {
      {"three", "four", ENOENT, "snapshot 'three' not found"},
      {"one", "", EINVAL, "the new name is empty"},
      {"one", longest + "x", ENAMETOOLONG, "the name has 256 bytes, 255 is the limit"},
  };
  for (const Case& one : cases) {
    done = co_await snapshots.rename(one.snapshot, one.name);
    EXPECT_FALSE(done);
    if (done) continue;
    EXPECT_EQ(done.error().code(), one.code);
    EXPECT_EQ(done.error().message(), one.said);
  }
  // The name that it has is nothing to write for.
  done = co_await snapshots.rename("2", "two");
  CO_OK(done);
  EXPECT_EQ(names_of(**opened), "1 one, 2 two");
  EXPECT_TRUE(bytes_of(image) == before);
  done = co_await snapshots.rename("two", longest);
  CO_OK(done);
  co_await expect_clean(**opened);
  done = co_await opened->detach();
  CO_OK(done);
  opened = co_await image.open(false);
  CO_OK(opened);
  done = co_await (*opened)->driver().snapshots()->rename("one", "three");
  EXPECT_FALSE(done);
  if (!done) {
    EXPECT_EQ(done.error().message(), "the image is read-only");
  }
  EXPECT_EQ(names_of(**opened), "1 one, 2 " + longest);
  done = co_await opened->detach();
  CO_OK(done);
}

TEST(SnapshotRename, RefusalsChangeNothing) {
  const MemoryImage image("rename", kDisk, "");
  run([&] { return refuse_to(image); });
}

}  // namespace
}  // namespace platter::qcow2::snapshot_rename

// Every field of an image and every kind of lie that its width allows: the list is generated. With
// each, what users do (look, write, operate, repair) ends soon and in little memory, an image that
// does not open says which field is why, and a repair loses no data but what the lie itself hides.
#include <fmt/format.h>

#include <algorithm>
#include <regex>

#include "block/node/dirty_bitmap.h"
#include "block/node/graph.h"
#include "unit/qcow2/hostile_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using platter::testing::bytes_of;
using platter::testing::kSanitized;
using platter::testing::kThreadSanitized;

constexpr std::uint64_t kLieSize = 128 << 10;
constexpr std::uint64_t kPiece = 512;  // what data is compared by
constexpr unsigned kOneIn = kThreadSanitized ? 60 : kSanitized ? 12 : 1;  // of all lies

// One number somewhere in the image.
struct Field {
  std::string name;
  std::uint64_t offset = 0;
  unsigned width = 4;  // bytes
  std::string said;    // what an error that comes of it names, as a regular expression
  // The part of the disk that it maps: a lie may change this, and nothing else.
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};

struct Seed {
  std::vector<std::byte> file;
  std::vector<std::byte> disk;
  std::vector<Field> fields;
  std::vector<std::uint64_t> places;  // where each kind of structure lies
  std::uint64_t cluster_size = 0;
};

template <class T>
T at(const std::vector<std::byte>& file, std::uint64_t offset) {
  return load_be<T>(file.data() + offset);
}

std::uint64_t number(const std::vector<std::byte>& file, const Field& field) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < field.width; ++i)
    value = value << 8 | std::to_integer<std::uint64_t>(file[field.offset + i]);
  return value;
}

void put_number(std::vector<std::byte>& file, const Field& field, std::uint64_t value) {
  for (unsigned i = field.width; i-- > 0; value >>= 8)
    file[field.offset + i] = static_cast<std::byte>(value);
}

// Opening ----------------------------------------------------------------------------------------

Task<Result<Edge>> open(bool writable) {
  OpenRequest request;
  request.filename = "memory:hostile";
  request.format = "qcow2";
  request.flags.read_only = !writable;
  request.flags.no_backing = true;
  request.permissions = writable ? Permissions::writer() : Permissions::reader();
  return open_node(std::move(request));
}

Task<Result<void>> fill_seed() {
  auto edge = co_await open(true);
  PLATTER_CO_TRY(edge);
  BlockNode& node = **edge;
  SnapshotAbility& snapshots = *node.driver().snapshots();
  auto data = bytes_of(kLieSize, 1);
  auto done = co_await node.write(0, IoVec(std::span(data)).first(kLieSize / 2));
  if (done) done = co_await snapshots.create("s", 1, 2);
  // The active disk has tables and data of its own then.
  if (done) done = co_await node.write(0, IoVec(std::span(data)).first(512));
  if (done)
    done = co_await node.write(kLieSize / 2,
                               IoVec(std::span(data)).from(kLieSize / 2).first(kLieSize / 8));
  if (done) done = co_await node.driver().bitmaps()->add("b", 512, true);
  if (done) done = co_await node.write_zeroes(kLieSize * 3 / 4, 8192, ZeroFlags{});
  const std::vector<std::byte> text(kLieSize / 8, std::byte{'x'});
  const IoVec whole = IoVec::of_const(text);
  const WriteFlags packed{.compressed = true};
  if (done) done = co_await node.write(kLieSize * 7 / 8, whole, packed);
  auto closed = co_await edge->detach();
  PLATTER_CO_TRY(done);
  co_return closed;
}

// The whole disk; pieces that cannot be read are left out of `readable`.
Task<Result<std::vector<std::byte>>> read_disk(std::vector<bool>& readable) {
  auto edge = co_await open(false);
  PLATTER_CO_TRY(edge);
  std::vector<std::byte> disk(kLieSize);
  readable.assign(kLieSize / kPiece, false);
  for (std::uint64_t i = 0; i < kLieSize / kPiece; ++i) {
    const IoVec iov = IoVec(std::span(disk).subspan(i * kPiece, kPiece));
    auto read = co_await (*edge)->read(i * kPiece, iov);
    readable[i] = read.has_value();
  }
  auto closed = co_await edge->detach();
  PLATTER_CO_TRY(closed);
  co_return disk;
}

// The fields -------------------------------------------------------------------------------------

void add_header_fields(Seed& seed) {
  const auto add = [&](std::string name, std::uint64_t offset, unsigned width, std::string said) {
    seed.fields.push_back({std::move(name), offset, width, std::move(said), 0, kLieSize});
  };
  add("magic", 0, 4, "qcow2");
  add("version", 4, 4, "version|header_length");
  add("backing_file_offset", 8, 8, "[Bb]acking file (offset|name)|backing_file|extension");
  add("backing_file_size", 16, 4, "[Bb]acking file (offset|name)|backing_file|extension");
  add("cluster_bits", 20, 4,
      "[Cc]luster size|cluster_bits|offset invalid|L1 table|[Rr]ef|beyond|extension|subcluster");
  add("size", 24, 8, "L1 table|size");
  add("crypt_method", 32, 4, "encrypt|crypt_method");
  add("l1_size", 36, 4, "L1 table|l1_size");
  add("l1_table_offset", 40, 8, "L1 table");
  add("refcount_table_offset", 48, 8, "Reference count table|refcount");
  add("refcount_table_clusters", 56, 4, "[Rr]eference count table|refcount");
  add("nb_snapshots", 60, 4, "[Ss]napshot");
  add("snapshots_offset", 64, 8, "[Ss]napshot");
  add("incompatible_features", 72, 8, "feature|corrupt|compression|data.file|extended|L2|cluster");
  add("compatible_features", 80, 8, "feature");
  add("autoclear_features", 88, 8, "feature|raw");
  add("refcount_order", 96, 4, "refcount_order|[Rr]eference count entry");
  add("header_length", 100, 4, "header_length|[Hh]eader extension|feature|compression");
  add("compression_type", 104, 1, "compression");
}

// Each extension's type and length, the bitmaps extension's fields, the snapshot's and the
// bitmap's.
void add_table_fields(Seed& seed) {
  const std::vector<std::byte>& file = seed.file;
  const auto add = [&](std::string name, std::uint64_t offset, unsigned width, std::string said) {
    seed.fields.push_back({std::move(name), offset, width, std::move(said), 0, 0});
  };
  std::uint64_t bitmaps = 0;
  for (std::uint64_t e = at<std::uint32_t>(file, 100);;) {
    const auto type = at<std::uint32_t>(file, e);
    const auto length = at<std::uint32_t>(file, e + 4);
    add(fmt::format("extension {:#x} type", type), e, 4, "extension|[Bb]itmap|feature|backing|raw");
    add(fmt::format("extension {:#x} length", type), e + 4, 4, "extension|[Bb]itmap|feature");
    if (type == 0) break;
    if (type == 0x23852875) bitmaps = e + 8;
    e += 8 + (length + 7) / 8 * 8;
  }
  ASSERT_NE(bitmaps, 0u);
  add("nb_bitmaps", bitmaps, 4, "[Bb]itmap");
  add("bitmaps reserved", bitmaps + 4, 4, "[Bb]itmap");
  add("bitmap_directory_size", bitmaps + 8, 8, "[Bb]itmap");
  add("bitmap_directory_offset", bitmaps + 16, 8, "[Bb]itmap");
  const auto directory = at<std::uint64_t>(file, bitmaps + 16);
  add("bitmap_table_offset", directory, 8, "[Bb]itmap");
  add("bitmap_table_size", directory + 8, 4, "[Bb]itmap");
  add("bitmap flags", directory + 12, 4, "[Bb]itmap");
  add("bitmap type", directory + 16, 1, "[Bb]itmap");
  add("bitmap granularity_bits", directory + 17, 1, "[Bb]itmap");
  add("bitmap name_size", directory + 18, 2, "[Bb]itmap");
  add("bitmap extra_data_size", directory + 20, 4, "[Bb]itmap");
  add("bitmap name", directory + 24, 1, "[Bb]itmap");
  const auto bitmap_table = at<std::uint64_t>(file, directory);
  add("bitmap table entry", bitmap_table, 8, "[Bb]itmap");
  const auto table = at<std::uint64_t>(file, 64);
  add("snapshot l1_table_offset", table, 8, "[Ss]napshot");
  add("snapshot l1_size", table + 8, 4, "[Ss]napshot");
  add("snapshot id_str_size", table + 12, 2, "[Ss]napshot");
  add("snapshot name_size", table + 14, 2, "[Ss]napshot");
  add("snapshot vm_state_size", table + 32, 4, "[Ss]napshot");
  add("snapshot extra_data_size", table + 36, 4, "[Ss]napshot");
  add("snapshot 64-bit vm_state_size", table + 40, 8, "[Ss]napshot");
  add("snapshot disk_size", table + 48, 8, "[Ss]napshot");
  add("snapshot icount", table + 56, 8, "[Ss]napshot");
  const auto extra = at<std::uint32_t>(file, table + 36);
  add("snapshot id", table + 40 + extra, 1, "[Ss]napshot");
  const auto snapshot_l1 = at<std::uint64_t>(file, table);
  add("snapshot L1 entry", snapshot_l1, 8, "[Ss]napshot");
  const std::uint64_t l2 = at<std::uint64_t>(file, snapshot_l1) & kOffsetMask;
  add("snapshot L2 entry", l2, 8, "[Ss]napshot");
  seed.places.insert(seed.places.end(), {directory, bitmap_table, table, snapshot_l1, l2});
}

void add_map_fields(Seed& seed) {
  const std::vector<std::byte>& file = seed.file;
  const auto refcount_table = at<std::uint64_t>(file, 48);
  const auto block = at<std::uint64_t>(file, refcount_table);
  seed.fields.push_back({"refcount table entry", refcount_table, 8, "[Rr]efcount", 0, 0});
  seed.fields.push_back(
      {"unused refcount table entry", refcount_table + 8, 8, "[Rr]efcount", 0, 0});
  const auto l1 = at<std::uint64_t>(file, 40);
  seed.places.insert(seed.places.end(), {0, refcount_table, block, l1});
  const bool subclusters = (at<std::uint64_t>(file, 72) & incompatible::kExtendedL2) != 0;
  const std::uint64_t entry = subclusters ? 16 : 8;
  const std::uint64_t covered = seed.cluster_size / entry * seed.cluster_size;
  // Data, zeroes, packed data.
  for (const std::uint64_t from : {std::uint64_t{0}, kLieSize * 3 / 4, kLieSize * 7 / 8}) {
    const std::uint64_t i = from / covered;
    seed.fields.push_back({fmt::format("L1 entry {}", i), l1 + 8 * i, 8, "L1|L2", i * covered,
                           std::min(kLieSize, (i + 1) * covered)});
    const std::uint64_t l2 = at<std::uint64_t>(file, l1 + 8 * i) & kOffsetMask;
    ASSERT_NE(l2, 0u);
    const std::uint64_t place = l2 + entry * (from % covered / seed.cluster_size);
    const std::uint64_t to = from + seed.cluster_size;
    seed.fields.push_back({fmt::format("L2 entry of {:#x}", from), place, 8, "L2", from, to});
    if (subclusters) {
      const std::string name = fmt::format("subclusters of {:#x}", from);
      seed.fields.push_back({name, place + 8, 8, "L2|subcluster", from, to});
    }
    seed.places.push_back(l2);
    const std::uint64_t data = at<std::uint64_t>(file, place) & kOffsetMask;
    seed.places.push_back(data & ~(seed.cluster_size - 1));
  }
  std::sort(seed.places.begin(), seed.places.end());
  seed.places.erase(std::unique(seed.places.begin(), seed.places.end()), seed.places.end());
  for (const std::uint64_t place : seed.places) {
    const std::uint64_t at_block = block + 2 * (place / seed.cluster_size);
    if (at_block + 2 > block + seed.cluster_size) continue;
    seed.fields.push_back(
        {fmt::format("refcount of {:#x}", place), at_block, 2, "[Rr]efcount", 0, 0});
  }
}

// The lies ---------------------------------------------------------------------------------------

std::vector<std::uint64_t> lies(const Seed& seed, const Field& field) {
  const std::uint64_t truth = number(seed.file, field);
  const std::uint64_t ones =
      field.width == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << 8 * field.width) - 1;
  std::vector<std::uint64_t> values{0,         1,
                                    2,         3,
                                    7,         8,
                                    9,         15,
                                    31,        63,
                                    64,        255,
                                    ones,      ones - 1,
                                    ones >> 1, (ones >> 1) + 1,
                                    truth + 1, truth - 1,
                                    truth * 2, truth << 8,
                                    truth / 2, truth ^ 0x200};
  if (field.width >= 4) values.insert(values.end(), {1024, 1025, 65535, 65536, 65537, 0x7ffffff8});
  if (field.width == 8) {
    for (const std::uint64_t place : seed.places) {
      for (const std::uint64_t bits : {std::uint64_t{0}, kCopied, kCompressedBit, std::uint64_t{1}})
        values.push_back(place | bits);
    }
    const std::uint64_t end = seed.file.size();
    for (const std::uint64_t far : {end, end * 2, std::uint64_t{1} << 40, std::uint64_t{1} << 55,
                                    ~std::uint64_t{0} << 16, ~std::uint64_t{0} << 9}) {
      values.insert(values.end(), {far, far | kCopied});
    }
  }
  for (std::uint64_t& value : values) value &= ones;
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  std::erase(values, truth);
  return values;
}

// What users do ----------------------------------------------------------------------------------

// Requests and operations, each of which may be refused.
Task<void> use_it() {
  auto edge = co_await open(true);
  if (!edge) co_return;
  BlockNode& node = **edge;
  std::vector<std::byte> data(8192, std::byte{0x5a});
  const std::uint64_t size = std::min<std::uint64_t>(node.size(), kLieSize);
  const std::uint64_t step = size / 5 / 512 * 512;
  for (std::uint64_t offset = 0; step != 0 && offset + data.size() <= size; offset += step) {
    auto written = co_await node.write(offset + 512, IoVec(std::span(data)).first(4096));
    auto zeroed = co_await node.write_zeroes(offset, 4096, ZeroFlags{.may_unmap = true});
    auto discarded = co_await node.discard(offset + 4096, 4096);
    static_cast<void>(written && zeroed && discarded);
  }
  auto flushed = co_await node.flush();
  static_cast<void>(flushed);
  if (SnapshotAbility* const snapshots = node.driver().snapshots()) {
    auto made = co_await snapshots->create("new", 1, 2);
    auto removed = co_await snapshots->remove("s");
    auto applied = co_await snapshots->apply("new");
    static_cast<void>(made && removed && applied);
  }
  ResizeRequest resize{.size = size + 65536};
  if (node.size() <= kLieSize) {
    auto resized = co_await node.resize(resize);
    static_cast<void>(resized);
  }
  if (BitmapAbility* const bitmaps = node.driver().bitmaps()) {
    auto contents = co_await bitmaps->contents("b");
    auto cleared = co_await bitmaps->clear("b");
    auto removed = co_await bitmaps->remove("b");
    static_cast<void>(contents && cleared && removed);
  }
  auto closed = co_await edge->detach();
  static_cast<void>(closed);
}

struct Repair {
  bool done = false;
  std::uint64_t corruptions_left = 0;
  std::uint64_t errors = 0;
  std::string lines;
};

Task<Repair> check(bool fix) {
  Repair repair;
  auto edge = co_await open(fix);
  if (!edge) co_return repair;
  CheckRequest request{.fix_leaks = fix, .fix_errors = fix, .report = {}};
  request.report = [&repair](std::string_view line) {
    if (repair.lines.size() < 10000) repair.lines += std::string(line) + "\n";
  };
  auto checked = co_await (*edge)->driver().checker()->check(request);
  auto closed = co_await edge->detach();
  if (!checked || !closed) co_return repair;
  repair.done = true;
  repair.corruptions_left = checked->corruptions;
  repair.errors = checked->check_errors;
  co_return repair;
}

class C20 : public Hostile {
 protected:
  void SetUp() override {}

  Seed make_seed(std::string_view options) {
    Seed seed;
    use(options, kLieSize);
    EXPECT_OK(run([] { return fill_seed(); }));
    seed.cluster_size = header_.cluster_size();
    seed.file.resize(disk_->size());
    disk_->read(0, IoVec(std::span(seed.file)));
    std::vector<bool> readable;
    auto disk = run([&] { return read_disk(readable); });
    EXPECT_OK(disk);
    seed.disk = std::move(*disk);
    add_header_fields(seed);
    add_table_fields(seed);
    add_map_fields(seed);
    return seed;
  }

  void load(const std::vector<std::byte>& file) {
    remove_memory_disk("hostile");
    disk_ = make_memory_disk("hostile", 0);
    put(0, file);
  }

  void repair_keeps_data(const Seed& seed, const Field& field) {
    const Repair repair = run([] { return check(true); });
    if (!repair.done || repair.errors != 0 || repair.corruptions_left != 0) return;
    const Repair again = run([] { return check(false); });
    if (!again.done || again.corruptions_left != 0)
      return problem("repaired:\n" + repair.lines + "then:\n" + again.lines);
    std::vector<bool> readable;
    auto disk = run([&] { return read_disk(readable); });
    if (!disk) return problem(disk.error().message());
    for (std::uint64_t p = 0; p < kLieSize; p += kPiece) {
      if (p < field.last && p + kPiece > field.first) continue;
      const auto piece = static_cast<std::ptrdiff_t>(p);
      const bool same =
          readable[p / kPiece] && std::equal(disk->begin() + piece, disk->begin() + piece + kPiece,
                                             seed.disk.begin() + piece);
      if (!same)
        return problem(fmt::format("data at {:#x} is lost; repaired:\n{}", p, repair.lines));
    }
  }

  // One that is told for each field is enough.
  void problem(const std::string& what) {
    if (++problems_ == 1) ADD_FAILURE() << what;
  }

  unsigned problems_ = 0;  // of this field

  void try_all(std::string_view options) {
    const Seed seed = make_seed(options);
    ASSERT_FALSE(HasFailure());
    unsigned count = 0;
    unsigned tried = 0;
    for (const Field& field : seed.fields) {
      problems_ = 0;
      for (const std::uint64_t lie : lies(seed, field)) {
        if (++count % kOneIn != 0) continue;
        SCOPED_TRACE(fmt::format("{} ({} bytes at {:#x}): {:#x} instead of {:#x}", field.name,
                                 field.width, field.offset, lie, number(seed.file, field)));
        std::vector<std::byte> file = seed.file;
        put_number(file, field, lie);
        load(file);
        const std::string said = outcome();
        if (said.starts_with("open: ") && !std::regex_search(said, std::regex(field.said)))
          problem(said);
        load(file);
        const double start = cpu_seconds();
        repair_keeps_data(seed, field);
        load(file);
        run([] { return use_it(); });
        EXPECT_LT(cpu_seconds() - start, kSeconds);
        ++tried;
      }
    }
    std::cout << fmt::format("{} lies about {} fields\n", tried, seed.fields.size());
    EXPECT_GT(tried, 2000u / kOneIn);
  }
};

TEST_F(C20, OfTheSmallestClusters) { try_all("cluster_size=512"); }
TEST_F(C20, OfLargerClusters) { try_all("cluster_size=4096,refcount_bits=16"); }
TEST_F(C20, OfSubclusters) { try_all("cluster_size=16384,extended_l2=on"); }

}  // namespace
}  // namespace platter::qcow2

// Fuzzes what reads a qcow2 image: the parsers on raw bytes, and the whole driver on a small valid
// image with some of its bytes changed. The first byte of the input chooses.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "block/adapters/memory.h"
#include "block/base/bytes.h"
#include "block/exec/executor.h"
#include "block/node/dirty_bitmap.h"
#include "block/node/graph.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/codec.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/storage_io.h"
#include "fuzz/require.h"

namespace platter::qcow2 {
namespace {

Executor& executor() {
  static const std::unique_ptr<Executor> one = std::move(*Executor::create());
  return *one;
}

void fuzz_header(std::span<const std::byte> input) {
  std::vector<std::byte> cluster(input.begin(), input.end());
  auto parsed = parse_header(cluster, std::uint64_t{1} << 40);
  if (!parsed) return;
  require(parsed->cluster_bits >= kMinClusterBits && parsed->cluster_bits <= kMaxClusterBits,
          "cluster_bits are bounded");
  require(parsed->l1_table_bytes() <= kMaxL1Bytes, "the L1 table is bounded");
  auto encoded = encode_header(*parsed);
  if (!encoded) return;  // a version 3 header grows by the fields that it lacked
  parsed->extensions.stale_bitmaps = false;  // which writing it has removed
  auto again = parse_header(*encoded, std::uint64_t{1} << 40);
  require(again && *again == *parsed, "a header that was written reads back the same");
}

void fuzz_tables(std::span<const std::byte> input) {
  SnapshotTableParser parser(65536, 3);
  auto used = parser.feed(input, true);
  if (used) require(*used <= input.size(), "a parser stays within its input");
  Header header;
  header.size = 1 << 30;
  static_cast<void>(parse_bitmap_directory(input, {3, input.size(), 0x10000}, header));
  Reader in(input);
  Geometry g;
  for (unsigned i = 0; in.remaining() >= 16; ++i) {
    g.cluster_bits = 9 + i % 13;
    g.extended_l2 = g.cluster_bits >= 14 && i % 2 != 0;
    g.external_data = i % 3 == 0;
    const auto entry = in.be<std::uint64_t>();
    const ClusterState state = classify(g, entry, in.be<std::uint64_t>());
    if (const auto* data = std::get_if<DataCluster>(&state)) {
      require(g.in_cluster(data->host) == 0 && data->host < kMaxHostOffset, "data is aligned");
    }
    if (const auto* packed = std::get_if<CompressedCluster>(&state)) {
      require(packed->length <= g.max_packed_bytes() && packed->host < kMaxHostOffset,
              "packed bytes are bounded");
    }
  }
}

void fuzz_codecs(std::span<const std::byte> input) {
  std::vector<std::byte> out(65536);
  static_cast<void>(inflate_cluster(CompressionType::kZlib, input, out));
  static_cast<void>(inflate_cluster(CompressionType::kZstd, input, out));
}

// An enabled bitmap with bits in two clusters, and one that is not enabled.
Task<Result<void>> add_bitmaps() {
  OpenRequest request;
  request.filename = "memory:seed";
  request.format = "qcow2";
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto edge = co_await open_node(std::move(request));
  PLATTER_CO_TRY(edge);
  BitmapAbility& bitmaps = *(*edge)->driver().bitmaps();
  auto done = co_await bitmaps.add("on", 512, true);
  if (done) done = co_await bitmaps.add("off", 4096, false);
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{200} << 10}) {
    if (done) done = co_await (*edge)->write_zeroes(offset, 512);
  }
  auto closed = co_await edge->detach();
  PLATTER_CO_TRY(done);
  co_return closed;
}

// What a user does with bitmaps; every step may be refused.
Task<void> change_bitmaps(BlockNode& node, std::uint64_t pattern) {
  BitmapAbility& bitmaps = *node.driver().bitmaps();
  const std::vector<BitmapInfo> list = bitmaps.list();
  for (std::size_t i = 0; i < list.size() && i < 4; ++i) {
    const std::string name = list[i].name;
    auto contents = co_await bitmaps.contents(name);
    if (contents) {
      require((*contents)->size() == node.size(), "a bitmap is as large as the disk");
      require((*contents)->count() <= (*contents)->bits(), "no bit lies behind the disk");
    }
    Result<void> done;
    switch (pattern >> (3 * i) & 7) {
      case 0:
        done = co_await bitmaps.remove(name);
        break;
      case 1:
        done = co_await bitmaps.clear(name);
        break;
      case 2:
        done = co_await bitmaps.set_enabled(name, !list[i].enabled);
        break;
      case 3:
        if (contents) done = co_await bitmaps.merge(list[0].name, *contents);
        break;
      case 4:
        done = co_await bitmaps.add(name + "'", 4096, true);
        break;
      case 5: {
        ResizeRequest resize{.size = node.size() / 1024 * 512};
        done = co_await node.resize(resize);
        break;
      }
      default:
        break;
    }
  }
}

// A valid image of 256 KiB with every kind of entry: what mutations start from.
const std::vector<std::byte>& seed_image(unsigned which) {
  static std::vector<std::byte> images[4];
  std::vector<std::byte>& bytes = images[which];
  if (!bytes.empty()) return bytes;
  const char* const options[4] = {
      "cluster_size=512",
      "cluster_size=4096,refcount_bits=1",
      "cluster_size=512,compat=0.10",
      "cluster_size=512,preallocation=metadata,compression_type=zstd",
  };
  remove_memory_disk("seed");
  make_memory_disk("seed", 0);
  const auto make = [&]() -> Task<Result<void>> {
    return create_image("qcow2", "memory:seed", 256 << 10, *Options::parse_keyval(options[which]));
  };
  require(executor().block_on(make).has_value(), "the seed image can be made");
  if (which != 2) require(executor().block_on(add_bitmaps).has_value(), "it can have bitmaps");
  const auto disk = find_memory_disk("seed");
  bytes.resize(disk->size());
  disk->read(0, IoVec(std::span(bytes)));
  return bytes;
}

Task<void> exercise(bool writable, std::uint64_t pattern) {
  OpenRequest request;
  request.filename = "memory:fuzz";
  request.format = "qcow2";
  request.flags.read_only = !writable;
  request.flags.no_backing = true;
  if (writable) request.permissions = Permissions::writer();
  auto edge = co_await open_node(std::move(request));
  if (!edge) co_return;
  BlockNode& node = **edge;
  std::vector<std::byte> data(8192);
  const std::uint64_t size = std::min<std::uint64_t>(node.size(), 1 << 20);
  for (std::uint64_t offset = 0; offset < size; offset += data.size()) {
    const IoVec iov(std::span(data).first(std::min<std::uint64_t>(data.size(), size - offset)));
    auto read = co_await node.read(offset, iov);
    static_cast<void>(read);
  }
  for (unsigned i = 0; writable && i < 8 && size > 4096; ++i) {
    const std::uint64_t offset = (pattern >> (8 * i) & 0xff) * (size - 4096) / 255;
    const IoVec iov(std::span(data).first(4096));
    if (i % 3 == 0) {
      auto zeroed =
          co_await node.write_zeroes(offset, 4096, ZeroFlags{.fua = false, .may_unmap = true});
      static_cast<void>(zeroed);
    } else if (i % 3 == 1) {
      auto written = co_await node.write(offset, iov);
      static_cast<void>(written);
    } else {
      auto discarded = co_await node.discard(offset, 4096);
      static_cast<void>(discarded);
    }
  }
  if (writable && node.size() != 0) {
    auto changing = change_bitmaps(node, pattern);
    co_await changing;
  }
  auto closed = co_await edge->detach();
  static_cast<void>(closed);
}

Task<void> check(BlockNode& file, const CheckRequest& request) {
  auto header = co_await read_header(file);
  if (!header) co_return;
  auto checked = co_await check_image(file, *header, request);
  static_cast<void>(checked);
}

// Input: the seed's number and what to do, then edits of 10 bytes: a place (in steps of 4 bytes
// from the start) and 8 bytes.
void fuzz_image(std::span<const std::byte> input) {
  Reader in(input);
  const auto choice = in.be<std::uint8_t>();
  const auto pattern = in.be<std::uint64_t>();
  std::vector<std::byte> bytes = seed_image(choice % 4);
  while (in.remaining() >= 10) {
    const std::size_t at = in.be<std::uint16_t>() * std::size_t{4} % bytes.size();
    const auto edit = in.bytes(8);
    std::copy_n(edit.begin(), std::min<std::size_t>(8, bytes.size() - at),
                bytes.begin() + static_cast<std::ptrdiff_t>(at));
  }
  const auto disk = make_memory_disk("fuzz", 0);
  disk->write(0, IoVec(std::span(bytes)));
  const CheckRequest request{
      .fix_leaks = (choice & 4) != 0, .fix_errors = (choice & 8) != 0, .report = {}};
  const NodePtr node = make_memory_node("fuzz", disk);
  executor().block_on([&] { return check(*node, request); });
  executor().block_on([&] { return exercise((choice & 16) != 0, pattern); });
}

}  // namespace
}  // namespace platter::qcow2

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace platter::qcow2;
  if (size == 0) return 0;
  const auto input = std::as_bytes(std::span(data + 1, size - 1));
  switch (data[0] % 5) {
    case 0:
      fuzz_header(input);
      break;
    case 1:
      fuzz_tables(input);
      break;
    case 2:
      fuzz_codecs(input);
      break;
    default:
      fuzz_image(input);
      break;
  }
  return 0;
}

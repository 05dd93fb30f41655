// Our check and QEMU's, on the same damaged images: same lines, same figures, same repairs.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "formats/qcow2/check.h"
#include "interop/peer.h"
#include "unit/qcow2/image_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using interop::Outcome;

struct Damage {
  const char* name;
  const char* options;
  const char* writes;  // qemu-io and qemu-img commands that fill the image, ';' between them
  // Bytes changed afterwards: offset and big-endian 64-bit value.
  std::vector<std::pair<std::uint64_t, std::uint64_t>> pokes;
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class CheckInterop : public interop::PeerTest, public ::testing::WithParamInterface<Damage> {
 protected:
  void poke_file(const std::string& file, std::uint64_t offset, std::uint64_t value) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    char bytes[8];
    store_be(bytes, value);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.write(bytes, 8);
  }

  Checked ours(const std::string& file, bool leaks, bool errors) {
    std::vector<std::string> lines;
    CheckRequest request{.fix_leaks = leaks, .fix_errors = errors, .report = {}};
    request.report = [&](std::string_view line) { lines.emplace_back(line); };
    auto result = run([&] { return check_file(file, request); });
    return {std::move(result), std::move(lines)};
  }

  static Task<Result<CheckResult>> check_file(std::string file, const CheckRequest& request) {
    OpenFlags flags;
    flags.read_only = !request.fix_errors && !request.fix_leaks;
    auto edge = co_await open_protocol(file, flags, "check");
    PLATTER_CO_TRY(edge);
    auto header = co_await read_header(**edge);
    Result<CheckResult> result = header ? Result<CheckResult>{} : forward_error(header);
    if (header) result = co_await check_image(**edge, *header, request);
    auto closed = co_await edge->detach();
    PLATTER_CO_TRY(closed);
    co_return result;
  }

  // The findings of qemu-img check, without its summary.
  std::vector<std::string> theirs(const std::string& arguments, const std::string& file) {
    const Outcome outcome = in_directory("qemu-img check " + arguments + " " + file + " 2>&1 >out");
    std::vector<std::string> lines;
    std::istringstream text(outcome.text);
    for (std::string line; std::getline(text, line);) {
      if (!line.empty() && !line.starts_with("qemu-img:")) lines.push_back(line);
    }
    return lines;
  }
};

TEST_P(CheckInterop, AgreesWithQemuImg) {
  const Damage& damage = GetParam();
  must(std::string("qemu-img create -q -f qcow2 -o ") + damage.options + " a.qcow2 16M");
  must(damage.writes);
  for (const auto& [offset, value] : damage.pokes) poke_file(path("a.qcow2"), offset, value);
  must("cp a.qcow2 b.qcow2; cp a.qcow2 c.qcow2; cp a.qcow2 d.qcow2");

  const Checked mine = ours(path("a.qcow2"), false, false);
  ASSERT_OK(mine.result);
  const auto json =
      nlohmann::json::parse(in_directory("qemu-img check --output=json a.qcow2 2>/dev/null").text);
  EXPECT_EQ(mine.lines, theirs("", "a.qcow2"));
  const auto figure = [&](const char* name) { return json.value(name, std::uint64_t{0}); };
  EXPECT_EQ(mine.result->corruptions, figure("corruptions"));
  EXPECT_EQ(mine.result->leaks, figure("leaks"));
  EXPECT_EQ(mine.result->check_errors, figure("check-errors"));
  EXPECT_EQ(mine.result->image_end_offset, figure("image-end-offset"));
  EXPECT_EQ(mine.result->total_clusters, figure("total-clusters"));
  EXPECT_EQ(mine.result->allocated_clusters, figure("allocated-clusters"));
  EXPECT_EQ(mine.result->fragmented_clusters, figure("fragmented-clusters"));
  EXPECT_EQ(mine.result->compressed_clusters, figure("compressed-clusters"));

  Checked leaks = ours(path("b.qcow2"), true, false);
  // qemu-img checks again after it has repaired something, as our tool does.
  if (leaks.result && leaks.result->leaks_fixed + leaks.result->corruptions_fixed != 0) {
    const Checked again = ours(path("b.qcow2"), false, false);
    leaks.lines.insert(leaks.lines.end(), again.lines.begin(), again.lines.end());
  }
  EXPECT_EQ(leaks.lines, theirs("-r leaks", "c.qcow2"));

  const Checked all = ours(path("d.qcow2"), true, true);
  ASSERT_OK(all.result);
  // QEMU leaves entries that lead nowhere. (A count that does not fit, nobody can mend.)
  if (std::string_view(damage.name) != "narrow_overflow") {
    EXPECT_EQ(all.result->corruptions, 0U) << all.text();
    EXPECT_EQ(ours(path("d.qcow2"), false, false).text(), "");
  }
  const Outcome after = in_directory("qemu-img check d.qcow2");
  EXPECT_EQ(after.status, all.result->corruptions != 0 ? 2
                          : all.result->leaks != 0     ? 3
                                                       : 0)
      << all.text() << "--- then qemu-img said\n"
      << after.text;
}

// Default images: header 0, refcount table 0x10000, refcount block 0x20000, L1 0x30000, first L2
// 0x40000, data from 0x50000.
const Damage kDamages[] = {
    {"clean", "cluster_size=64k", "qemu-io -c 'write 0 1M' a.qcow2", {}},
    {"empty", "cluster_size=64k", "true", {}},
    {"fragmented",
     "cluster_size=4k",
     "qemu-io -c 'write 64k 4k' -c 'write 32k 4k' -c 'write 60k 4k' -c 'write 0 8k' a.qcow2",
     {}},
    {"compressed",
     "cluster_size=64k",
     "qemu-io -c 'write -c -P 5 0 256k' -c 'write 1M 64k' -c 'write -z 2M 128k' a.qcow2",
     {}},
    {"zstd", "compression_type=zstd", "qemu-io -c 'write -c -P 5 0 256k' a.qcow2", {}},
    {"snapshots",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2; qemu-img snapshot -c one a.qcow2; qemu-io -c 'write 0 "
     "128k' a.qcow2; qemu-img snapshot -c two a.qcow2; qemu-io -c 'write 512k 128k' a.qcow2",
     {}},
    {"bitmaps",
     "cluster_size=64k",
     "qemu-img bitmap --add a.qcow2 one; qemu-img bitmap --add -g 64k a.qcow2 two; qemu-io -c "
     "'write 0 1M' a.qcow2",
     {}},
    {"extended_l2", "extended_l2=on", "qemu-io -c 'write 0 1M' -c 'write 3M 2k' a.qcow2", {}},
    {"data_file", "data_file=data.raw", "qemu-io -c 'write 0 1M' a.qcow2", {}},
    {"version2", "compat=0.10", "qemu-io -c 'write 0 1M' a.qcow2", {}},
    {"leak", "cluster_size=64k", "qemu-io -c 'write 0 1M' a.qcow2", {{0x40008, 0}}},
    {"refcounts_too_high",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x20008, 0x0001000200010003}}},
    {"refcounts_zero",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x20010, 0x0001000000010001}}},
    {"refcount_table_gone", "cluster_size=64k", "qemu-io -c 'write 0 1M' a.qcow2", {{0x10000, 0}}},
    {"refcount_block_unaligned",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x10008, 0x30200}}},
    {"refcount_block_reserved_bits",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x10008, 0x30001}}},
    {"refcount_block_is_l1",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x10008, 0x30000}}},
    {"copied_flags",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x30000, 0x40000}, {0x40010, 0x70000}}},
    {"data_twice",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0x8000000000050000}}},
    {"data_is_l2",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0x8000000000040000}}},
    {"data_beyond_end",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0x8000000010000000}}},
    {"data_unaligned",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0x8000000000060200}}},
    {"l2_reserved_bits",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0xa000000000060000}}},
    {"l1_reserved_bits",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x30000, 0x8000000000040001}}},
    {"l2_is_refcount_block",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x30000, 0x8000000000020000}}},
    {"compressed_copied",
     "cluster_size=64k",
     "qemu-io -c 'write -c -P 5 0 256k' a.qcow2",
     {{0x40008, 0xc000000000050000}}},
    {"compressed_outside",
     "cluster_size=64k",
     "qemu-io -c 'write -c -P 5 0 256k' a.qcow2",
     {{0x40008, 0x4000000010000000}}},
    {"data_in_l1",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0x8000000000030000}}},
    {"l1_outside",
     "cluster_size=64k",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x30000, 0x8000000010000000}}},
    {"narrow_overflow",
     "refcount_bits=1",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x40008, 0x8000000000050000}}},
    {"wide_refcounts",
     "refcount_bits=64",
     "qemu-io -c 'write 0 1M' a.qcow2",
     {{0x20028, 0x100000000}}},
};

INSTANTIATE_TEST_SUITE_P(Damages, CheckInterop, ::testing::ValuesIn(kDamages),
                         [](const auto& damage) { return std::string(damage.param.name); });

}  // namespace
}  // namespace platter::qcow2

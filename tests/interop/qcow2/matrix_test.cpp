// The matrix: versions x cluster sizes x refcount widths x compression x backing x subclusters x
// external data files x encryption, in both directions. What we write, qemu-img checks and reads
// back; what qemu-io writes, we check and read back, and go on writing. Contents are random; the
// seed is printed. Under sanitizers a third of the combinations, which the seed chooses.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>

#include "block/crypto/secret.h"
#include "block/node/graph.h"
#include "interop/peer.h"
#include "unit/qcow2/image_support.h"
#include "unit/sanitized.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using Bytes = std::vector<std::byte>;

constexpr const char* kSecret = "--object secret,id=s0,data=passphrase";

struct Combination {
  const char* version;
  unsigned cluster_bits;
  unsigned refcount_bits;
  const char* compression;
  const char* backing;  // format; empty: none
  bool extended_l2 = false;
  bool data_file = false;
  bool data_file_raw = false;
  const char* encryption = "";  // format; empty: none

  std::string options(const std::string& data_path) const {
    std::string text = fmt::format("compat={},cluster_size={},refcount_bits={},compression_type={}",
                                   version, 1u << cluster_bits, refcount_bits, compression);
    if (*backing) text += fmt::format(",backing_file=base.{0},backing_fmt={0}", backing);
    if (extended_l2) text += ",extended_l2=on";
    if (data_file) text += ",data_file=" + data_path;
    if (data_file_raw) text += ",data_file_raw=on";
    if (encrypted()) text += fmt::format(",encrypt.format={},encrypt.key-secret=s0", encryption);
    if (std::string_view(encryption) == "luks") text += ",encrypt.iter-time=10";
    return text;
  }
  bool encrypted() const { return *encryption != 0; }
  // How qemu-img and qemu-io are told what to open: options in front, and the name at the end.
  std::string flags() const {
    return encrypted() ? std::string(kSecret) + " --image-opts" : "-f qcow2";
  }
  std::string name(const std::string& file) const {
    return (encrypted() ? "driver=qcow2,encrypt.key-secret=s0,file.filename=" : "") + file;
  }
  // And how we are.
  OpenRequest request(const std::string& file) const {
    OpenRequest made;
    made.filename = file;
    made.format = "qcow2";
    if (encrypted()) made.options.set("encrypt.key-secret", "s0");
    return made;
  }
};

std::vector<Combination> combinations(unsigned cluster_bits) {
  std::vector<Combination> all;
  for (const char* backing : {"", "raw"}) {
    for (const char* encryption : {"luks", "aes"}) {
      all.push_back({.version = "0.10",
                     .cluster_bits = cluster_bits,
                     .refcount_bits = 16,
                     .compression = "zlib",
                     .backing = backing,
                     .encryption = encryption});
      all.push_back(all.back());
      all.back().version = "1.1";
      if (cluster_bits < 14) continue;
      all.push_back(all.back());
      all.back().extended_l2 = true;
      all.push_back(all.back());
      all.back().data_file = true;
    }
  }
  for (const char* backing : {"", "raw", "qcow2"}) {
    all.push_back({"0.10", cluster_bits, 16, "zlib", backing});
    for (const unsigned refcount_bits : {1u, 8u, 16u, 64u}) {
      for (const char* compression : {"zlib", "zstd"}) {
        all.push_back({"1.1", cluster_bits, refcount_bits, compression, backing});
        if (cluster_bits < 14) continue;
        all.push_back(all.back());
        all.back().extended_l2 = true;
      }
      for (const bool extended_l2 : {false, true}) {
        if (extended_l2 && cluster_bits < 14) continue;
        for (const bool raw : {false, true}) {
          if (raw && *backing) continue;
          all.push_back(
              {"1.1", cluster_bits, refcount_bits, "zlib", backing, extended_l2, true, raw});
        }
      }
    }
  }
  return all;
}

// One change of the disk, that either side can make.
struct Change {
  enum class Kind { kWrite, kPacked, kZero, kDiscard } kind;
  std::uint64_t offset;
  std::uint64_t length;
  unsigned pattern;
};

class Matrix : public interop::PeerTest, public ::testing::WithParamInterface<unsigned> {
 protected:
  void SetUp() override {
    PeerTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    crypto::remove_secret("s0");
    ASSERT_OK(crypto::add_secret("s0", crypto::SecretBytes::of(std::string_view("passphrase"))));
    const char* given = std::getenv("PLATTER_SEED");
    seed_ = given ? std::strtoul(given, nullptr, 10) : 20250601;
    random_.seed(seed_);
    cluster_ = std::uint64_t{1} << GetParam();
    size_ = std::max<std::uint64_t>(1 << 20, 3 * cluster_) + 7 * 512;
    Bytes base(size_ * 2 / 3 / 512 * 512);
    for (std::byte& b : base) b = static_cast<std::byte>(random_());
    std::ofstream out(path("base.raw"), std::ios::binary);
    // The memory is bytes whichever type looks at it.
    out.write(reinterpret_cast<const char*>(base.data()),
              static_cast<std::streamsize>(base.size()));
    out.close();
    base.resize(size_);
    base_ = std::move(base);
    must("qemu-img convert -O qcow2 base.raw base.qcow2");
  }

  std::vector<Combination> chosen() {
    const std::vector<Combination> all = combinations(GetParam());
    if (!platter::testing::kSanitized) return all;
    std::vector<Combination> some;
    for (std::size_t i = seed_ % 3; i < all.size(); i += 3) some.push_back(all[i]);
    std::printf("%zu combinations, of which the sanitizer watches %zu\n", all.size(), some.size());
    return some;
  }

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }

  std::vector<Change> changes(unsigned count, const Combination& combination) {
    std::vector<Change> all;
    for (unsigned i = 0; i < count; ++i) {
      Change c{};
      c.kind = static_cast<Change::Kind>(below(4));
      // Data files and encrypted images hold none.
      if ((combination.data_file || combination.encrypted()) && c.kind == Change::Kind::kPacked)
        c.kind = Change::Kind::kWrite;
      c.pattern = static_cast<unsigned>(1 + below(255));
      if (c.kind == Change::Kind::kPacked) {
        c.offset = below(size_ / cluster_) * cluster_;
        c.length = cluster_;
      } else {
        c.offset = below(size_ / 512) * 512;
        c.length = std::min((1 + below(std::min<std::uint64_t>(cluster_ * 3, 1 << 20) / 512)) * 512,
                            size_ - c.offset);
      }
      all.push_back(c);
    }
    return all;
  }

  // The same, as QEMU 7.2 can make them without damage: packed clusters first, each once. It
  // refuses to replace others by packed ones, and a packed write after packed data was freed can
  // land in a cluster that has become somebody else's (seen here: packed write, overwrite, packed
  // write).
  std::vector<Change> changes_for_qemu(unsigned count, const Combination& combination) {
    std::vector<Change> all = changes(count, combination);
    const auto packed = [](const Change& c) { return c.kind == Change::Kind::kPacked; };
    const auto rest = std::stable_partition(all.begin(), all.end(), packed);
    std::sort(all.begin(), rest,
              [](const Change& a, const Change& b) { return a.offset < b.offset; });
    const auto same = [](const Change& a, const Change& b) { return a.offset == b.offset; };
    all.erase(std::unique(all.begin(), rest, same), rest);
    return all;
  }

  void apply(const Change& c, Bytes& model) {
    if (c.kind == Change::Kind::kDiscard) return;  // reads as before or as zeroes: asked afterwards
    std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(c.offset), c.length,
                c.kind == Change::Kind::kZero ? std::byte{0} : static_cast<std::byte>(c.pattern));
  }

  // Takes over what discarded ranges read as, which must be zeroes or what was there.
  static void settle(const std::vector<Change>& all, const Bytes& now, Bytes& model) {
    for (const Change& c : all) {
      if (c.kind != Change::Kind::kDiscard) continue;
      for (std::uint64_t i = c.offset; i < c.offset + c.length; ++i) {
        if (now[i] == std::byte{0}) model[i] = now[i];
      }
    }
  }

  static Task<Result<void>> change_ours(OpenRequest request, const std::vector<Change>& all) {
    request.flags.read_only = false;
    request.flags.discard_unmap = true;
    request.permissions = Permissions::writer();
    auto edge = co_await open_node(std::move(request));
    PLATTER_CO_TRY(edge);
    BlockNode& node = **edge;
    Result<void> done;
    for (const Change& c : all) {
      Bytes data(c.length, static_cast<std::byte>(c.pattern));
      const IoVec iov = IoVec::of_const(data);
      WriteFlags flags;
      flags.compressed = c.kind == Change::Kind::kPacked;
      switch (c.kind) {
        case Change::Kind::kZero:
          done = co_await node.write_zeroes(c.offset, c.length);
          break;
        case Change::Kind::kDiscard:
          done = co_await node.discard(c.offset, c.length);
          break;
        default:
          done = co_await node.write(c.offset, iov, flags);
      }
      if (!done) break;
    }
    auto closed = co_await edge->detach();
    PLATTER_CO_TRY(done);
    co_return closed;
  }

  static Task<Result<Bytes>> read_ours(OpenRequest request) {
    auto edge = co_await open_node(std::move(request));
    PLATTER_CO_TRY(edge);
    Bytes bytes((*edge)->size());
    const IoVec iov{std::span(bytes)};
    auto read = co_await (*edge)->read(0, iov);
    std::string findings;
    CheckRequest findings_request;
    findings_request.report = [&findings](std::string_view line) {
      findings.append(line).append("; ");
    };
    auto checked = co_await (*edge)->driver().checker()->check(findings_request);
    auto closed = co_await edge->detach();
    PLATTER_CO_TRY(read);
    PLATTER_CO_TRY(closed);
    PLATTER_CO_TRY(checked);
    if (checked->corruptions + checked->leaks + checked->check_errors != 0) {
      co_return fail(EIO, "our check found {} errors and {} leaks: {}", checked->corruptions,
                     checked->leaks, findings);
    }
    co_return bytes;
  }

  void change_theirs(const Combination& combination, const std::string& file,
                     const std::vector<Change>& all) {
    std::string command = "qemu-io -d unmap " + combination.flags();
    for (const Change& c : all) {
      switch (c.kind) {
        case Change::Kind::kWrite:
          command += fmt::format(" -c 'write -q -P {} {} {}'", c.pattern, c.offset, c.length);
          break;
        case Change::Kind::kPacked:
          command += fmt::format(" -c 'write -q -c -P {} {} {}'", c.pattern, c.offset, c.length);
          break;
        case Change::Kind::kZero:
          command += fmt::format(" -c 'write -q -z {} {}'", c.offset, c.length);
          break;
        case Change::Kind::kDiscard:
          command += fmt::format(" -c 'discard -q {} {}'", c.offset, c.length);
      }
    }
    must(command + " " + combination.name(file));
  }

  // As QEMU sees it: clean, and these bytes.
  Bytes read_theirs(const Combination& c, const std::string& file) {
    const interop::Outcome checked =
        in_directory(fmt::format("qemu-img check -q {} {}", c.flags(), c.name(file)));
    EXPECT_EQ(checked.status, 0) << checked.text;
    must(fmt::format("qemu-img convert {} -O raw {} out.raw", c.flags(), c.name(file)));
    std::ifstream in(path("out.raw"), std::ios::binary);
    Bytes bytes(size_);
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    EXPECT_EQ(static_cast<std::uint64_t>(in.gcount()), size_);
    return bytes;
  }

  // A raw data file holds what the disk does.
  void compare_raw(const Combination& c, const Bytes& disk) {
    if (!c.data_file_raw) return;
    std::ifstream in(path("data"), std::ios::binary);
    Bytes bytes(size_);
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    EXPECT_EQ(static_cast<std::uint64_t>(in.gcount()), size_);
    compare(bytes, disk, "the raw data file");
  }

  Bytes fresh_model(const Combination& c) { return *c.backing ? base_ : Bytes(size_); }

  void compare(const Bytes& got, const Bytes& wanted, const char* what) {
    if (got == wanted) return;
    const auto at = std::mismatch(got.begin(), got.end(), wanted.begin(), wanted.end()).first;
    ADD_FAILURE() << what << " differs first at byte " << at - got.begin();
  }

  unsigned long seed_ = 0;
  std::mt19937_64 random_;
  std::uint64_t cluster_ = 0;
  std::uint64_t size_ = 0;
  Bytes base_;
};

TEST_P(Matrix, WhatWeWriteTheyRead) {
  unsigned ran = 0;
  for (const Combination& c : chosen()) {
    SCOPED_TRACE(fmt::format("PLATTER_SEED={} {}", seed_, c.options("data")));
    const std::string file = path("ours.qcow2");
    auto made = run([&] {
      return create_image("qcow2", file, size_, *Options::parse_keyval(c.options(path("data"))));
    });
    ASSERT_OK(made);
    Bytes model = fresh_model(c);
    const std::vector<Change> all = changes(16, c);
    ASSERT_OK(run([&] { return change_ours(c.request(file), all); }));
    for (const Change& change : all) apply(change, model);
    const Bytes theirs = read_theirs(c, "ours.qcow2");
    settle(all, theirs, model);
    compare(theirs, model, "what qemu-img reads");
    compare_raw(c, theirs);
    if (HasFailure()) return;
    ++ran;
  }
  std::printf("%u combinations written by us, read by qemu-img (seed %lu)\n", ran, seed_);
}

TEST_P(Matrix, WhatTheyWriteWeReadAndChange) {
  unsigned ran = 0;
  for (const Combination& c : chosen()) {
    SCOPED_TRACE(fmt::format("PLATTER_SEED={} {}", seed_, c.options("data")));
    const std::string file = path("theirs.qcow2");
    // QEMU cannot always measure so little time: then again.
    const std::string create =
        fmt::format("qemu-img create -q {} -f qcow2 -o {} theirs.qcow2 {}",
                    c.encrypted() ? kSecret : "", c.options(path("data")), size_);
    must(c.encrypted() ? fmt::format("for i in $(seq 100); do {} && break; done", create) : create);
    Bytes model = fresh_model(c);
    std::vector<Change> all = changes_for_qemu(16, c);
    change_theirs(c, "theirs.qcow2", all);
    for (const Change& change : all) apply(change, model);
    auto ours = run([&] { return read_ours(c.request(file)); });
    ASSERT_OK(ours);
    settle(all, *ours, model);
    compare(*ours, model, "what we read");
    if (HasFailure()) return;

    all = changes(8, c);
    ASSERT_OK(run([&] { return change_ours(c.request(file), all); }));
    for (const Change& change : all) apply(change, model);
    const Bytes theirs = read_theirs(c, "theirs.qcow2");
    settle(all, theirs, model);
    compare(theirs, model, "what qemu-img reads after our changes");
    if (HasFailure()) return;
    ++ran;
  }
  std::printf("%u combinations written by qemu-io, read and changed by us (seed %lu)\n", ran,
              seed_);
}

INSTANTIATE_TEST_SUITE_P(ClusterSizes, Matrix, ::testing::Values(9u, 12u, 16u, 21u),
                         [](const auto& bits) {
                           return fmt::format("{}_bytes", 1u << bits.param);
                         });

}  // namespace
}  // namespace platter::qcow2

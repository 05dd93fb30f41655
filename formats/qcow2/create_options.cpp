// The options of `create`: their table, their checks, and the plan of the new image.
#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "block/base/checked.h"
#include "formats/qcow2/create.h"

namespace platter::qcow2 {

namespace {

using Type = CreateOption::Type;

constexpr std::array<CreateOption, 21> kCreateOptions{{
    {"backing_file", Type::kString, "File name of a base image"},
    {"backing_fmt", Type::kString, "Image format of the base image"},
    {"cluster_size", Type::kSize, "qcow2 cluster size", "65536"},
    {"compat", Type::kString, "Compatibility level (v2 [0.10] or v3 [1.1])"},
    {"compression_type", Type::kString, "Compression method used for image cluster compression",
     "zlib"},
    {"data_file", Type::kString, "File name of an external data file"},
    {"data_file_raw", Type::kBool, "The external data file must stay valid as a raw image"},
    {"encrypt.cipher-alg", Type::kString, "Name of encryption cipher algorithm"},
    {"encrypt.cipher-mode", Type::kString, "Name of encryption cipher mode"},
    {"encrypt.format", Type::kString, "Encrypt the image, format choices: 'aes', 'luks'"},
    {"encrypt.hash-alg", Type::kString, "Name of encryption hash algorithm"},
    {"encrypt.iter-time", Type::kNumber, "Time to spend in PBKDF in milliseconds"},
    {"encrypt.ivgen-alg", Type::kString, "Name of IV generator algorithm"},
    {"encrypt.ivgen-hash-alg", Type::kString, "Name of IV generator hash algorithm"},
    {"encrypt.key-secret", Type::kString, "ID of secret providing qcow AES key or LUKS passphrase"},
    {"encryption", Type::kBool,
     "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"},
    {"extended_l2", Type::kBool, "Extended L2 tables", "off"},
    {"lazy_refcounts", Type::kBool, "Postpone refcount updates", "off"},
    {"preallocation", Type::kString,
     "Preallocation mode (allowed values: off, metadata, falloc, full)"},
    {"refcount_bits", Type::kNumber, "Width of a reference count entry in bits", "16"},
    {"size", Type::kSize, "Virtual disk size"},
}};

// QEMU's words for what only version 3 can do.
std::unexpected<Error> needs_v3(std::string_view what) {
  return fail(
      EINVAL,
      "{} only supported with compatibility level 1.1 and above (use version=v3 or greater)", what);
}

Result<std::uint32_t> take_version(Options& options) {
  const std::optional<std::string> compat = options.take_string("compat");
  if (!compat || *compat == "1.1" || *compat == "v3") return 3u;
  if (*compat == "0.10" || *compat == "v2") return 2u;
  return fail(EINVAL, "Parameter 'version' does not accept value '{}'", *compat);
}

Result<void> take_cluster_size(Options& options, bool extended_l2, Header& header) {
  auto given = options.take_size("cluster_size");
  PLATTER_TRY(given);
  const std::uint64_t size = given->value_or(65536);
  if (!is_power_of_two(size) || size < (1u << kMinClusterBits) || size > (1u << kMaxClusterBits)) {
    return fail(EINVAL, "Cluster size must be a power of two between 512 and 2048k");
  }
  if (extended_l2) {
    if (header.version < 3) return needs_v3("Extended L2 entries are");
    if (size < (1u << kMinExtendedL2ClusterBits)) {
      return fail(EINVAL,
                  "Extended L2 entries are only supported with cluster sizes of at least {} bytes",
                  1u << kMinExtendedL2ClusterBits);
    }
  }
  header.cluster_bits = static_cast<unsigned>(std::countr_zero(size));
  return {};
}

Result<void> take_refcount_bits(Options& options, Header& header) {
  auto given = options.take_number("refcount_bits");
  PLATTER_TRY(given);
  const std::uint64_t bits = given->value_or(16);
  if (bits > 64 || !is_power_of_two(bits)) {
    return fail(EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (header.version < 3 && bits != 16) {
    return fail(EINVAL,
                "Different refcount widths than 16 bits require compatibility level 1.1 or above "
                "(use version=v3 or greater)");
  }
  header.refcount_order = static_cast<unsigned>(std::countr_zero(bits));
  return {};
}

Result<void> take_compression_type(Options& options, Header& header) {
  const std::optional<std::string> type = options.take_string("compression_type");
  if (!type || *type == "zlib") return {};
  if (*type != "zstd") {
    return fail(EINVAL, "Parameter 'compression-type' does not accept value '{}'", *type);
  }
  if (header.version < 3) return needs_v3("Non-zlib compression type is");
  header.compression_type = CompressionType::kZstd;
  header.incompatible_features |= incompatible::kCompressionType;
  return {};
}

Result<void> take_backing(Options& options, bool data_file_raw, Preallocation preallocation,
                          Header& header) {
  header.backing_file = options.take_string("backing_file").value_or("");
  header.extensions.backing_format = options.take_string("backing_fmt");
  if (header.extensions.backing_format && header.extensions.backing_format->empty()) {
    header.extensions.backing_format.reset();
  }
  if (header.backing_file.empty()) {
    if (header.extensions.backing_format) {
      return fail(EINVAL, "Backing format cannot be used without backing file");
    }
    return {};
  }
  if (data_file_raw) {
    return fail(EINVAL, "Backing file and data-file-raw cannot be used at the same time");
  }
  if (preallocation != Preallocation::kOff && !header.extended_l2()) {
    return fail(EINVAL,
                "Backing file and preallocation can only be used at the same time if extended_l2 "
                "is on");
  }
  if (header.backing_file.size() > kMaxBackingNameBytes) {
    return fail(EINVAL, "Backing file name too long: {} bytes, at most {}",
                header.backing_file.size(), kMaxBackingNameBytes);
  }
  return {};
}

// Where the data of preallocated clusters would be read as it lies in the file: as what decrypting
// zeroes gives. Clusters with the zero flag are not.
Result<void> check_encrypted_preallocation(const CreatePlan& plan) {
  if (plan.encryption.method == CryptMethod::kNone || plan.header.version >= 3 ||
      plan.preallocation == Preallocation::kOff) {
    return {};
  }
  return needs_v3("Preallocation of encrypted images is");
}

Result<void> take_data_file(Options& options, CreatePlan& plan) {
  Header& header = plan.header;
  auto name = options.take_string("data_file");
  auto raw = options.take_bool("data_file_raw");
  PLATTER_TRY(raw);
  if (!name) {
    if (raw->value_or(false)) return fail(EINVAL, "data-file-raw requires data-file");
    return {};
  }
  if (header.version < 3) return needs_v3("External data files are");
  if (name->empty()) return fail(EINVAL, "The name of the external data file is empty");
  header.incompatible_features |= incompatible::kDataFile;
  header.extensions.data_file = std::move(*name);
  plan.data_preallocation = plan.preallocation;
  if (raw->value_or(false)) {
    header.autoclear_features |= autoclear::kDataFileRaw;
    // Every cluster is where a reader of the raw file looks for it.
    if (plan.preallocation == Preallocation::kOff) plan.preallocation = Preallocation::kMetadata;
  }
  return {};
}

// Gives every table its place: header, refcount table, refcount blocks, L1, L2 tables, data.
Result<void> lay_out(CreatePlan& plan) {
  Header& header = plan.header;
  const Geometry g = header.geometry();
  const std::uint64_t l1_entries = g.l1_entries_for(header.size);
  if (l1_entries > kMaxL1Bytes / 8) {
    return fail(EFBIG,
                "The image size is too large for file format 'qcow2' (try using a larger cluster "
                "size)");
  }
  header.l1_size = static_cast<std::uint32_t>(l1_entries);
  const std::uint64_t l1_clusters = g.clusters_for(l1_entries * 8);
  if (plan.preallocation != Preallocation::kOff) {
    plan.l2_tables = l1_entries;
    plan.data_clusters = g.clusters_for(header.size);
  }
  // Those of an external data file lie there, each where the guest has it.
  const std::uint64_t inside = header.has_data_file() ? 0 : plan.data_clusters;
  const std::uint64_t crypto_bytes = plan.encryption.header_bytes();
  const std::uint64_t others =
      1 + l1_clusters + g.clusters_for(crypto_bytes) + plan.l2_tables + inside;
  const RefcountClusters refcounts = refcount_clusters_for(g, others);
  if (refcounts.table > kMaxRefTableBytes >> g.cluster_bits) {
    return fail(EFBIG,
                "The image size is too large for file format 'qcow2' (try using a larger cluster "
                "size)");
  }
  plan.clusters = others + refcounts.table + refcounts.blocks;
  if (plan.clusters > kMaxHostOffset >> g.cluster_bits) {
    return fail(EFBIG, "The image would exceed {} bytes, which an L2 entry cannot point at",
                kMaxHostOffset);
  }
  std::uint64_t at = g.cluster_size();
  const auto take = [&](std::uint64_t clusters) {
    const std::uint64_t offset = at;
    at += clusters << g.cluster_bits;
    return offset;
  };
  header.refcount_table_clusters = static_cast<std::uint32_t>(refcounts.table);
  header.refcount_table_offset = take(refcounts.table);
  plan.refcount_blocks = refcounts.blocks;
  plan.refcount_blocks_offset = take(refcounts.blocks);
  if (crypto_bytes != 0) {
    const EncryptionPointer place{take(g.clusters_for(crypto_bytes)), crypto_bytes};
    header.extensions.encryption = place;
  }
  header.l1_table_offset = take(l1_clusters);
  plan.l2_tables_offset = take(plan.l2_tables);
  plan.data_offset = header.has_data_file() ? 0 : take(plan.data_clusters);
  if (l1_entries == 0) header.l1_table_offset = 0;
  // As QEMU leaves it: the file ends with the last L1 entry.
  plan.file_size = plan.preallocation == Preallocation::kOff && l1_entries != 0
                       ? header.l1_table_offset + l1_entries * 8
                       : at;
  return {};
}

}  // namespace

std::span<const CreateOption> create_options() { return kCreateOptions; }

RefcountClusters refcount_clusters_for(const Geometry& geometry, std::uint64_t clusters) {
  RefcountClusters r;
  for (;;) {
    const std::uint64_t blocks =
        div_round_up(clusters + r.table + r.blocks, geometry.refblock_entries());
    const std::uint64_t table = div_round_up(blocks, geometry.reftable_entries_per_cluster());
    if (blocks == r.blocks && table == r.table) return r;
    r = {table, blocks};
  }
}

std::uint64_t fully_allocated_size(const Geometry& geometry, std::uint64_t size) {
  const std::uint64_t data = geometry.clusters_for(size);
  const std::uint64_t l2_tables = div_round_up(data, geometry.l2_entries());
  const std::uint64_t l1_clusters = geometry.clusters_for(l2_tables * 8);
  const std::uint64_t others = 1 + data + l2_tables + l1_clusters;
  const RefcountClusters refcounts = refcount_clusters_for(geometry, others);
  return (others + refcounts.table + refcounts.blocks) << geometry.cluster_bits;
}

Result<CreatePlan> plan_create(Options& options, std::uint64_t size) {
  CreatePlan plan;
  Header& header = plan.header;
  // The graph's caller has taken the size from here or from beside; both say the same.
  auto size_option = options.take_size("size");
  PLATTER_TRY(size_option);
  header.size = align_up(std::min(size, ~std::uint64_t{0} - 511), std::uint64_t{512});

  auto version = take_version(options);
  PLATTER_TRY(version);
  header.version = *version;
  auto extended_l2 = options.take_bool("extended_l2");
  PLATTER_TRY(extended_l2);
  auto step = take_cluster_size(options, extended_l2->value_or(false), header);
  PLATTER_TRY(step);
  if (extended_l2->value_or(false)) header.incompatible_features |= incompatible::kExtendedL2;

  auto preallocation = parse_preallocation(options.take_string("preallocation").value_or("off"));
  PLATTER_TRY(preallocation);
  plan.preallocation = *preallocation;
  step = take_data_file(options, plan);
  PLATTER_TRY(step);
  step = take_backing(options, header.data_file_raw(), plan.preallocation, header);
  PLATTER_TRY(step);

  auto lazy = options.take_bool("lazy_refcounts");
  PLATTER_TRY(lazy);
  if (lazy->value_or(false)) {
    if (header.version < 3) return needs_v3("Lazy refcounts");
    header.compatible_features |= compatible::kLazyRefcounts;
  }
  step = take_refcount_bits(options, header);
  PLATTER_TRY(step);
  step = take_compression_type(options, header);
  PLATTER_TRY(step);
  auto encryption = take_encryption_plan(options);
  PLATTER_TRY(encryption);
  plan.encryption = std::move(*encryption);
  header.crypt_method = plan.encryption.method;
  step = check_encrypted_preallocation(plan);
  PLATTER_TRY(step);
  step = options.all_taken("qcow2");
  PLATTER_TRY(step);

  // Small first clusters have better use for the room: the backing file name.
  if (header.version >= 3 && header.cluster_size() > 4096) {
    header.extensions.feature_names = known_feature_names();
  }
  step = lay_out(plan);
  PLATTER_TRY(step);
  auto fits = encode_header(header);
  PLATTER_TRY(fits);
  return plan;
}

}  // namespace platter::qcow2

#include "formats/qcow2/layout.h"

#include <algorithm>
#include <cstring>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::qcow2 {

namespace {

// The backing file name's place, which only parsing and encoding need.
struct BackingName {
  std::uint64_t offset = 0;
  std::uint32_t size = 0;
};

// The fields of version 3 beyond those of version 2; `in` stands at byte 72.
Result<void> parse_v3_fields(Reader& in, Header& header, std::uint32_t& header_length) {
  header.incompatible_features = in.be<std::uint64_t>();
  header.compatible_features = in.be<std::uint64_t>();
  header.autoclear_features = in.be<std::uint64_t>();
  const auto refcount_order = in.be<std::uint32_t>();
  header_length = in.be<std::uint32_t>();
  if (!in.ok()) return fail(EINVAL, "qcow2 header too short: the file ends within it");
  if (header_length < kHeaderV3Size) {
    return fail(EINVAL, "qcow2 header too short: header_length is {}, at least {}", header_length,
                kHeaderV3Size);
  }
  if (header_length > header.cluster_size()) {
    return fail(EINVAL, "qcow2 header exceeds cluster size: header_length is {}, cluster size {}",
                header_length, header.cluster_size());
  }
  if (header_length % 8 != 0) {
    return fail(EINVAL, "qcow2 header_length {} is not a multiple of 8", header_length);
  }
  if (refcount_order > kMaxRefcountOrder) {
    return fail(EINVAL,
                "Reference count entry width too large; may not exceed 64 bits (refcount_order is "
                "{}, at most {})",
                refcount_order, kMaxRefcountOrder);
  }
  header.refcount_order = refcount_order;
  return {};
}

// compression_type and what follows it up to header_length; `in` stands at byte 104.
Result<void> parse_additional_fields(Reader& in, Header& header, std::uint32_t header_length) {
  if (header_length > kHeaderV3Size) {
    const auto type = in.be<std::uint8_t>();
    if (type > static_cast<std::uint8_t>(CompressionType::kZstd)) {
      return fail(ENOTSUP, "qcow2: unknown compression type: {}", type);
    }
    header.compression_type = static_cast<CompressionType>(type);
    in.skip(7);
    if (header_length > kHeaderWrittenSize) {
      const auto rest = in.bytes(header_length - kHeaderWrittenSize);
      header.unknown_fields.assign(rest.begin(), rest.end());
    }
    if (!in.ok()) return fail(EINVAL, "qcow2 header too short: the file ends within it");
  }
  const bool bit = (header.incompatible_features & incompatible::kCompressionType) != 0;
  if (bit != (header.compression_type != CompressionType::kZlib)) {
    return fail(EINVAL,
                "qcow2: Compression type incompatible feature bit must {}be set (compression_type "
                "is {})",
                bit ? "not " : "", static_cast<unsigned>(header.compression_type));
  }
  return {};
}

Result<void> validate_backing(const BackingName& name, std::uint32_t header_length,
                              const Header& header) {
  if (name.offset == 0) return {};
  if (name.offset > header.cluster_size()) {
    return fail(EINVAL, "Invalid backing file offset {}: beyond the first cluster of {} bytes",
                name.offset, header.cluster_size());
  }
  if (name.offset < header_length) {
    return fail(EINVAL, "Invalid backing file offset {}: within the header of {} bytes",
                name.offset, header_length);
  }
  if (name.size > kMaxBackingNameBytes || name.size > header.cluster_size() - name.offset) {
    return fail(EINVAL, "Backing file name too long: backing_file_size is {}, at most {}",
                name.size,
                std::min<std::uint64_t>(kMaxBackingNameBytes, header.cluster_size() - name.offset));
  }
  return {};
}

// Who only reads does without a refcount table, and the checker makes a new one.
void judge_refcount_table(Header& header, std::uint64_t file_size) {
  if (header.refcount_table_offset == 0 || header.refcount_table_clusters == 0) {
    header.refcount_table_fault = fmt::format(
        "Image does not contain a reference count table ({} is 0)",
        header.refcount_table_offset == 0 ? "refcount_table_offset" : "refcount_table_clusters");
    return;
  }
  const auto table = validate_table_in_file("Reference count table", header.refcount_table_offset,
                                            header.refcount_table_clusters, header.cluster_size(),
                                            kMaxRefTableBytes, header.cluster_size(), file_size);
  if (!table) header.refcount_table_fault = table.error().message();
}

Result<void> validate_tables(const Header& header, std::uint64_t file_size) {
  const std::uint64_t cluster_size = header.cluster_size();
  Result<void> table;
  const std::uint64_t needed = header.geometry().l1_entries_for(header.size);
  if (needed > kMaxL1Bytes / 8) {
    return fail(EFBIG, "Image is too big: size {} needs {} L1 entries, at most {}", header.size,
                needed, kMaxL1Bytes / 8);
  }
  if (header.l1_size < needed) {
    return fail(EINVAL, "L1 table is too small: l1_size is {}, a size of {} needs {}",
                header.l1_size, header.size, needed);
  }
  table = validate_table_in_file("Active L1 table", header.l1_table_offset, header.l1_size, 8,
                                 kMaxL1Bytes, cluster_size, file_size);
  PLATTER_TRY(table);

  if (header.nb_snapshots > kMaxSnapshots) {
    return fail(EFBIG, "Snapshot table too large: nb_snapshots is {}, at most {}",
                header.nb_snapshots, kMaxSnapshots);
  }
  // 40 bytes is the shortest entry; the table's true length is known when it has been parsed.
  if (header.nb_snapshots != 0) {
    table =
        validate_table_in_file("Snapshot table", header.snapshots_offset, header.nb_snapshots, 40,
                               std::uint64_t{kMaxSnapshots} * 1024, cluster_size, file_size);
    PLATTER_TRY(table);
  }
  return {};
}

Result<void> validate_features(const Header& header) {
  const std::uint64_t unknown = header.incompatible_features & ~incompatible::kKnown;
  if (unknown != 0) {
    return fail(ENOTSUP, "Unsupported qcow2 feature(s): {}",
                describe_incompatible(unknown, header.extensions.feature_names));
  }
  if (header.extended_l2() && header.cluster_bits < kMinExtendedL2ClusterBits) {
    return fail(EINVAL,
                "Extended L2 entries are only supported with cluster sizes of at least {} bytes, "
                "not {}",
                1u << kMinExtendedL2ClusterBits, header.cluster_size());
  }
  return {};
}

// Up to and including crypt_method's bound; what every later check builds on.
Result<void> parse_start(Reader& in, Header& header, BackingName& name) {
  const auto magic = in.be<std::uint32_t>();
  header.version = in.be<std::uint32_t>();
  name.offset = in.be<std::uint64_t>();
  name.size = in.be<std::uint32_t>();
  const auto cluster_bits = in.be<std::uint32_t>();
  header.size = in.be<std::uint64_t>();
  if (!in.ok() || magic != kMagic) return fail(EINVAL, "Image is not in qcow2 format");
  if (header.version < 2 || header.version > 3) {
    return fail(ENOTSUP, "Unsupported qcow2 version {}", header.version);
  }
  if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits) {
    return fail(EINVAL, "Unsupported cluster size: 2^{} (cluster_bits must be {} to {})",
                cluster_bits, kMinClusterBits, kMaxClusterBits);
  }
  header.cluster_bits = cluster_bits;
  return {};
}

}  // namespace

Result<void> validate_table(std::string_view name, std::uint64_t offset, std::uint64_t entries,
                            std::uint64_t entry_size, std::uint64_t max_bytes,
                            std::uint64_t cluster_size) {
  if (entries > max_bytes / entry_size) {
    return fail(EFBIG, "{} too large: {} entries of {} bytes, at most {} bytes", name, entries,
                entry_size, max_bytes);
  }
  if (!is_aligned(offset, cluster_size)) {
    return fail(EINVAL, "{} offset invalid: {:#x} is not a multiple of the cluster size {}", name,
                offset, cluster_size);
  }
  if (entries != 0 && offset == 0) {
    return fail(EINVAL, "{} offset invalid: 0 is the header's place", name);
  }
  if (!range_within(offset, entries * entry_size, kMaxHostOffset)) {
    return fail(EINVAL, "{} offset invalid: {:#x} is above the limit of {:#x}", name, offset,
                kMaxHostOffset);
  }
  return {};
}

Result<void> validate_table_in_file(std::string_view name, std::uint64_t offset,
                                    std::uint64_t entries, std::uint64_t entry_size,
                                    std::uint64_t max_bytes, std::uint64_t cluster_size,
                                    std::uint64_t file_size) {
  auto table = validate_table(name, offset, entries, entry_size, max_bytes, cluster_size);
  PLATTER_TRY(table);
  const std::uint64_t bytes = entries * entry_size;
  const std::uint64_t end =
      file_size > kMaxHostOffset ? kMaxHostOffset : align_up(file_size, cluster_size);
  if (bytes != 0 && !range_within(offset, bytes, end)) {
    return fail(EINVAL, "{} lies beyond the end of the file: {} bytes at {:#x}, file size {}", name,
                bytes, offset, file_size);
  }
  return {};
}

Result<std::uint64_t> probe_cluster_size(std::span<const std::byte> head) {
  Reader in(head);
  Header header;
  BackingName name;
  auto start = parse_start(in, header, name);
  PLATTER_TRY(start);
  return header.cluster_size();
}

Result<Header> parse_header(std::span<const std::byte> first_cluster, std::uint64_t file_size) {
  Header header;
  BackingName name;
  Reader in(first_cluster);
  auto step = parse_start(in, header, name);
  PLATTER_TRY(step);
  const auto cluster =
      first_cluster.first(std::min<std::uint64_t>(first_cluster.size(), header.cluster_size()));

  const auto crypt_method = in.be<std::uint32_t>();
  header.l1_size = in.be<std::uint32_t>();
  header.l1_table_offset = in.be<std::uint64_t>();
  header.refcount_table_offset = in.be<std::uint64_t>();
  header.refcount_table_clusters = in.be<std::uint32_t>();
  header.nb_snapshots = in.be<std::uint32_t>();
  header.snapshots_offset = in.be<std::uint64_t>();
  if (!in.ok())
    return fail(EINVAL, "qcow2 header too short: the file has {} bytes", first_cluster.size());

  std::uint32_t header_length = kHeaderV2Size;
  if (header.version >= 3) {
    step = parse_v3_fields(in, header, header_length);
    PLATTER_TRY(step);
  }
  step = validate_backing(name, header_length, header);
  PLATTER_TRY(step);

  // Extensions come before unknown features are judged, for the names they give to them.
  const std::uint64_t area_end = name.offset != 0 ? name.offset : header.cluster_size();
  const std::size_t area_limit = std::min<std::uint64_t>(area_end, cluster.size());
  if (header_length > area_limit && header_length > cluster.size()) {
    return fail(EINVAL, "qcow2 header too short: the file ends within it");
  }
  const auto area = cluster.subspan(header_length, area_limit - header_length);
  const ExtensionContext context{
      .cluster_size = header.cluster_size(),
      .crypt_method = crypt_method,
      .bitmaps_consistent = (header.autoclear_features & autoclear::kBitmaps) != 0};
  auto extensions = parse_extensions(area, context);
  PLATTER_TRY(extensions);
  header.extensions = std::move(*extensions);

  step = validate_features(header);
  PLATTER_TRY(step);
  if (header.version >= 3) {
    step = parse_additional_fields(in, header, header_length);
    PLATTER_TRY(step);
  }
  if (crypt_method > static_cast<std::uint32_t>(CryptMethod::kLuks)) {
    return fail(EINVAL, "Unsupported encryption method {}", crypt_method);
  }
  header.crypt_method = static_cast<CryptMethod>(crypt_method);
  judge_refcount_table(header, file_size);
  step = validate_tables(header, file_size);
  PLATTER_TRY(step);

  if (name.offset != 0) {
    if (!range_within(name.offset, name.size, cluster.size())) {
      return fail(EINVAL, "Backing file name lies beyond the end of the file: {} bytes at {}",
                  name.size, name.offset);
    }
    for (const std::byte b : cluster.subspan(name.offset, name.size)) {
      if (b == std::byte{0}) break;
      header.backing_file.push_back(static_cast<char>(b));
    }
  }
  return header;
}

namespace {

// Writes the fixed fields and returns header_length.
std::uint32_t put_fields(Writer& out, const Header& header, const BackingName& name) {
  out.be(kMagic);
  out.be(header.version);
  out.be(name.offset);
  out.be(name.size);
  out.be(std::uint32_t{header.cluster_bits});
  out.be(header.size);
  out.be(static_cast<std::uint32_t>(header.crypt_method));
  out.be(header.l1_size);
  out.be(header.l1_table_offset);
  out.be(header.refcount_table_offset);
  out.be(header.refcount_table_clusters);
  out.be(header.nb_snapshots);
  out.be(header.snapshots_offset);
  if (header.version < 3) return kHeaderV2Size;
  const auto length = kHeaderWrittenSize + static_cast<std::uint32_t>(header.unknown_fields.size());
  out.be(header.incompatible_features);
  out.be(header.compatible_features);
  out.be(header.autoclear_features);
  out.be(std::uint32_t{header.refcount_order});
  out.be(length);
  out.be(static_cast<std::uint8_t>(header.compression_type));
  out.zeroes(7);
  out.bytes(header.unknown_fields);
  return length;
}

}  // namespace

std::uint64_t header_area_size(const Header& header) {
  const std::uint64_t fields =
      header.version < 3 ? kHeaderV2Size : kHeaderWrittenSize + header.unknown_fields.size();
  return fields + encode_extensions(header.extensions).size();
}

Result<std::vector<std::byte>> encode_header(const Header& header, std::uint64_t name_offset) {
  std::vector<std::byte> cluster(header.cluster_size());
  const std::vector<std::byte> area = encode_extensions(header.extensions);
  const std::uint64_t fields =
      header.version < 3 ? kHeaderV2Size : kHeaderWrittenSize + header.unknown_fields.size();
  BackingName name{.offset = std::max(name_offset, fields + area.size()),
                   .size = static_cast<std::uint32_t>(header.backing_file.size())};
  if (header.backing_file.size() > kMaxBackingNameBytes)
    return fail(EINVAL, "Backing file name too long: {} bytes, at most {}",
                header.backing_file.size(), kMaxBackingNameBytes);
  const std::uint64_t end = name.offset + header.backing_file.size();
  if (end > cluster.size()) {
    return fail(ENOSPC,
                "header extensions and backing file name do not fit into the first cluster: {} "
                "bytes needed, cluster size {}",
                end, cluster.size());
  }
  const std::uint64_t name_at = name.offset;
  if (header.backing_file.empty()) name = {};
  Writer out(cluster);
  put_fields(out, header, name);
  out.bytes(area);
  std::memcpy(cluster.data() + name_at, header.backing_file.data(), header.backing_file.size());
  return cluster;
}

}  // namespace platter::qcow2

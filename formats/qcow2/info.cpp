#include "formats/qcow2/info.h"

#include <string>

namespace platter::qcow2 {

namespace {

InfoField bitmap_field(const BitmapEntry& bitmap) {
  InfoField::Fields flags;
  if ((bitmap.flags & bitmap_flag::kInUse) != 0) flags.push_back({{}, std::string("in-use")});
  if ((bitmap.flags & bitmap_flag::kAuto) != 0) flags.push_back({{}, std::string("auto")});
  InfoField::Fields fields;
  fields.push_back({"flags", std::move(flags)});
  fields.push_back({"name", bitmap.name});
  fields.push_back({"granularity", std::uint64_t{1} << bitmap.granularity_bits});
  return {{}, std::move(fields)};
}

InfoField::Fields luks_fields(const crypto::LuksHeader& luks) {
  InfoField::Fields fields;
  fields.push_back({"ivgen-alg", luks.generator()});
  fields.push_back({"hash-alg", luks.hash});
  fields.push_back({"cipher-alg", luks.algorithm()});
  fields.push_back({"uuid", luks.uuid});
  if (luks.generator() == "essiv") fields.push_back({"ivgen-hash-alg", luks.generator_hash()});
  fields.push_back({"format", std::string("luks")});
  fields.push_back({"cipher-mode", luks.mode()});
  InfoField::Fields slots;
  for (const crypto::LuksSlot& slot : luks.slots) {
    InfoField::Fields one;
    one.push_back({"active", slot.active});
    if (slot.active) one.push_back({"iters", std::uint64_t{slot.iterations}});
    one.push_back({"key-offset", slot.offset()});
    if (slot.active) one.push_back({"stripes", std::uint64_t{slot.stripes}});
    slots.push_back({{}, std::move(one)});
  }
  fields.push_back({"slots", std::move(slots)});
  fields.push_back({"payload-offset", luks.payload_offset()});
  fields.push_back({"master-key-iters", std::uint64_t{luks.iterations}});
  return fields;
}

// Behind the part of the disk that whole L2 tables map.
std::uint64_t vm_state_offset(const Header& header) {
  const Geometry geometry{.version = header.version,
                          .cluster_bits = header.cluster_bits,
                          .refcount_order = header.refcount_order,
                          .extended_l2 = header.extended_l2(),
                          .external_data = header.has_data_file()};
  return geometry.l1_entries_for(header.size) * geometry.l2_coverage();
}

}  // namespace

FormatInfo format_info(const Header& header, std::span<const BitmapEntry> bitmaps,
                       const crypto::LuksHeader* luks) {
  FormatInfo info;
  info.cluster_size = header.cluster_size();
  info.encrypted = header.crypt_method != CryptMethod::kNone;
  info.dirty = header.dirty();
  info.corrupt = header.corrupt();
  info.vm_state_offset = vm_state_offset(header);
  InfoField::Fields& fields = info.specific;
  const bool v3 = header.version >= 3;
  fields.push_back({"compat", std::string(v3 ? "1.1" : "0.10")});
  fields.push_back(
      {"compression-type",
       std::string(header.compression_type == CompressionType::kZstd ? "zstd" : "zlib")});
  if (v3) fields.push_back({"lazy-refcounts", header.lazy_refcounts()});
  if (!bitmaps.empty()) {
    InfoField::Fields list;
    for (const BitmapEntry& bitmap : bitmaps) list.push_back(bitmap_field(bitmap));
    fields.push_back({"bitmaps", std::move(list)});
  }
  fields.push_back({"refcount-bits", std::uint64_t{1} << header.refcount_order});
  if (info.encrypted) {
    InfoField::Fields encrypt;
    if (luks) {
      encrypt = luks_fields(*luks);
    } else {
      encrypt.push_back(
          {"format", std::string(header.crypt_method == CryptMethod::kAes ? "aes" : "luks")});
    }
    fields.push_back({"encrypt", std::move(encrypt)});
  }
  if (header.extensions.data_file) fields.push_back({"data-file", *header.extensions.data_file});
  if (v3 && header.has_data_file()) fields.push_back({"data-file-raw", header.data_file_raw()});
  if (v3) {
    fields.push_back({"corrupt", header.corrupt()});
    fields.push_back({"extended-l2", header.extended_l2()});
  }
  return info;
}

}  // namespace platter::qcow2

// The feature name table of a qcow2 header: what the bits of the three feature fields are called,
// so that a program which does not know a bit can still say what it refuses.
//
// Threads: pure functions over values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace platter::qcow2 {

enum class FeatureKind : std::uint8_t { kIncompatible = 0, kCompatible = 1, kAutoclear = 2 };

struct FeatureName {
  std::uint8_t kind = 0;  // FeatureKind, or a value that we do not know
  std::uint8_t bit = 0;
  std::string name;  // 46 bytes at most; text from the image: escape before printing
  bool operator==(const FeatureName&) const = default;
};

inline constexpr std::size_t kFeatureNameEntrySize = 48;

// Whole entries of `table`; a partial one at the end is ignored, as QEMU does.
std::vector<FeatureName> parse_feature_names(std::span<const std::byte> table);
std::vector<std::byte> encode_feature_names(const std::vector<FeatureName>& names);

// The table that we write into new images: every feature of the specification.
std::vector<FeatureName> known_feature_names();

// "dirty bit, Unknown incompatible feature: 8000000000000000": the names that `names` gives to the
// incompatible `bits`, then what is left as one hexadecimal mask. Bytes that are not printable
// ASCII are shown as '?'.
std::string describe_incompatible(std::uint64_t bits, const std::vector<FeatureName>& names);

}  // namespace platter::qcow2

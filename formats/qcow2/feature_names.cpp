#include "formats/qcow2/feature_names.h"

#include <fmt/format.h>

#include <algorithm>

namespace platter::qcow2 {

namespace {

constexpr std::size_t kNameSize = kFeatureNameEntrySize - 2;

std::string printable(const std::string& name) {
  std::string text = name;
  for (char& c : text) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return text;
}

}  // namespace

std::vector<FeatureName> parse_feature_names(std::span<const std::byte> table) {
  std::vector<FeatureName> names;
  names.reserve(table.size() / kFeatureNameEntrySize);
  for (; table.size() >= kFeatureNameEntrySize; table = table.subspan(kFeatureNameEntrySize)) {
    FeatureName entry;
    entry.kind = std::to_integer<std::uint8_t>(table[0]);
    entry.bit = std::to_integer<std::uint8_t>(table[1]);
    for (const std::byte b : table.subspan(2, kNameSize)) {
      if (b == std::byte{0}) break;
      entry.name.push_back(static_cast<char>(b));
    }
    names.push_back(std::move(entry));
  }
  return names;
}

std::vector<std::byte> encode_feature_names(const std::vector<FeatureName>& names) {
  std::vector<std::byte> table(names.size() * kFeatureNameEntrySize);
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::byte* entry = table.data() + i * kFeatureNameEntrySize;
    entry[0] = std::byte{names[i].kind};
    entry[1] = std::byte{names[i].bit};
    std::transform(names[i].name.begin(),
                   names[i].name.begin() +
                       static_cast<std::ptrdiff_t>(std::min(names[i].name.size(), kNameSize)),
                   entry + 2, [](char c) { return static_cast<std::byte>(c); });
  }
  return table;
}

std::vector<FeatureName> known_feature_names() {
  constexpr auto kIncompatible = static_cast<std::uint8_t>(FeatureKind::kIncompatible);
  constexpr auto kCompatible = static_cast<std::uint8_t>(FeatureKind::kCompatible);
  constexpr auto kAutoclear = static_cast<std::uint8_t>(FeatureKind::kAutoclear);
  return {
      {kIncompatible, 0, "dirty bit"},
      {kIncompatible, 1, "corrupt bit"},
      {kIncompatible, 2, "external data file"},
      {kIncompatible, 3, "compression type"},
      {kIncompatible, 4, "extended L2 entries"},
      {kCompatible, 0, "lazy refcounts"},
      {kAutoclear, 0, "bitmaps"},
      {kAutoclear, 1, "raw external data"},
  };
}

std::string describe_incompatible(std::uint64_t bits, const std::vector<FeatureName>& names) {
  std::string text;
  const auto append = [&text](const std::string& item) {
    if (!text.empty()) text += ", ";
    text += item;
  };
  for (const FeatureName& entry : names) {
    if (entry.kind != static_cast<std::uint8_t>(FeatureKind::kIncompatible) || entry.bit > 63) {
      continue;
    }
    const std::uint64_t mask = std::uint64_t{1} << entry.bit;
    if ((bits & mask) == 0) continue;
    append(printable(entry.name));
    bits &= ~mask;
  }
  if (bits != 0) append(fmt::format("Unknown incompatible feature: {:x}", bits));
  return text;
}

}  // namespace platter::qcow2

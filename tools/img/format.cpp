#include "tools/img/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>

namespace platter::img {
namespace {

constexpr std::uint64_t kNanosecondsPerSecond = 1'000'000'000;

// Elements without names make a list: "[0]", "[1]", ...
bool is_list(const InfoField::Fields& fields) {
  return !fields.empty() && std::all_of(fields.begin(), fields.end(),
                                        [](const InfoField& field) { return field.name.empty(); });
}

Json value_json(const InfoField& field) {
  if (const bool* b = std::get_if<bool>(&field.value)) return *b;
  if (const std::uint64_t* number = std::get_if<std::uint64_t>(&field.value)) return *number;
  if (const std::string* text = std::get_if<std::string>(&field.value)) return *text;
  const InfoField::Fields& inner = std::get<InfoField::Fields>(field.value);
  // What has no elements is a list of none: objects always have members.
  if (!inner.empty() && !is_list(inner)) return fields_json(inner);
  Json::Array array;
  for (const InfoField& element : inner) array.push_back(value_json(element));
  return array;
}

}  // namespace

std::string size_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 7> kUnits = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
  // A unit is left for the next at 1000, not at 1024, so that three digits are enough.
  int exponent = 0;
  std::frexp(static_cast<double>(bytes) / (1000.0 / 1024.0), &exponent);
  const unsigned unit = exponent > 0 ? static_cast<unsigned>(exponent - 1) / 10 : 0;
  const double value =
      static_cast<double>(bytes) / static_cast<double>(std::uint64_t{1} << (unit * 10));
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%0.3g %sB", value, kUnits[unit]);
  return text.data();
}

std::string vm_clock_text(std::uint64_t nanoseconds) {
  const std::uint64_t seconds = nanoseconds / kNanosecondsPerSecond;
  return fmt::format("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60,
                     nanoseconds / 1'000'000 % 1000);
}

std::string date_text(std::uint64_t seconds) {
  const std::time_t time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  if (localtime_r(&time, &parts) == nullptr) return {};
  std::array<char, 64> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts);
  return text.data();
}

std::string snapshot_table(const std::vector<SnapshotInfo>& snapshots) {
  constexpr auto kRow = FMT_STRING("{:<9} {:<16} {:>8}{:>20}{:>13}{:>11}\n");
  std::string out = "Snapshot list:\n";
  out += fmt::format(kRow, "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  // Columns are counted in bytes, names being of any encoding.
  const auto padded = [](const std::string& text, std::size_t width) {
    return text.size() < width ? text + std::string(width - text.size(), ' ') : text;
  };
  for (const SnapshotInfo& snapshot : snapshots) {
    out +=
        padded(snapshot.id, 9) + " " + padded(snapshot.name, 16) +
        fmt::format(" {:>8}{:>20}{:>13}{:>11}\n", size_text(snapshot.vm_state_size),
                    date_text(snapshot.date_seconds), vm_clock_text(snapshot.vm_clock_nanoseconds),
                    snapshot.icount ? std::to_string(*snapshot.icount) : std::string());
  }
  return out;
}

Json snapshot_json(const SnapshotInfo& snapshot) {
  Json object;
  object.set("id", snapshot.id);
  object.set("name", snapshot.name);
  object.set("vm-state-size", snapshot.vm_state_size);
  object.set("date-sec", snapshot.date_seconds);
  object.set("date-nsec", std::uint64_t{snapshot.date_nanoseconds});
  object.set("vm-clock-sec", snapshot.vm_clock_nanoseconds / kNanosecondsPerSecond);
  object.set("vm-clock-nsec", snapshot.vm_clock_nanoseconds % kNanosecondsPerSecond);
  if (snapshot.icount) object.set("icount", *snapshot.icount);
  return object;
}

std::string fields_text(const std::vector<InfoField>& fields, unsigned depth) {
  std::string out;
  const bool list = is_list(fields);
  std::vector<const InfoField*> ordered;
  for (const InfoField& field : fields) ordered.push_back(&field);
  if (!list) {
    std::stable_sort(ordered.begin(), ordered.end(), [](const InfoField* a, const InfoField* b) {
      return member_rank(a->name) < member_rank(b->name);
    });
  }
  for (std::size_t i = 0; i < ordered.size(); ++i) {
    const InfoField& field = *ordered[i];
    std::string name = list ? fmt::format("[{}]", i) : field.name;
    std::replace(name.begin(), name.end(), '-', ' ');
    out.append(std::size_t{4} * depth, ' ');
    out += name + ":";
    if (const bool* b = std::get_if<bool>(&field.value)) {
      out += *b ? " true\n" : " false\n";
    } else if (const std::uint64_t* number = std::get_if<std::uint64_t>(&field.value)) {
      out += fmt::format(" {}\n", *number);
    } else if (const std::string* text = std::get_if<std::string>(&field.value)) {
      out += " " + *text + "\n";
    } else {
      out += "\n" + fields_text(std::get<InfoField::Fields>(field.value), depth + 1);
    }
  }
  return out;
}

Json fields_json(const std::vector<InfoField>& fields) {
  Json object;
  for (const InfoField& field : fields) object.set(field.name, value_json(field));
  return object;
}

}  // namespace platter::img

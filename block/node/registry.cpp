#include "block/node/registry.h"

#include <sys/stat.h>

#include <algorithm>
#include <deque>

namespace platter {
namespace {

// Filled by static initialisers, only read once main() runs. A deque keeps addresses stable.
std::deque<DriverType>& table() {
  static std::deque<DriverType> drivers;
  return drivers;
}

}  // namespace

RegisterDriver::RegisterDriver(DriverType type) { table().push_back(std::move(type)); }

const DriverType* find_driver(std::string_view name) {
  for (const DriverType& type : table()) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

std::vector<const DriverType*> all_drivers() {
  std::vector<const DriverType*> all;
  for (const DriverType& type : table()) all.push_back(&type);
  std::ranges::sort(all, {}, [](const DriverType* type) { return type->name; });
  return all;
}

std::string_view protocol_prefix(std::string_view filename) {
  const std::size_t end = filename.find_first_of(":/");
  if (end == std::string_view::npos || filename[end] != ':') return {};
  return filename.substr(0, end);
}

std::string_view local_path(std::string_view filename) {
  if (protocol_prefix(filename) == "file") filename.remove_prefix(5);
  return filename;
}

const DriverType* protocol_for(std::string_view filename) {
  for (const DriverType& type : table()) {
    for (const std::string_view prefix : type.prefixes) {
      if (filename.starts_with(prefix)) return &type;
    }
  }
  const std::string_view prefix = protocol_prefix(filename);
  if (!prefix.empty() && prefix != "file") return nullptr;
  struct stat status{};
  const std::string path(local_path(filename));
  if (stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode)) {
    if (const DriverType* device = find_driver("host_device")) return device;
  }
  return find_driver("file");
}

}  // namespace platter

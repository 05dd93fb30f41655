#include "block/node/permission.h"

#include <array>
#include <string_view>
#include <utility>

namespace platter {

std::string permission_names(std::uint32_t mask) {
  constexpr std::array<std::pair<std::uint32_t, std::string_view>, 4> kNames{{
      {perm::kConsistentRead, "consistent read"},
      {perm::kWrite, "write"},
      {perm::kWriteUnchanged, "write unchanged"},
      {perm::kResize, "resize"},
  }};
  std::string text;
  for (const auto& [bit, name] : kNames) {
    if ((mask & bit) == 0) continue;
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text.empty() ? "none" : text;
}

}  // namespace platter

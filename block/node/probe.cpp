#include "block/node/registry.h"

namespace platter {

const DriverType* probe_format(std::span<const std::byte> head, std::string_view filename) {
  const DriverType* best = nullptr;
  int best_score = 0;
  for (const DriverType* type : all_drivers()) {
    if (!type->probe) continue;
    const int score = type->probe(head.first(std::min(head.size(), kProbeSize)), filename);
    if (score > best_score) {
      best = type;
      best_score = score;
    }
  }
  return best;
}

}  // namespace platter

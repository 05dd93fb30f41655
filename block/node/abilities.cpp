#include "block/node/abilities.h"

namespace platter {

Task<Result<void>> SnapshotAbility::load(std::string) {
  co_return fail(ENOTSUP, "this format cannot show a snapshot without applying it");
}

}  // namespace platter

// What may be written as a braced temporary in a co_await expression: g++ 12 destroys such twice,
// which matters to none of these. tests/layering/check_coroutines.py reads this list, and such
// asserts elsewhere.
#include <type_traits>

#include "block/node/driver.h"
#include "block/node/nesting.h"

namespace platter {

static_assert(std::is_trivially_destructible_v<ReadFlags>);
static_assert(std::is_trivially_destructible_v<WriteFlags>);
static_assert(std::is_trivially_destructible_v<ZeroFlags>);
static_assert(std::is_trivially_destructible_v<ResizeRequest>);
static_assert(std::is_trivially_destructible_v<detail::YieldIf>);

}  // namespace platter

// The request engine: taking data from another node without passing it through memory.
#include "block/node/mapped_driver.h"

namespace platter {

Task<Result<void>> MappedDriver::do_copy_from(BlockNode& source, std::uint64_t source_offset,
                                              std::uint64_t offset, std::uint64_t length,
                                              CopyFlags flags) {
  // What lies below is not what is read: the bytes must pass through memory.
  if (transform_ != nullptr) co_return fail_errno(ENOTSUP);
  auto ticket = co_await admit();
  const Result<void> still_there = check_inside(offset, length);
  PLATTER_CO_TRY(still_there);
  if (notes_changes()) {
    auto announced = co_await announce_change(offset, length);
    PLATTER_CO_TRY(announced);
  }
  while (length != 0) {
    auto plan = co_await plan_write(offset, length);
    PLATTER_CO_TRY(plan);
    Result<void> result;
    if (plan->head != 0 || plan->tail != 0) {
      result = fail_errno(ENOTSUP);  // these bytes pass through memory, and so may the others
    } else {
      auto copying =
          plan->node->copy_from(source, source_offset, plan->host_offset, plan->length, flags);
      result = co_await copying;
    }
    if (!plan->in_place) {
      if (result) {
        publish(*plan);
      } else {
        abandon(*plan);
      }
    }
    PLATTER_CO_TRY(result);
    source_offset += plan->length;
    offset += plan->length;
    length -= plan->length;
  }
  co_return {};
}

}  // namespace platter

#include "block/node/driver.h"

namespace platter {

Result<Preallocation> parse_preallocation(std::string_view text) {
  if (text == "off") return Preallocation::kOff;
  if (text == "metadata") return Preallocation::kMetadata;
  if (text == "falloc") return Preallocation::kFalloc;
  if (text == "full") return Preallocation::kFull;
  return fail(EINVAL, "Parameter 'preallocation' does not accept value '{}'", text);
}

Task<Result<void>> Driver::do_write_zeroes(std::uint64_t, std::uint64_t, ZeroFlags) {
  co_return fail_errno(ENOTSUP);
}

Task<Result<void>> Driver::do_discard(std::uint64_t, std::uint64_t) {
  co_return fail_errno(ENOTSUP);
}

Task<Result<Extent>> Driver::do_extent(std::uint64_t offset, std::uint64_t length) {
  co_return Extent{.offset = offset, .length = length, .kind = ExtentKind::kData};
}

Task<Result<void>> Driver::do_resize(ResizeRequest) {
  co_return fail(ENOTSUP, "Image format driver does not support resize");
}

Task<Result<void>> Driver::do_copy_from(BlockNode&, std::uint64_t, std::uint64_t, std::uint64_t,
                                        CopyFlags) {
  co_return fail_errno(ENOTSUP);
}

Task<Result<void>> Driver::do_take_up(std::uint64_t, std::uint64_t, TakeUpFlags) {
  co_return fail(ENOTSUP, "Image format driver does not take up data of a backing file");
}

Task<Result<void>> Driver::do_close() { co_return {}; }

Task<Result<void>> Driver::do_set_permissions(Permissions) { co_return {}; }

Task<Result<void>> Driver::prepare_reopen(OpenFlags) { co_return {}; }
Result<std::function<Task<Result<void>>()>> Driver::plan_change(Options&) {
  return std::function<Task<Result<void>>()>();
}

Task<void> Driver::do_announce(FaultEvent) { co_return; }

}  // namespace platter

#include "tools/io/vm_state.h"

namespace platter::io_tool {
namespace {

VmStateAbility* ability_of(BlockNode& node) { return node.skip_filters().driver().vm_state(); }

}  // namespace

Task<Result<void>> read_vm_state(BlockNode& node, std::uint64_t offset, IoVec iov) {
  VmStateAbility* ability = ability_of(node);
  if (ability == nullptr) co_return fail_errno(ENOTSUP);
  auto result = co_await ability->read(offset, iov);
  co_return result;
}

Task<Result<void>> write_vm_state(BlockNode& node, std::uint64_t offset, IoVec iov) {
  VmStateAbility* ability = ability_of(node);
  if (ability == nullptr) co_return fail_errno(ENOTSUP);
  auto result = co_await ability->write(offset, iov);
  co_return result;
}

}  // namespace platter::io_tool

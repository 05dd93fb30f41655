#include <algorithm>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/foreign_format.h"
#include "block/node/node.h"
#include "block/node/registry.h"

namespace platter {

// A raw image whose format was guessed would be taken for another format at its next opening if a
// guest wrote that format's header at its start, and then the guest would choose which host files
// are opened as its backing chain. So such a write is refused; under the caller's range lock.
Task<Result<void>> BlockNode::check_head(std::uint64_t offset, std::uint64_t length,
                                         const IoVec* iov) {
  if (offset >= kProbeSize) co_return {};
  // What the write reaches counts also where the disk has just been made shorter than that.
  const std::uint64_t disk_size = size();
  const std::uint64_t head_size =
      std::min<std::uint64_t>(std::max(offset + length, disk_size), kProbeSize);
  const Buffer head = Buffer::zeroed(kProbeSize);
  const std::uint64_t old = std::min(disk_size, head_size);
  if (old != 0) {
    const std::uint64_t padded = align_up(old, limits_.request_alignment);
    const Buffer block(padded);
    auto read = co_await read_aligned(0, block.iov(), ReadFlags{});
    PLATTER_CO_TRY(read);
    std::memcpy(head.data(), block.data(), old);
  }
  const std::uint64_t change = std::min(length, head_size - offset);
  if (iov) {
    iov->first(change).copy_to(head.data() + offset);
  } else {
    std::memset(head.data() + offset, 0, change);
  }
  const std::span<const std::byte> start = head.span().first(head_size);
  const DriverType* const known = probe_format(start, filename_);
  std::optional<std::string_view> looks_like;
  if (known && known != &type_) {
    looks_like = known->name;
  } else {
    looks_like = foreign_format(start);
  }
  if (!looks_like) co_return {};
  co_return fail(
      EPERM,
      "Refusing to write a '{}' header at the start of '{}', whose format was guessed to be "
      "raw; specify the 'raw' format explicitly to allow it",
      *looks_like, filename_);
}

}  // namespace platter

// Memory for buffers of a few pages, page by page without gaps.
//
// The heap gives every block that is aligned to a page a header in front of it, and so a page that
// nobody uses: a cache of 4 KiB buffers would take twice its size. Here blocks of one size share a
// slab of 1 MiB, whose first page keeps count of them. A slab whose blocks have all come back goes
// back to the kernel.
//
// Threads: any; a block may be freed by another thread than allocated it. Buffer's own pool is in
// front of this and takes most requests.
// Errors: aborts when memory is exhausted, as Buffer does.
#pragma once

#include <cstddef>

namespace platter::detail {

// Blocks are kSlabPage << size_class bytes large and start at a multiple of kSlabPage.
inline constexpr std::size_t kSlabPage = 4096;
inline constexpr unsigned kSlabClasses = 4;

std::byte* allocate_block(unsigned size_class);
void free_block(std::byte* block, unsigned size_class) noexcept;

}  // namespace platter::detail

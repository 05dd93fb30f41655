// Prints the first bytes of a disk, whatever format its image has: an example of a program that
// links the block layer.
//
//   hexdump_disk IMAGE [OFFSET [LENGTH]]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "block/exec/buffer.h"
#include "block/exec/executor.h"
#include "block/node/graph.h"

namespace {

using platter::Result;

constexpr std::uint64_t kMaxLength = 16 << 20;  // bytes

// Opens the image, reads [offset, offset + length) of the disk, and closes it again.
platter::Task<Result<void>> dump(std::string filename, std::uint64_t offset, std::uint64_t length) {
  platter::OpenRequest request;
  request.filename = std::move(filename);
  auto disk = co_await platter::open_node(std::move(request));
  PLATTER_CO_TRY(disk);

  // No more than there is: a buffer of any size that someone asks for might not be had.
  const std::uint64_t size = (*disk)->size();
  const std::uint64_t rest = offset < size ? size - offset : 0;
  if (length > std::min<std::uint64_t>(rest, kMaxLength)) {
    auto closed = co_await disk->detach();
    PLATTER_CO_TRY(closed);
    co_return platter::fail(
        EINVAL, "cannot show {} bytes at {}: the disk has {} there, and {} are the most at once",
        length, offset, rest, kMaxLength);
  }
  platter::Buffer buffer(length);
  auto read = co_await (*disk)->read(offset, buffer.iov());
  // Close in any case, and report the first thing that went wrong.
  auto closed = co_await disk->detach();
  PLATTER_CO_TRY(read);
  PLATTER_CO_TRY(closed);

  for (std::uint64_t i = 0; i < length; ++i) {
    if (i % 16 == 0)
      std::printf("%s%08llx ", i ? "\n" : "", static_cast<unsigned long long>(offset + i));
    std::printf(" %02x", static_cast<unsigned>(buffer.data()[i]));
  }
  std::printf("\n");
  co_return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s IMAGE [OFFSET [LENGTH]]\n", argv[0]);
    return 2;
  }
  const std::uint64_t offset = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 0;
  const std::uint64_t length = argc > 3 ? std::strtoull(argv[3], nullptr, 0) : 64;

  auto executor = platter::Executor::create();
  if (!executor) {
    std::fprintf(stderr, "%s: %s\n", argv[0], executor.error().message().c_str());
    return 1;
  }
  const Result<void> done = (*executor)->block_on([&] { return dump(argv[1], offset, length); });
  if (!done) {
    std::fprintf(stderr, "%s: %s\n", argv[0], done.error().message().c_str());
    return 1;
  }
  return 0;
}

#include "formats/qcow2/core.h"

#include <cstdio>

#include "formats/qcow2/header_io.h"

namespace platter::qcow2 {

Task<Result<void>> Core::write_header() {
  header_unsure.store(true);
  auto written = co_await put_header(*file, header);
  if (written) header.extensions.stale_bitmaps = false;
  co_return written;
}

Task<Result<void>> Core::publish_header() {
  auto written = co_await write_header();
  if (written) written = co_await file->flush();
  if (written) header_unsure.store(false);
  co_return written;
}

Task<Result<void>> Core::set_incompatible(std::uint64_t bits, bool on) {
  auto guard = co_await header_mutex.lock();
  const std::uint64_t before = header.incompatible_features;
  header.incompatible_features = on ? before | bits : before & ~bits;
  if (header.incompatible_features == before) co_return {};
  auto written = co_await publish_header();
  if (!written) header.incompatible_features = before;
  co_return written;
}

std::unexpected<Error> Core::given_up() {
  return std::unexpected<Error>(
      Error(EIO, "the image is corrupt and is not written to any more").as(ErrorKind::kGivenUp));
}

Task<Error> Core::corruption(std::string what, bool fatal) {
  fatal = fatal && writable;
  if (!reported.exchange(true)) {
    if (fatal) {
      std::fprintf(
          stderr,
          "qcow2: Marking image as corrupt: %s; further corruption events will be suppressed\n",
          what.c_str());
    } else {
      std::fprintf(
          stderr,
          "qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed\n",
          what.c_str());
    }
  }
  const bool again = fatal && poisoned.exchange(true);
  if (fatal && !again) {
    // An error here changes nothing: the image is not written to any more.
    if (geometry.version >= 3) {
      auto marking = set_incompatible(incompatible::kCorrupt, true);
      auto marked = co_await marking;
      static_cast<void>(marked);
    }
  }
  Error error(EIO, "image is corrupt: " + what);
  co_return again ? error.as(ErrorKind::kGivenUp) : error;
}

Task<Error> Core::overlap(std::uint64_t cluster) {
  // Finding the name takes a walk through the tables: only when it will be told.
  const std::string_view name = reported.load() ? "metadata" : metadata_name(cluster);
  return corruption(fmt::format("Preventing invalid write on metadata (overlaps with {})", name),
                    true);
}

}  // namespace platter::qcow2

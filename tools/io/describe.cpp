// The commands info, alloc and map.
#include "block/node/registry.h"
#include "tools/img/format.h"
#include "tools/io/session.h"

namespace platter::io_tool {
namespace {

// The piece at `offset`, and whether the image itself, not a backing image, holds it.
struct Piece {
  std::uint64_t length = 0;
  bool allocated = false;
};

Task<Result<Piece>> piece_at(BlockNode& node, std::uint64_t offset, std::uint64_t length) {
  auto extent = co_await chain_extent(node, node.skip_filters().backing(), offset, length, true);
  PLATTER_CO_TRY(extent);
  co_return Piece{.length = extent->length, .allocated = extent->present};
}

void print_area(std::uint64_t offset, const Piece& piece) {
  print("{} ({:#x}) bytes {} at offset {} ({:#x})\n", size_text(static_cast<double>(piece.length)),
        piece.length, piece.allocated ? "    allocated" : "not allocated",
        size_text(static_cast<double>(offset)), offset);
}

}  // namespace

Task<bool> run_info(Session& session, Arguments) {
  // -C lays a filter over the image; it is the image that is asked about.
  BlockNode& top = session.node();
  BlockNode& node = top.driver_name() == "copy-on-read" ? top.skip_filters() : top;
  const FormatInfo info = node.driver().info();
  print("format name: {}\n", node.driver_name());
  // A driver is named once as the format and once as the protocol that it is.
  if (node.type().protocol) print("format name: {}\n", node.driver_name());
  print("cluster size: {}\n", size_text(static_cast<double>(info.cluster_size)));
  print("vm state offset: {}\n", size_text(static_cast<double>(info.vm_state_offset)));
  if (!info.specific.empty()) {
    print("Format specific information:\n{}", img::fields_text(info.specific, 1));
  }
  co_return true;
}

Task<bool> run_alloc(Session& session, Arguments arguments) {
  const std::optional<std::uint64_t> start = read_number(arguments.words[1]);
  if (!start) co_return false;
  std::optional<std::uint64_t> wanted = kSector;
  if (arguments.count == 3) wanted = read_number(arguments.words[2]);
  if (!wanted) co_return false;
  BlockNode& node = session.node();
  const std::uint64_t size = node.size();
  const std::uint64_t length = *start < size ? std::min(*wanted, size - *start) : 0;
  std::uint64_t allocated = 0;
  for (std::uint64_t done = 0; done < length;) {
    auto piece = co_await piece_at(node, *start + done, length - done);
    if (!piece) {
      print_failure("is_allocated", piece.error());
      co_return false;
    }
    if (piece->allocated) allocated += piece->length;
    done += piece->length;
  }
  print("{}/{} bytes allocated at offset {}\n", allocated, length,
        size_text(static_cast<double>(*start)));
  co_return true;
}

Task<bool> run_map(Session& session, Arguments) {
  BlockNode& node = session.node();
  const std::uint64_t size = node.size();
  std::uint64_t start = 0;
  Piece area;
  for (std::uint64_t offset = 0; offset < size;) {
    auto piece = co_await piece_at(node, offset, size - offset);
    if (!piece) {
      session.complain(
          Error::from_errno(piece.error().code()).in("Failed to get allocation status"));
      co_return false;
    }
    if (area.length != 0 && piece->allocated != area.allocated) {
      print_area(start, area);
      start = offset;
      area.length = 0;
    }
    area.allocated = piece->allocated;
    area.length += piece->length;
    offset += piece->length;
  }
  if (area.length != 0) print_area(start, area);
  co_return true;
}

}  // namespace platter::io_tool

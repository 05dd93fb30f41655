#include "unit/node/overlay_driver.h"

#include <array>
#include <cstring>

#include "block/adapters/memory.h"
#include "block/base/bytes.h"

namespace platter::testing {

Task<Result<void>> OverlayDriver::do_read(std::uint64_t offset, IoVec iov, ReadFlags) {
  for (std::uint64_t done = 0; done < iov.size(); done += kBlock) {
    const std::uint64_t at = offset + done;
    const IoVec piece = iov.slice(done, kBlock);
    if (present_.contains(at / kBlock)) {
      auto read = co_await file_->read(kHeader + at, piece);
      PLATTER_CO_TRY(read);
    } else if (backing_ && at < backing_->size()) {
      const std::uint64_t n = std::min(kBlock, backing_->size() - at);
      piece.from(n).fill(std::byte{0});
      auto read = co_await backing_->read(at, piece.first(n));
      PLATTER_CO_TRY(read);
    } else {
      piece.fill(std::byte{0});
    }
  }
  co_return {};
}

Task<Result<void>> OverlayDriver::do_write(std::uint64_t offset, IoVec iov, WriteFlags) {
  auto written = co_await file_->write(kHeader + offset, iov);
  PLATTER_CO_TRY(written);
  for (std::uint64_t done = 0; done < iov.size(); done += kBlock)
    present_.insert((offset + done) / kBlock);
  co_return {};
}

Task<Result<Extent>> OverlayDriver::do_extent(std::uint64_t offset, std::uint64_t length) {
  const bool here = present_.contains(offset / kBlock);
  std::uint64_t end = offset / kBlock * kBlock;
  while (end < offset + length && present_.contains(end / kBlock) == here) end += kBlock;
  Extent extent{.offset = offset, .length = std::min(length, end - offset)};
  if (here) {
    extent.node = file_.get();
    extent.host_offset = kHeader + offset;
  } else {
    extent.kind = ExtentKind::kUnallocated;
  }
  co_return extent;
}

namespace {

Task<Result<std::unique_ptr<Driver>>> open_overlay(OpenContext& context) {
  const Permissions rights =
      context.flags.read_only ? Permissions::reader() : Permissions::writer();
  auto file = co_await context.open_child("file", rights);
  PLATTER_CO_TRY(file);
  std::array<std::byte, 2048> head;
  auto read = co_await (*file)->read(0, IoVec(std::span(head)));
  PLATTER_CO_TRY(read);
  if (std::memcmp(head.data(), "TESTOVL\n", 8) != 0)
    co_return fail(EINVAL, "Image is not in testovl format");
  const auto text = [&](std::size_t at) {
    return std::string(reinterpret_cast<const char*>(head.data() + at));
  };
  auto backing = co_await context.open_backing(text(16), text(1024));
  PLATTER_CO_TRY(backing);
  co_return std::make_unique<OverlayDriver>(std::move(*file), std::move(*backing),
                                            load_le<std::uint64_t>(head.data() + 8), text(16));
}

int probe_overlay(std::span<const std::byte> head, std::string_view) {
  return head.size() >= 8 && std::memcmp(head.data(), "TESTOVL\n", 8) == 0 ? 100 : 0;
}

DriverType overlay_type() {
  return {
      .name = "testovl", .supports_backing = true, .probe = probe_overlay, .open = open_overlay};
}

const RegisterDriver registered{overlay_type()};

}  // namespace

void make_overlay_image(const std::string& name, std::uint64_t size, std::string_view backing,
                        std::string_view format) {
  std::array<std::byte, 2048> head{};
  std::memcpy(head.data(), "TESTOVL\n", 8);
  store_le(head.data() + 8, size);
  std::memcpy(head.data() + 16, backing.data(), backing.size());
  std::memcpy(head.data() + 1024, format.data(), format.size());
  make_memory_disk(name, OverlayDriver::kHeader)->write(0, IoVec(std::span(head)));
}

Task<Result<NodePtr>> make_overlay_node(std::string node_name, NodePtr file, NodePtr backing,
                                        std::uint64_t size) {
  static const DriverType type = overlay_type();
  auto file_edge = co_await Edge::attach(std::move(file), "node '" + node_name + "' as 'file'",
                                         Permissions::writer());
  PLATTER_CO_TRY(file_edge);
  Edge backing_edge;
  if (backing) {
    auto attached = co_await Edge::attach(
        std::move(backing), "node '" + node_name + "' as 'backing'", Permissions::reader());
    PLATTER_CO_TRY(attached);
    backing_edge = std::move(*attached);
  }
  auto driver =
      std::make_unique<OverlayDriver>(std::move(*file_edge), std::move(backing_edge), size, "");
  co_return BlockNode::create(type, std::move(driver), std::move(node_name), "",
                              OpenFlags{.read_only = false});
}

}  // namespace platter::testing

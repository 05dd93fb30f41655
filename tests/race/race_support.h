// Helpers of the race tests: an image on a disk in memory with fault points in between.
#pragma once

#include <functional>

#include "block/filters/fault.h"
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::testing {

struct Watched {
  Edge node;
  FaultPoints* points = nullptr;
  Qcow2Driver& driver() const { return static_cast<Qcow2Driver&>(node->driver()); }
};

inline Task<Result<Watched>> open_watched(const MemoryImage& image, std::string_view more = {}) {
  OpenRequest request;
  request.filename = "blkdebug::" + image.filename();
  request.format = "qcow2";
  request.options = options(more);
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto edge = co_await open_node(std::move(request));
  PLATTER_CO_TRY(edge);
  Watched watched;
  watched.node = std::move(*edge);
  watched.points = fault_points_of(*watched.node);
  co_return std::move(watched);
}

inline std::vector<std::byte> bytes(std::size_t size, int value) { return filled(size, value); }

// No errors; gives the number of leaks. Says what is wrong.
inline Task<std::uint64_t> leaks_of(BlockNode& node, bool report = true) {
  CheckRequest request;
  std::string lines;
  request.report = [&](std::string_view line) { lines += std::string(line) + "\n"; };
  auto checked = co_await node.driver().checker()->check(request);
  EXPECT_TRUE(checked) << (checked ? "" : checked.error().message());
  if (!checked) co_return ~std::uint64_t{0};
  EXPECT_EQ(checked->corruptions, 0u) << (report ? lines : "");
  EXPECT_EQ(checked->check_errors, 0u) << lines;
  co_return checked->leaks;
}

// What an image is made and opened with for a scene, and how many leaks are left when it ends.
struct Setting {
  std::uint64_t size = 1 << 20;
  std::string_view create = {};
  std::string_view open = {};
  std::uint64_t leaks = 0;
};
using Scene = std::function<Task<void>(Watched&)>;

inline Task<void> act_out_on(const MemoryImage& image, Setting setting, const Scene& scene) {
  auto opened = co_await open_watched(image, setting.open);
  CO_OK(opened);
  auto acting = scene(*opened);
  co_await acting;
  std::uint64_t leaks = co_await leaks_of(*opened->node);
  EXPECT_EQ(leaks, setting.leaks);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
  auto again = co_await image.open();
  CO_OK(again);
  leaks = co_await leaks_of(**again);
  EXPECT_EQ(leaks, setting.leaks) << "once it is closed";
  closed = co_await again->detach();
  CO_OK(closed);
}

// Plays the scene on an image of its own. At its end a check finds no error, open or closed.
inline void act_out(Setting setting, const Scene& scene) {
  MemoryImage image("scene", setting.size, setting.create);
  run([&] { return act_out_on(image, setting, scene); });
}

}  // namespace platter::qcow2::testing

// Helpers for tests that make and look at images in memory.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block/adapters/memory.h"
#include "block/base/bytes.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/storage_io.h"
#include "unit/node/support.h"

namespace platter::qcow2::testing {

using platter::testing::kMiB;
using platter::testing::run;

struct Image {
  NodePtr node;
  Header header;
};

inline Image make_image(std::string_view options, std::uint64_t size) {
  Options parsed = *Options::parse_keyval(options);
  auto plan = plan_create(parsed, size);
  EXPECT_OK(plan);
  Image image{make_memory_node("image", 0), plan->header};
  auto written = run([&] { return write_image(*image.node, *plan); });
  EXPECT_OK(written);
  return image;
}

inline void poke(Image& image, std::uint64_t offset, std::uint64_t value) {
  std::byte bytes[8];
  store_be(bytes, value);
  auto written = run([&] { return image.node->write(offset, IoVec::of_const(bytes)); });
  EXPECT_OK(written);
}
inline void poke16(Image& image, std::uint64_t offset, unsigned value) {
  std::byte bytes[2];
  store_be(bytes, static_cast<std::uint16_t>(value));
  auto written = run([&] { return image.node->write(offset, IoVec::of_const(bytes)); });
  EXPECT_OK(written);
}
inline std::uint64_t peek(Image& image, std::uint64_t offset) {
  std::byte bytes[8];
  auto read = run([&] { return read_padded(*image.node, offset, bytes); });
  EXPECT_OK(read);
  return load_be<std::uint64_t>(bytes);
}

struct Checked {
  Result<CheckResult> result;
  std::vector<std::string> lines;

  std::string text() const {
    std::string all;
    for (const std::string& line : lines) all += line + "\n";
    return all;
  }
};

inline Checked check(Image& image, bool fix_leaks = false, bool fix_errors = false) {
  std::vector<std::string> lines;
  CheckRequest request{.fix_leaks = fix_leaks, .fix_errors = fix_errors, .report = {}};
  request.report = [&](std::string_view line) { lines.emplace_back(line); };
  auto result = run([&] { return check_image(*image.node, image.header, request); });
  return {std::move(result), std::move(lines)};
}

}  // namespace platter::qcow2::testing

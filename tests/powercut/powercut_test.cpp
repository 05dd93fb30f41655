// C10, power cuts: every operation is recorded below the image, and then the image is opened in the
// states in which a power cut at any moment could have left it. Each must open, have no error but
// leaks, hold all that had been flushed, and show no range's bytes in another.
//
// PLATTER_SEED: of the samples. PLATTER_STATES: how many states of each operation, about.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "powercut/rig.h"

namespace platter::powercut {
namespace {

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* given = std::getenv(name);
  return given ? std::strtoull(given, nullptr, 10) : otherwise;
}

// The program's sum.
class Sum : public ::testing::Environment {
 public:
  void TearDown() override {
    if (states != 0) fmt::print("{} states of a power cut in all\n", states);
  }
  static inline std::uint64_t states = 0;
};
const auto* const environment =
    ::testing::AddGlobalTestEnvironment(std::make_unique<Sum>().release());

// The random operation is another one with each seed; a short run has no time for several.
unsigned seeds_of(const Operation& operation, std::uint64_t states) {
  return std::string_view(operation.name) == "Mixed" && states >= 1000 ? 8 : 1;
}

class C10 : public ::testing::TestWithParam<Operation> {};

TEST_P(C10, APowerCutLosesNothing) {
  const Operation& operation = GetParam();
  const auto seed = static_cast<unsigned>(number("PLATTER_SEED", 20250601));
  const std::uint64_t most = number("PLATTER_STATES", PLATTER_STATES_DEFAULT) / operation.cost;
  std::uint64_t states = 0;
  unsigned shapes = 0;
  for (const Shape& shape : all_shapes()) shapes += !operation.fits || operation.fits(shape);
  for (unsigned i = 0; i < seeds_of(operation, most) && !HasFailure(); ++i) {
    for (const Shape& shape : all_shapes()) {
      if (operation.fits && !operation.fits(shape)) continue;
      const auto recording = record(operation, shape, seed + i);
      ASSERT_TRUE(recording) << shape.name << ": " << recording.error().message();
      states +=
          try_states(operation, shape, *recording, {.states = most / shapes, .seed = seed + i});
      if (HasFailure()) break;
    }
  }
  Sum::states += states;
  fmt::print("{}: {} states\n", operation.name, states);
  std::fflush(stdout);
}

INSTANTIATE_TEST_SUITE_P(Operations, C10,
                         ::testing::ValuesIn(all_operations().begin(), all_operations().end()),
                         [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace platter::powercut

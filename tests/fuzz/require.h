// What a fuzz target checks: a promise of the code that does not hold ends the run.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace platter {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

}  // namespace platter

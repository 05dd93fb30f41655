// Arithmetic on numbers that came from outside: overflow is an answer, never a wrap.
// Threads: pure functions.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>

namespace platter {

template <std::unsigned_integral T>
constexpr std::optional<T> checked_add(T a, T b) {
  T r;
  return __builtin_add_overflow(a, b, &r) ? std::nullopt : std::optional<T>(r);
}
template <std::unsigned_integral T>
constexpr std::optional<T> checked_mul(T a, T b) {
  T r;
  return __builtin_mul_overflow(a, b, &r) ? std::nullopt : std::optional<T>(r);
}

// Rounding to a multiple of `unit`, which is a power of two. align_up requires that the result
// fits.
template <std::unsigned_integral T>
constexpr T align_down(T value, std::type_identity_t<T> unit) {
  return value & ~(unit - 1);
}
template <std::unsigned_integral T>
constexpr T align_up(T value, std::type_identity_t<T> unit) {
  return (value + (unit - 1)) & ~(unit - 1);
}
template <std::unsigned_integral T>
constexpr bool is_aligned(T value, std::type_identity_t<T> unit) {
  return (value & (unit - 1)) == 0;
}
// Division rounding up; `unit` is not zero. Does not overflow.
template <std::unsigned_integral T>
constexpr T div_round_up(T value, std::type_identity_t<T> unit) {
  return value / unit + (value % unit != 0);
}
template <std::unsigned_integral T>
constexpr bool is_power_of_two(T value) {
  return value != 0 && (value & (value - 1)) == 0;
}

// True when [offset, offset + length) lies within [0, limit). Never wraps.
constexpr bool range_within(std::uint64_t offset, std::uint64_t length, std::uint64_t limit) {
  return offset <= limit && length <= limit - offset;
}

// True when [a, a + a_length) and [b, b + b_length) share a byte; neither range wraps.
constexpr bool ranges_overlap(std::uint64_t a, std::uint64_t a_length, std::uint64_t b,
                              std::uint64_t b_length) {
  return a_length != 0 && b_length != 0 && a < b + b_length && b < a + a_length;
}

}  // namespace platter

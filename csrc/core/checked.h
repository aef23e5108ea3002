// Arithmetic on sizes that come from files or callers: the one place where overflow is looked for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowrank {

// Both return false on overflow and leave *out unspecified.
[[nodiscard]] inline bool checked_add(size_t a, size_t b, size_t* out) {
  return !__builtin_add_overflow(a, b, out);
}
[[nodiscard]] inline bool checked_mul(size_t a, size_t b, size_t* out) {
  return !__builtin_mul_overflow(a, b, out);
}

// Rounds up to a multiple of `alignment`, a power of two.
[[nodiscard]] inline bool checked_align(size_t a, size_t alignment, size_t* out) {
  size_t sum;
  if (!checked_add(a, alignment - 1, &sum)) return false;
  *out = sum & ~(alignment - 1);
  return true;
}

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
constexpr size_t round_up(size_t a, size_t multiple) { return ceil_div(a, multiple) * multiple; }

}  // namespace lowrank

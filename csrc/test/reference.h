// What the native tests share: seeded random input, comparison with a double-precision reference,
// and a walk over every level and thread count. A test is a program: it prints `ok` or its
// failures, and exits non-zero on any.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/cpu_level.h"
#include "core/half.h"
#include "amx_trap.h"
#include "ops/cpu/kernels.h"

namespace lowrank::test {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

// splitmix64: small, seedable, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool coin() { return next() & 1; }
  float normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return static_cast<float>(radius * std::cos(6.283185307179586 * uniform()));
  }
  std::vector<float> normals(size_t n, float scale = 1) {
    std::vector<float> values(n);
    for (float& value : values) value = scale * normal();
    return values;
  }

 private:
  uint64_t state_;
};

// Values as bf16, and what bf16 makes of them.
inline std::vector<uint16_t> halves_of(const std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (float value : values) halves.push_back(f32_to_bf16(value));
  return halves;
}
inline std::vector<float> floats_of(const std::vector<uint16_t>& halves) {
  std::vector<float> values;
  for (uint16_t half : halves) values.push_back(bf16_to_f32(half));
  return values;
}

// LOWRANK_TEST_SEED, or a fixed one; every failure names it.
inline uint64_t test_seed() {
  const char* text = std::getenv("LOWRANK_TEST_SEED");
  return text == nullptr ? 20240607 : std::strtoull(text, nullptr, 10);
}

inline int& failures() {
  static int count = 0;
  return count;
}

// Counts a failure and prints the first few.
[[gnu::format(printf, 2, 3)]] inline bool expect(bool holds, const char* format, ...) {
  if (holds) return true;
  if (++failures() <= 20) {
    va_list args;
    va_start(args, format);
    std::fprintf(stderr, "FAILED (seed %llu): ", static_cast<unsigned long long>(test_seed()));
    std::vfprintf(stderr, format, args);
    std::fputc('\n', stderr);
    va_end(args);
  }
  return false;
}

inline bool expect_ok(const Status& status, const char* what) {
  return expect(status.ok(), "%s: %s", what, status.message().c_str());
}

inline bool expect_code(const Status& status, Code code, const char* what) {
  return expect(status.code() == code, "%s: %s instead of %s", what, code_name(status.code()),
                code_name(code));
}

// |got - want| <= tolerance, where NaN never passes.
inline bool expect_near(double got, double want, double tolerance, const char* what, size_t index) {
  return expect(std::fabs(got - want) <= tolerance,
                "%s [%zu]: %.9g instead of %.9g (tolerance %.3g)", what, index, got, want,
                tolerance);
}

// Every element within tolerance[i]; stops at the first that is not.
inline bool expect_all_near(const float* got, const std::vector<double>& want,
                            const std::vector<double>& tolerance, const char* what) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (!expect_near(got[i], want[i], tolerance[i], what, i)) return false;
  }
  return true;
}

// Every element within `relative` of the largest magnitude wanted (plus `absolute`).
inline bool expect_all_near(const float* got, const std::vector<double>& want, double relative,
                            const char* what, double absolute = 1e-30) {
  double largest = 0;
  for (double value : want) largest = std::fmax(largest, std::fabs(value));
  return expect_all_near(got, want, std::vector<double>(want.size(), relative * largest + absolute),
                         what);
}

// The levels that this machine runs, and amx where its instructions can be run by a handler.
inline std::vector<CpuLevel> tested_levels() {
  std::vector<CpuLevel> levels = available_levels();
  if (trap_tile_instructions()) levels.push_back(CpuLevel::kAmx);
  return levels;
}

// f(Context&, const char* level) with `threads` threads, for every level that this machine can test.
template <class F>
void for_each_level(size_t threads, F&& f) {
  ThreadPool pool(threads);
  for (CpuLevel level : tested_levels()) {
    Context context{pool, kernels_for(level)};
    f(context, level_name(level));
    expect(threads_with_tiles() == 0, "%s: threads were left with tiles configured", level_name(level));
  }
}

inline int finish() {
  if (failures() == 0) {
    std::puts("ok");
    return 0;
  }
  std::fprintf(stderr, "%d failures (LOWRANK_TEST_SEED=%llu)\n", failures(),
               static_cast<unsigned long long>(test_seed()));
  return 1;
}

}  // namespace lowrank::test

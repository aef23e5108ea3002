#include "ops/cpu/peak_kernels.h"

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

// More chains than latency (4 to 5 cycles) times pipes (2), few enough for 16 registers.
constexpr size_t kChains = 12;

double multiply_add(size_t iterations) {
  V::T sums[kChains];
  for (size_t j = 0; j < kChains; ++j) sums[j] = V::set(static_cast<float>(j));
  V::T x = V::set(0.5f), y = V::set(0.25f);
  for (size_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (size_t j = 0; j < kChains; ++j) sums[j] = V::fma(sums[j], x, y);
  }
  V::T total = V::zero();
  for (size_t j = 0; j < kChains; ++j) total = V::add(total, sums[j]);
  volatile float sink = V::sum(total);
  (void)sink;
  return 2.0 * static_cast<double>(iterations) * kChains * V::kWidth;
}

float read(const float* data, size_t n) {
  V::T sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for (size_t i = 0; i < n; i += 4 * V::kWidth) {
    for (size_t j = 0; j < 4; ++j) sums[j] = V::add(sums[j], V::load(data + i + j * V::kWidth));
  }
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

}  // namespace

extern const PeakKernels kPeakKernels;
const PeakKernels kPeakKernels = {multiply_add, read};

}  // namespace lowrank::LR_ISA

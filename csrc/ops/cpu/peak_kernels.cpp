#include "ops/cpu/peak_kernels.h"

#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

// More chains than latency (4 to 5 cycles) times pipes (2), few enough for 16 registers.
constexpr size_t kChains = 12;

// sum = step(sum) on every chain; `flop` of a step in one lane. Returns the flop done.
template <class Step>
LR_INLINE double run_chains(size_t iterations, double flop, const Step& step) {
  V::T sums[kChains];
  for (size_t j = 0; j < kChains; ++j) sums[j] = V::set(static_cast<float>(j));
  for (size_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (size_t j = 0; j < kChains; ++j) sums[j] = step(sums[j]);
  }
  V::T total = V::zero();
  for (size_t j = 0; j < kChains; ++j) total = V::add(total, sums[j]);
  volatile float sink = V::sum(total);
  (void)sink;
  return flop * static_cast<double>(iterations) * kChains * V::kWidth;
}

double multiply_add(size_t iterations) {
  const V::T x = V::set(0.5f), y = V::set(0.25f);
  return run_chains(iterations, 2, [&](V::T sum) __attribute__((always_inline)) {
    return V::fma(sum, x, y);
  });
}

#if defined(__AMX_BF16__)
double multiply_add_bf16(size_t iterations) {
  constexpr size_t kProducts = 4, kFlopOfProduct = 2 * 16 * 16 * 32;
  const TileScope tiles;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_zero<4>();
  tile_zero<5>();
  tile_zero<6>();
  tile_zero<7>();
  // A product takes as long as eight vectors' worth of FMA.
  iterations /= 8;
  for (size_t i = 0; i < iterations; ++i) {
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  }
  return static_cast<double>(iterations) * kProducts * kFlopOfProduct;
}
#elif defined(__AVX512BF16__)
double multiply_add_bf16(size_t iterations) {
  const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f00), y = (__m512bh)_mm512_set1_epi16(0x3e80);
  return run_chains(iterations, 4, [&](V::T sum) __attribute__((always_inline)) {
    return _mm512_dpbf16_ps(sum, x, y);
  });
}
#else
constexpr double (*multiply_add_bf16)(size_t) = nullptr;
#endif

float read(const float* data, size_t n) {
  V::T sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for (size_t i = 0; i < n; i += 4 * V::kWidth) {
    for (size_t j = 0; j < 4; ++j) sums[j] = V::add(sums[j], V::load(data + i + j * V::kWidth));
  }
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

void write(float* data, size_t n) {
  const V::T one = V::set(1.0f);
  for (size_t i = 0; i < n; i += V::kWidth) V::store(data + i, one);
}

void update(float* data, size_t n) {
  const V::T one = V::set(1.0f);
  for (size_t i = 0; i < n; i += V::kWidth) V::store(data + i, V::add(V::load(data + i), one));
}

}  // namespace

extern const PeakKernels kPeakKernels;
const PeakKernels kPeakKernels = {multiply_add, multiply_add_bf16, read, write, update};

}  // namespace lowrank::LR_ISA

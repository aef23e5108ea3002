// The product that all of attention runs on: C[M, N] (+)= A[M, K] · B[K, N] over small panels in L1 and L2. A's elements are broadcast, N
// lies in lanes. M is a multiple of kProductRows and N of a vector: whoever packs the panels pads them with zeros, so there are no edges here.
// An element of A and B is an fp32 number, or 32 bits that hold a pair of bf16 which are consecutive along K.
// Bound by FMA; registers hold kProductRows x kProductVectors accumulators.
#pragma once

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t kProductRows = 8, kProductVectors = 3;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr size_t kProductRows = 4, kProductVectors = 3;  // 12 of 16; 6 x 2 would pad 64 to 66
#else
constexpr size_t kProductRows = 4, kProductVectors = 2;
#endif

// A[m][k] lies at a[m * stride + k] or at a[k * stride + m].
enum class Order { kRows, kColumns };
// C = AB, C += AB, or C = C · decay[n] + AB.
enum class Update { kSet, kAdd, kDecay };

// What an element of A and one of B add to a sum.
struct Numbers {
  LR_INLINE V::T add(V::T a, V::T b, V::T sum) { return V::fma(a, b, sum); }
};
#if defined(__AVX512BF16__)
struct Pairs {
  LR_INLINE V::T add(V::T a, V::T b, V::T sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};
#endif

struct Product {
  size_t m, vectors, k;
  const float* a;
  size_t a_stride;
  const float* b;
  size_t b_stride;
  float* c;
  size_t c_stride;
  const float* decay = nullptr;  // [N] for kDecay
};

// sum[i][j] = row m + i of A times vector j of the columns from n.
template <class Element, Order kOrder, size_t kVectors>
LR_INLINE void multiply(const Product& p, size_t m, size_t n, V::T (&sum)[kProductRows][kVectors]) {
  constexpr size_t kRows = kProductRows;
#pragma GCC unroll 8
  for (size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (size_t j = 0; j < kVectors; ++j) sum[i][j] = V::zero();
  }
  const float* a = kOrder == Order::kRows ? p.a + m * p.a_stride : p.a + m;
  const float* b = p.b + n;
  for (size_t k = 0; k < p.k; ++k, b += p.b_stride, a += kOrder == Order::kRows ? 1 : p.a_stride) {
    V::T right[kVectors];
#pragma GCC unroll 4
    for (size_t j = 0; j < kVectors; ++j) right[j] = V::load(b + j * V::kWidth);
#pragma GCC unroll 8
    for (size_t i = 0; i < kRows; ++i) {
      const V::T left = V::set(kOrder == Order::kRows ? a[i * p.a_stride] : a[i]);
#pragma GCC unroll 4
      for (size_t j = 0; j < kVectors; ++j) sum[i][j] = Element::add(left, right[j], sum[i][j]);
    }
  }
}

template <class Element, Order kOrder, Update kUpdate, size_t kVectors>
LR_INLINE void product_panel(const Product& p, size_t n) {
  constexpr size_t kRows = kProductRows;
  for (size_t m = 0; m < p.m; m += kRows) {
    V::T sum[kRows][kVectors];
    multiply<Element, kOrder>(p, m, n, sum);
#pragma GCC unroll 8
    for (size_t i = 0; i < kRows; ++i) {
      float* c = p.c + (m + i) * p.c_stride + n;
#pragma GCC unroll 4
      for (size_t j = 0; j < kVectors; ++j, c += V::kWidth) {
        if (kUpdate == Update::kSet) V::store(c, sum[i][j]);
        if (kUpdate == Update::kAdd) V::store(c, V::add(V::load(c), sum[i][j]));
        if (kUpdate == Update::kDecay) {
          V::store(c, V::fma(V::load(c), V::load(p.decay + n + j * V::kWidth), sum[i][j]));
        }
      }
    }
  }
}

template <size_t kCount>
struct Count {
  static constexpr size_t kValue = kCount;
};

// body(Count<width>, first vector) for each panel of at most kProductVectors: 4 vectors are 2 + 2, not 3 + 1.
template <class Body>
LR_INLINE void for_each_panel(size_t vectors, const Body& body) {
  for (size_t done = 0; done < vectors;) {
    const size_t left = vectors - done;
    const size_t panels = (left + kProductVectors - 1) / kProductVectors;
    const size_t width = (left + panels - 1) / panels;
    if (width == 1) body(Count<1>{}, done);
    if (width == 2) body(Count<2>{}, done);
    if (width == 3) body(Count<3>{}, done);
    done += width;
  }
}

template <class Element, Order kOrder, Update kUpdate>
void product(const Product& p) {
  for_each_panel(p.vectors, [&](auto width, size_t vector) __attribute__((always_inline)) {
    product_panel<Element, kOrder, kUpdate, decltype(width)::kValue>(p, vector * V::kWidth);
  });
}

}  // namespace
}  // namespace lowrank::LR_ISA

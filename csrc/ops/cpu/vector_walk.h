// Walking arrays vector by vector: whole vectors, then one masked vector of what is left. Included only by *_kernels.cpp.
#pragma once

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

// How a kernel's body touches memory: whole vectors, then the last `n` lanes.
// An element is a float, or a uint16_t that holds bf16.
struct Whole {
  template <class E>
  LR_INLINE V::T load(const E* p, size_t) {
    return LR_ISA::load(p);
  }
  template <class E>
  LR_INLINE void store(E* p, V::T x, size_t) {
    LR_ISA::store(p, x);
  }
};
struct Part {
  template <class E>
  LR_INLINE V::T load(const E* p, size_t n) {
    return LR_ISA::load_n(p, n);
  }
  template <class E>
  LR_INLINE void store(E* p, V::T x, size_t n) {
    LR_ISA::store_n(p, x, n);
  }
};

// body(access, i, n) for every vector of [0, n).
template <class Body>
LR_INLINE void for_each_vector(size_t n, const Body& body) {
  size_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) body(Whole{}, i, V::kWidth);
  if (i < n) body(Part{}, i, n - i);
}

}  // namespace
}  // namespace lowrank::LR_ISA

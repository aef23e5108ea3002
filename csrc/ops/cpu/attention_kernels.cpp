#include "ops/cpu/attention_kernels.h"

#include "ops/cpu/attention_backward.h"
#include "ops/cpu/attention_backward_bf16.h"
#include "ops/cpu/attention_decode.h"
#include "ops/cpu/attention_forward.h"
#include "ops/cpu/attention_forward_bf16.h"
#include "ops/cpu/vector_walk.h"

namespace lowrank::LR_ISA {
namespace {

size_t scratch_floats(size_t head_dim) { return larger(forward_scratch(head_dim), backward_scratch(head_dim)); }

template <class A, class B>
LR_INLINE float dot_of(const A* a, const B* b, size_t length) {
  V::T sum = V::zero();
  for (size_t d = 0; d < length; d += V::kWidth) {
    const size_t n = smaller(V::kWidth, length - d);
    sum = V::fma(load_n(a + d, n), load_n(b + d, n), sum);
  }
  return V::sum(sum);
}

template <class A, class B>
LR_INLINE void dots(const ConstRows& a, const ConstRows& b, size_t tokens, size_t heads, size_t head_dim, size_t out_stride, float* out) {
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      const size_t column = h * head_dim;
      out[t * out_stride + h] = dot_of((const A*)a.at(t, column).data, (const B*)b.at(t, column).data, head_dim);
    }
  }
}

void head_dots(const ConstRows& a, const ConstRows& b, size_t tokens, size_t heads, size_t head_dim, size_t out_stride, float* out) {
  if (a.bf16() && b.bf16()) return dots<uint16_t, uint16_t>(a, b, tokens, heads, head_dim, out_stride, out);
  if (a.bf16()) return dots<uint16_t, float>(a, b, tokens, heads, head_dim, out_stride, out);
  if (b.bf16()) return dots<float, uint16_t>(a, b, tokens, heads, head_dim, out_stride, out);
  dots<float, float>(a, b, tokens, heads, head_dim, out_stride, out);
}

// Bound by memory: each element is read and written once.
template <class E>
LR_INLINE void rotate_heads(E* x, size_t heads, size_t head_dim, size_t rotary_dim, const float* cos, const float* sin, bool inverse) {
  const size_t half = rotary_dim / 2;
  const V::T sign = V::set(inverse ? -1.0f : 1.0f);
  for (size_t h = 0; h < heads; ++h, x += head_dim) {
    for_each_vector(half, [&](auto access, size_t i, size_t n) {
      const V::T c = access.load(cos + i, n), s = V::mul(sign, access.load(sin + i, n));
      const V::T low = access.load(x + i, n), high = access.load(x + half + i, n);
      access.store(x + i, V::fnma(high, s, V::mul(low, c)), n);
      access.store(x + half + i, V::fma(low, s, V::mul(high, c)), n);
    });
  }
}

void rope_row(void* x, bool bf16, size_t heads, size_t head_dim, size_t rotary_dim, const float* cos, const float* sin, bool inverse) {
  if (bf16) {
    rotate_heads((uint16_t*)x, heads, head_dim, rotary_dim, cos, sin, inverse);
  } else {
    rotate_heads((float*)x, heads, head_dim, rotary_dim, cos, sin, inverse);
  }
}

#if defined(__AVX512BF16__)
size_t pair_scratch_floats(size_t head_dim) { return larger(pair_forward_scratch(head_dim), pair_backward_scratch(head_dim)); }
constexpr AttentionProducts kPairProducts = {pair_scratch_floats, pair_forward, pair_backward};
constexpr const AttentionProducts* kBf16Products = &kPairProducts;
#else
constexpr const AttentionProducts* kBf16Products = nullptr;
#endif

}  // namespace

extern const AttentionKernels kAttentionKernels;
const AttentionKernels kAttentionKernels = {{scratch_floats, forward, backward}, kBf16Products, decode_scratch, decode, head_dots, rope_row};

}  // namespace lowrank::LR_ISA

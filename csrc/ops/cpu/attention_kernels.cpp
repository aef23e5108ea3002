#include "ops/cpu/attention_kernels.h"

#include "ops/cpu/attention_backward.h"
#include "ops/cpu/attention_decode.h"
#include "ops/cpu/attention_forward.h"

namespace lowrank::LR_ISA {
namespace {

size_t scratch_floats(size_t head_dim, size_t group) {
  return larger(decode_scratch(head_dim, group), larger(forward_scratch(head_dim), backward_scratch(head_dim)));
}

void head_dots(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t tokens, size_t heads, size_t head_dim,
               size_t out_stride, float* out) {
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      const float *x = a + t * a_stride + h * head_dim, *y = b + t * b_stride + h * head_dim;
      V::T sum = V::zero();
      size_t d = 0;
      for (; d + V::kWidth <= head_dim; d += V::kWidth) sum = V::fma(V::load(x + d), V::load(y + d), sum);
      if (d < head_dim) sum = V::fma(V::load_n(x + d, head_dim - d), V::load_n(y + d, head_dim - d), sum);
      out[t * out_stride + h] = V::sum(sum);
    }
  }
}

// Bound by memory: each element is read and written once.
template <class E>
LR_INLINE void rotate_heads(E* x, size_t heads, size_t head_dim, size_t rotary_dim, const float* cos, const float* sin, bool inverse) {
  const size_t half = rotary_dim / 2;
  const V::T sign = V::set(inverse ? -1.0f : 1.0f);
  for (size_t h = 0; h < heads; ++h, x += head_dim) {
    for (size_t i = 0; i < half; i += V::kWidth) {
      const size_t n = smaller(V::kWidth, half - i);
      const V::T c = V::load_n(cos + i, n), s = V::mul(sign, V::load_n(sin + i, n));
      const V::T low = load_n(x + i, n), high = load_n(x + half + i, n);
      store_n(x + i, V::fnma(high, s, V::mul(low, c)), n);
      store_n(x + half + i, V::fma(low, s, V::mul(high, c)), n);
    }
  }
}

void rope_row(void* x, bool bf16, size_t heads, size_t head_dim, size_t rotary_dim, const float* cos, const float* sin, bool inverse) {
  if (bf16) {
    rotate_heads((uint16_t*)x, heads, head_dim, rotary_dim, cos, sin, inverse);
  } else {
    rotate_heads((float*)x, heads, head_dim, rotary_dim, cos, sin, inverse);
  }
}

}  // namespace

extern const AttentionKernels kAttentionKernels;
const AttentionKernels kAttentionKernels = {scratch_floats, forward, backward, decode, head_dots, rope_row};

}  // namespace lowrank::LR_ISA

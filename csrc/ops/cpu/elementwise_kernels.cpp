// Norms, SwiGLU, dropout and sums: one pass over memory each, so the floor is bytes (SwiGLU
// and the softmax: one exp an element; dropout: a tenth of a Philox). Every kernel walks whole
// vectors and ends with one masked vector.
#include "ops/cpu/elementwise_kernels.h"

#include "ops/cpu/random_bits.h"
#include "ops/cpu/vector_walk.h"

namespace lowrank::LR_ISA {
namespace {

// Σ over [0, n) of term(access, i, n, sum so far), in four interleaved sums that hide the latency
// of the additions.
template <class Term>
LR_INLINE float sum_over_vectors(size_t n, const Term& term) {
  V::T sum0 = V::zero(), sum1 = V::zero(), sum2 = V::zero(), sum3 = V::zero();
  size_t i = 0;
  for (; i + 4 * V::kWidth <= n; i += 4 * V::kWidth) {
    sum0 = term(Whole{}, i, V::kWidth, sum0);
    sum1 = term(Whole{}, i + V::kWidth, V::kWidth, sum1);
    sum2 = term(Whole{}, i + 2 * V::kWidth, V::kWidth, sum2);
    sum3 = term(Whole{}, i + 3 * V::kWidth, V::kWidth, sum3);
  }
  for (; i + V::kWidth <= n; i += V::kWidth) sum0 = term(Whole{}, i, V::kWidth, sum0);
  if (i < n) sum1 = term(Part{}, i, n - i, sum1);
  return V::sum(V::add(V::add(sum0, sum1), V::add(sum2, sum3)));
}

// ── RMSNorm ──

template <class E>
LR_INLINE void norm_rows(const float* x, const float* w, float eps, size_t rows, size_t channels,
                         E* y, size_t y_stride, float* inv_rms) {
  for (size_t row = 0; row < rows; ++row, x += channels, y += y_stride) {
    const float squares =
        sum_over_vectors(channels, [&](auto access, size_t c, size_t n, V::T sum) {
          const V::T value = access.load(x + c, n);
          return V::fma(value, value, sum);
        });
    const float inverse = 1.0f / __builtin_sqrtf(squares / static_cast<float>(channels) + eps);
    inv_rms[row] = inverse;
    const V::T inverses = V::set(inverse);
    for_each_vector(channels, [&](auto access, size_t c, size_t n) {
      access.store(y + c, V::mul(access.load(w + c, n), V::mul(access.load(x + c, n), inverses)),
                   n);
    });
  }
}

void rmsnorm_forward(const float* x, const float* w, float eps, size_t rows, size_t channels,
                     void* y, size_t y_stride, bool bf16, float* inv_rms) {
  if (bf16) {
    norm_rows(x, w, eps, rows, channels, (uint16_t*)y, y_stride, inv_rms);
  } else {
    norm_rows(x, w, eps, rows, channels, (float*)y, y_stride, inv_rms);
  }
}

// dx = inv·(w·dy) - x · inv³/C · Σ w·dy·x
void rmsnorm_backward(const float* x, const float* w, const float* inv_rms, const float* dy,
                      size_t rows, size_t channels, float* dx, bool accumulate,
                      uint16_t* rounded) {
  for (size_t row = 0; row < rows; ++row, x += channels, dy += channels, dx += channels) {
    const float dot = sum_over_vectors(channels, [&](auto access, size_t c, size_t n, V::T sum) {
      return V::fma(V::mul(access.load(dy + c, n), access.load(w + c, n)), access.load(x + c, n),
                    sum);
    });
    const float inverse = inv_rms[row];
    const V::T inverses = V::set(inverse);
    const V::T along_x = V::set(dot / static_cast<float>(channels) * inverse * inverse * inverse);
    for_each_vector(channels, [&](auto access, size_t c, size_t n) {
      const V::T weighted = V::mul(access.load(dy + c, n), access.load(w + c, n));
      V::T gradient = V::fnma(access.load(x + c, n), along_x, V::mul(weighted, inverses));
      if (accumulate) gradient = V::add(access.load(dx + c, n), gradient);
      access.store(dx + c, gradient, n);
      if (rounded != nullptr) access.store(rounded + row * channels + c, gradient, n);
    });
  }
}

void rmsnorm_grad_weight(const float* x, const float* inv_rms, const float* dy, size_t tokens,
                         size_t channels, size_t begin, size_t end, float* dw) {
  for (size_t token = 0; token < tokens; ++token, x += channels, dy += channels) {
    const V::T inverse = V::set(inv_rms[token]);
    const float *x_range = x + begin, *dy_range = dy + begin;
    float* dw_range = dw + begin;
    for_each_vector(end - begin, [&](auto access, size_t c, size_t n) {
      const V::T normed = V::mul(access.load(x_range + c, n), inverse);
      access.store(dw_range + c,
                   V::fma(access.load(dy_range + c, n), normed, access.load(dw_range + c, n)), n);
    });
  }
}

// ── SwiGLU ──

LR_INLINE V::T sigmoid(V::T x) {
  return V::div(V::set(1.0f), V::add(V::set(1.0f), vexp(V::sub(V::zero(), x))));
}

template <class E>
LR_INLINE void swiglu(const E* g, const E* u, size_t n, E* h) {
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    const V::T gate = access.load(g + i, lanes);
    access.store(h + i, V::mul(V::mul(gate, sigmoid(gate)), access.load(u + i, lanes)), lanes);
  });
}

void swiglu_forward(const void* g, const void* u, bool bf16, size_t n, void* h) {
  if (bf16) {
    swiglu((const uint16_t*)g, (const uint16_t*)u, n, (uint16_t*)h);
  } else {
    swiglu((const float*)g, (const float*)u, n, (float*)h);
  }
}

// silu'(g) = σ·(1 + g·(1 - σ))
template <class E>
LR_INLINE void swiglu_gradients(const E* g, const E* u, const E* dh, size_t n, E* dg, E* du) {
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    const V::T one = V::set(1.0f);
    const V::T gate = access.load(g + i, lanes), up = access.load(u + i, lanes),
               gradient = access.load(dh + i, lanes);
    const V::T sigma = sigmoid(gate);
    const V::T slope = V::mul(sigma, V::fma(gate, V::sub(one, sigma), one));
    access.store(dg + i, V::mul(V::mul(gradient, up), slope), lanes);
    access.store(du + i, V::mul(gradient, V::mul(gate, sigma)), lanes);
  });
}

void swiglu_backward(const void* g, const void* u, const void* dh, bool bf16, size_t n, void* dg,
                     void* du) {
  if (bf16) {
    swiglu_gradients((const uint16_t*)g, (const uint16_t*)u, (const uint16_t*)dh, n, (uint16_t*)dg,
                     (uint16_t*)du);
  } else {
    swiglu_gradients((const float*)g, (const float*)u, (const float*)dh, n, (float*)dg, (float*)du);
  }
}

// ── Sums and scaling ──

void to_bf16(const float* x, size_t n, uint16_t* y) {
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    access.store(y + i, access.load(x + i, lanes), lanes);
  });
}

void from_bf16(const uint16_t* x, size_t n, float* y) {
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    access.store(y + i, access.load(x + i, lanes), lanes);
  });
}

template <class E>
LR_INLINE void add_to(const float* x, size_t n, E* y) {
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    access.store(y + i, V::add(access.load(y + i, lanes), access.load(x + i, lanes)), lanes);
  });
}

void add(const float* x, size_t n, float* y) { add_to(x, n, y); }
void add_bf16(const float* x, size_t n, uint16_t* y) { add_to(x, n, y); }

void blend(float x_factor, const float* x, size_t n, float y_factor, float* y) {
  const V::T x_factors = V::set(x_factor), y_factors = V::set(y_factor);
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    const V::T scaled = V::mul(access.load(y + i, lanes), y_factors);
    access.store(y + i, V::fma(access.load(x + i, lanes), x_factors, scaled), lanes);
  });
}

void scale(float factor, size_t n, float* y) {
  const V::T factors = V::set(factor);
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    access.store(y + i, V::mul(access.load(y + i, lanes), factors), lanes);
  });
}

LR_INLINE float widen(float x) { return x; }
LR_INLINE float widen(uint16_t x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16);
}

template <class E>
LR_INLINE double squares_of(const E* x, size_t n) {
  constexpr size_t kSums = 16;
  double sums[kSums] = {};
  size_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (size_t j = 0; j < kSums; ++j) {
      const double value = static_cast<double>(widen(x[i + j]));
      sums[j] += value * value;
    }
  }
  for (size_t j = 0; i < n; ++i, ++j) {
    const double value = static_cast<double>(widen(x[i]));
    sums[j] += value * value;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

double sum_of_squares(const float* x, size_t n) { return squares_of(x, n); }
double sum_of_squares_bf16(const uint16_t* x, size_t n) { return squares_of(x, n); }

// ── Dropout ──

LR_INLINE void narrow(float x, float* out) { *out = x; }
LR_INLINE void narrow(float x, uint16_t* out) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t nearest = bits + 0x7fff + ((bits >> 16) & 1), quiet_nan = bits | 0x400000;
  const uint32_t is_nan = (bits & 0x7fffffff) > 0x7f800000 ? ~0u : 0u;
  *out = static_cast<uint16_t>(((nearest & ~is_nan) | (quiet_nan & is_nan)) >> 16);
}

template <class X, class Y, bool kAccumulate>
void apply_mask(const X* x, const uint16_t* bits, size_t n, uint32_t threshold, float factor,
                Y* y) {
#pragma GCC ivdep  // y is x or lies apart from it
  for (size_t i = 0; i < n; ++i) {
    // Not a choice between values, which would stay a branch at AVX2.
    const uint32_t mask = bits[i] >= threshold ? ~0u : 0u;
    const float kept =
        __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, widen(x[i]) * factor) & mask);
    narrow(kAccumulate ? widen(y[i]) + kept : kept, y + i);
  }
}

struct Mask {
  uint64_t first;
  uint32_t threshold;
  float factor;
  uint64_t seed, module;
};

template <class X, class Y>
LR_INLINE void drop(const X* x, size_t n, const Mask& mask, Y* y, bool accumulate) {
  for_each_random_piece(mask.first, n, mask.seed, mask.module, [&](size_t begin, size_t count, const uint16_t* bits) {
    (accumulate ? apply_mask<X, Y, true> : apply_mask<X, Y, false>)(x + begin, bits, count, mask.threshold, mask.factor, y + begin);
  });
}

void dropout(const void* x, bool x_bf16, size_t n, uint64_t first, uint32_t threshold, float factor,
             uint64_t seed, uint64_t module, void* y, bool y_bf16, bool accumulate) {
  const Mask mask{first, threshold, factor, seed, module};
  if (x_bf16) {
    y_bf16 ? drop((const uint16_t*)x, n, mask, (uint16_t*)y, accumulate)
           : drop((const uint16_t*)x, n, mask, (float*)y, accumulate);
  } else {
    y_bf16 ? drop((const float*)x, n, mask, (uint16_t*)y, accumulate)
           : drop((const float*)x, n, mask, (float*)y, accumulate);
  }
}

// ── Online softmax ──

// A row's shift follows its maximum only when that grew by more than this, since a new shift costs
// a rescaling of all results so far; exp(6) is nothing to fp32.
constexpr float kShiftSlack = 6.0f;

LR_INLINE float scalar_exp(float x) {
  float lanes[V::kWidth];
  V::store(lanes, vexp(V::set(x)));
  return lanes[0];
}

LR_INLINE float largest_of(const float* x, size_t n) {
  V::T largest0 = V::set(-__builtin_inff()), largest1 = largest0;
  size_t i = 0;
  for (; i + 2 * V::kWidth <= n; i += 2 * V::kWidth) {
    largest0 = V::max(largest0, V::load(x + i));
    largest1 = V::max(largest1, V::load(x + i + V::kWidth));
  }
  float largest = V::hmax(V::max(largest0, largest1));
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

void softmax_block(float* x, size_t n, SoftmaxState* state) {
  state->largest = largest_of(x, n);
  state->rescale = 1.0f;
  if (state->largest > state->shift + kShiftSlack) {
    state->rescale = scalar_exp(state->shift - state->largest);
    state->sum *= static_cast<double>(state->rescale);
    state->shift = state->largest;
  }
  const V::T shift = V::set(state->shift);
  V::T sum0 = V::zero(), sum1 = V::zero();
  size_t i = 0;
  for (; i + 2 * V::kWidth <= n; i += 2 * V::kWidth) {
    const V::T e0 = vexp(V::sub(V::load(x + i), shift)),
               e1 = vexp(V::sub(V::load(x + i + V::kWidth), shift));
    V::store(x + i, e0);
    V::store(x + i + V::kWidth, e1);
    sum0 = V::add(sum0, e0);
    sum1 = V::add(sum1, e1);
  }
  float sum = V::sum(V::add(sum0, sum1));
  for (; i < n; ++i) {
    x[i] = scalar_exp(x[i] - state->shift);
    sum += x[i];
  }
  state->sum += static_cast<double>(sum);
}

void scaled_exp(float shift, float factor, size_t n, float* x) {
  const V::T shifts = V::set(shift), factors = V::set(factor);
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    access.store(x + i, V::mul(factors, vexp(V::sub(access.load(x + i, lanes), shifts))), lanes);
  });
}

}  // namespace

extern const ElementwiseKernels kElementwiseKernels;
const ElementwiseKernels kElementwiseKernels = {
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .rmsnorm_grad_weight = rmsnorm_grad_weight,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .to_bf16 = to_bf16,
    .from_bf16 = from_bf16,
    .add = add,
    .add_bf16 = add_bf16,
    .blend = blend,
    .scale = scale,
    .dropout = dropout,
    .sum_of_squares = sum_of_squares,
    .sum_of_squares_bf16 = sum_of_squares_bf16,
    .softmax_block = softmax_block,
    .scaled_exp = scaled_exp,
};

}  // namespace lowrank::LR_ISA

// AdamW, Lion and SGD: one pass over memory each, so the floor of the 32-bit ones is bytes. With states of 8 bits the codes bound them:
// a look-up and a product to read one, and to write one what encode_codes.h says; the arithmetic between runs on vectors over one block
// at a time, in the first-level cache.
#include "ops/cpu/optimizer_kernels.h"

#include "ops/code_map.h"
#include "ops/cpu/encode_codes.h"
#include "ops/cpu/random_bits.h"
#include "ops/cpu/vector_walk.h"

namespace lowrank::LR_ISA {
namespace {

LR_INLINE V::T magnitude(V::T x) { return V::max(x, V::sub(V::zero(), x)); }

// ── States of 8 bits ──

struct Block {
  float values[kCodeBlock];
};

LR_INLINE void decode(const CodedState& state, size_t begin, size_t n, Block* out) {
  const float absmax = state.absmax[begin / kCodeBlock];
  const float* const values = state.map->values;
  const uint8_t* const codes = state.codes + begin;
  for (size_t i = 0; i < n; ++i) out->values[i] = values[codes[i]] * absmax;
}

LR_INLINE float largest_magnitude(const Block& block, size_t n) {
  V::T largest = V::zero();
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    largest = V::max(largest, magnitude(access.load(block.values + i, lanes)));
  });
  return V::hmax(largest);
}

LR_INLINE void encode(const Block& block, size_t begin, size_t n, const CodedState& state) {
  const float absmax = largest_magnitude(block, n);
  state.absmax[begin / kCodeBlock] = absmax;
  if (state.map->steps == 1) {
    encode_with<1>(*state.map, block.values, n, absmax, state.codes + begin);
  } else {
    encode_with<0>(*state.map, block.values, n, absmax, state.codes + begin);
  }
}

// ── AdamW ──

// torch.optim.adamw's _single_tensor_adamw, operation by operation.
struct AdamW {
  V::T grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps, step_size;

  explicit AdamW(const AdamWFactors& factors)
      : grad_scale(V::set(factors.grad_scale)),
        decay(V::set(factors.decay)),
        one_minus_beta1(V::set(factors.one_minus_beta1)),
        beta2(V::set(factors.beta2)),
        one_minus_beta2(V::set(factors.one_minus_beta2)),
        root_correction2(V::set(factors.root_correction2)),
        eps(V::set(factors.eps)),
        step_size(V::set(factors.step_size)) {}

  template <class Access>
  LR_INLINE void update(const AdamW& self, Access access, size_t lanes, const float* g, float* p, float* m, float* v) {
    const V::T gradient = V::mul(access.load(g, lanes), self.grad_scale);
    V::T first = access.load(m, lanes), second = access.load(v, lanes);
    first = V::fma(self.one_minus_beta1, V::sub(gradient, first), first);
    second = V::fma(V::mul(self.one_minus_beta2, gradient), gradient, V::mul(second, self.beta2));
    const V::T denominator = V::add(V::div(V::sqrt(second), self.root_correction2), self.eps);
    const V::T decayed = V::mul(access.load(p, lanes), self.decay);
    access.store(p, V::fnma(self.step_size, V::div(first, denominator), decayed), lanes);
    access.store(m, first, lanes);
    access.store(v, second, lanes);
  }
};

void adamw(const AdamWFactors& factors, size_t n, const float* g, float* p, float* m, float* v) {
  const AdamW rule(factors);
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    AdamW::update(rule, access, lanes, g + i, p + i, m + i, v + i);
  });
}

void adamw_coded(const AdamWFactors& factors, size_t n, const float* g, float* p, const CodedState& m, const CodedState& v) {
  const AdamW rule(factors);
  Block first, second;
  for (size_t begin = 0; begin < n; begin += kCodeBlock) {
    const size_t count = n - begin < kCodeBlock ? n - begin : kCodeBlock;
    decode(m, begin, count, &first);
    decode(v, begin, count, &second);
    for_each_vector(count, [&](auto access, size_t i, size_t lanes) {
      AdamW::update(rule, access, lanes, g + begin + i, p + begin + i, first.values + i, second.values + i);
    });
    encode(first, begin, count, m);
    encode(second, begin, count, v);
  }
}

// ── Lion ──

struct Lion {
  V::T grad_scale, decay, one_minus_beta1, one_minus_beta2, lr;

  explicit Lion(const LionFactors& factors)
      : grad_scale(V::set(factors.grad_scale)),
        decay(V::set(factors.decay)),
        one_minus_beta1(V::set(factors.one_minus_beta1)),
        one_minus_beta2(V::set(factors.one_minus_beta2)),
        lr(V::set(factors.lr)) {}

  // -1, 0 or 1: the smallest number that is not denormal makes 4 of the factor.
  LR_INLINE V::T sign(V::T x) { return V::max(V::min(V::mul(x, V::set(__FLT_MAX__)), V::set(1.0f)), V::set(-1.0f)); }

  template <class Access>
  LR_INLINE void update(const Lion& self, Access access, size_t lanes, const float* g, float* p, float* m) {
    const V::T gradient = V::mul(access.load(g, lanes), self.grad_scale), momentum = access.load(m, lanes);
    const V::T towards = V::sub(gradient, momentum);
    const V::T direction = sign(V::fma(self.one_minus_beta1, towards, momentum));
    const V::T decayed = V::mul(access.load(p, lanes), self.decay);
    access.store(p, V::fnma(self.lr, direction, decayed), lanes);
    access.store(m, V::fma(self.one_minus_beta2, towards, momentum), lanes);
  }
};

void lion(const LionFactors& factors, size_t n, const float* g, float* p, float* m) {
  const Lion rule(factors);
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) { Lion::update(rule, access, lanes, g + i, p + i, m + i); });
}

void lion_coded(const LionFactors& factors, size_t n, const float* g, float* p, const CodedState& m) {
  const Lion rule(factors);
  Block momentum;
  for (size_t begin = 0; begin < n; begin += kCodeBlock) {
    const size_t count = n - begin < kCodeBlock ? n - begin : kCodeBlock;
    decode(m, begin, count, &momentum);
    for_each_vector(count, [&](auto access, size_t i, size_t lanes) {
      Lion::update(rule, access, lanes, g + begin + i, p + begin + i, momentum.values + i);
    });
    encode(momentum, begin, count, m);
  }
}

// ── SGD ──

void sgd(const SgdFactors& factors, size_t n, const float* g, float* p, float* m) {
  const V::T grad_scale = V::set(factors.grad_scale), weight_decay = V::set(factors.weight_decay);
  const V::T momentum = V::set(factors.momentum), lr = V::set(factors.lr);
  for_each_vector(n, [&](auto access, size_t i, size_t lanes) {
    const V::T value = access.load(p + i, lanes);
    const V::T gradient = V::fma(weight_decay, value, V::mul(access.load(g + i, lanes), grad_scale));
    const V::T velocity = V::fma(momentum, access.load(m + i, lanes), gradient);
    access.store(p + i, V::fnma(lr, velocity, value), lanes);
    access.store(m + i, velocity, lanes);
  });
}

// ── Stochastic rounding ──

// A float between two bf16 values lies x/2^16 of their distance above the one that is nearer to zero, where x are its lower 16 bits: adding
// a random number of 16 bits carries with that probability.
void carry_randomly(const float* x, const uint16_t* bits, size_t n, uint16_t* y) {
  for (size_t i = 0; i < n; ++i) {
    const uint32_t value = __builtin_bit_cast(uint32_t, x[i]);
    const uint32_t is_nan = (value & 0x7fffffff) > 0x7f800000 ? ~0u : 0u;
    y[i] = static_cast<uint16_t>((((value + bits[i]) & ~is_nan) | ((value | 0x400000) & is_nan)) >> 16);
  }
}

void round_randomly(const float* x, size_t n, uint64_t seed, uint64_t stream, uint64_t first, uint16_t* y) {
  for_each_random_piece(first, n, seed, stream, [&](size_t begin, size_t count, const uint16_t* bits) {
    carry_randomly(x + begin, bits, count, y + begin);
  });
}

}  // namespace

extern const OptimizerKernels kOptimizerKernels;
const OptimizerKernels kOptimizerKernels = {
    .adamw = adamw,
    .adamw_coded = adamw_coded,
    .lion = lion,
    .lion_coded = lion_coded,
    .sgd = sgd,
    .round_randomly = round_randomly,
};

}  // namespace lowrank::LR_ISA

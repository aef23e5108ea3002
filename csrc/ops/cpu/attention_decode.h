// One query against a range of a KV cache. Lanes run along head_dim, each key and value is read once for all heads of the group:
// bound by memory (8·D bytes a key).
#pragma once

#include "ops/cpu/attention_tile.h"

namespace lowrank::LR_ISA {
namespace {

inline size_t decode_scratch(size_t head_dim, size_t group) { return group * (padded(head_dim) + kKeyBlock); }

// Rows of a head lie apart, which the hardware does not foresee: asked for 16 keys ahead they come at 2 to 4 times the rate.
constexpr size_t kPrefetchKeys = 16;

LR_INLINE void prefetch_row(const float* row, size_t length) {
  for (size_t d = 0; d < length; d += 16) __builtin_prefetch(row + d);
}

// scores[head][key - begin] = q[head] · k[key]; past `end`, kMasked up to kKeyBlock. The values are on their way meanwhile.
inline void decode_scores(const AttentionGroup& g, const float* q, size_t begin, size_t end, float* scores) {
  const size_t length = padded(g.head_dim), whole = g.head_dim / V::kWidth * V::kWidth, tail = g.head_dim - whole;
  for (size_t key = begin; key < end; ++key) {
    const float* k = floats_of(g.k, key);
    if (key + kPrefetchKeys < g.kv_len) prefetch_row(k + kPrefetchKeys * g.k.stride, g.head_dim);
    prefetch_row(floats_of(g.v, key), g.head_dim);
    for (size_t head = 0; head < g.group; ++head) {
      const float* query = q + head * length;
      V::T sum0 = V::zero(), sum1 = V::zero();
      size_t d = 0;
      for (; d + 2 * V::kWidth <= whole; d += 2 * V::kWidth) {
        sum0 = V::fma(V::load(k + d), V::load(query + d), sum0);
        sum1 = V::fma(V::load(k + d + V::kWidth), V::load(query + d + V::kWidth), sum1);
      }
      if (d < whole) sum0 = V::fma(V::load(k + d), V::load(query + d), sum0);
      if (tail > 0) sum1 = V::fma(V::load_n(k + whole, tail), V::load(query + whole), sum1);
      scores[head * kKeyBlock + key - begin] = V::sum(V::add(sum0, sum1));
    }
  }
  for (size_t head = 0; head < g.group; ++head) {
    for (size_t j = end - begin; j < kKeyBlock; ++j) scores[head * kKeyBlock + j] = kMasked;
  }
}

// Scores of a block to probabilities under the running maximum; returns by what the earlier sums shrink.
LR_INLINE float decode_softmax(float* scores, float* maximum, float* sum) {
  V::T high = V::set(*maximum);
  for (size_t j = 0; j < kKeyBlock; j += V::kWidth) high = V::max(high, V::load(scores + j));
  const float top = V::hmax(high);
  const float decay = __builtin_exp2f(*maximum - top);
  V::T total = V::zero();
  for (size_t j = 0; j < kKeyBlock; j += V::kWidth) {
    const V::T p = exp2_of(V::sub(V::load(scores + j), V::set(top)));
    V::store(scores + j, p);
    total = V::add(total, p);
  }
  *maximum = top;
  *sum = *sum * decay + V::sum(total);
  return decay;
}

// o[d] = o[d] · decay + Σ_key p[key] · v[key][d].
inline void decode_values(const AttentionGroup& g, const float* p, size_t begin, size_t end, float decay, float* o) {
  constexpr size_t kWide = 4 * V::kWidth;
  const float* const v = floats_of(g.v, begin);
  const size_t keys = end - begin;
  size_t d = 0;
  for (; d + kWide <= g.head_dim; d += kWide) {
    V::T sum[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) sum[i] = V::mul(V::load(o + d + i * V::kWidth), V::set(decay));
    for (size_t j = 0; j < keys; ++j) {
      const V::T weight = V::set(p[j]);
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) sum[i] = V::fma(weight, V::load(v + j * g.v.stride + d + i * V::kWidth), sum[i]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) V::store(o + d + i * V::kWidth, sum[i]);
  }
  for (; d < g.head_dim; d += V::kWidth) {
    const size_t n = smaller(V::kWidth, g.head_dim - d);
    V::T sum = V::mul(V::load_n(o + d, n), V::set(decay));
    for (size_t j = 0; j < keys; ++j) sum = V::fma(V::set(p[j]), V::load_n(v + j * g.v.stride + d, n), sum);
    V::store_n(o + d, sum, n);
  }
}

void decode(const AttentionGroup& g, size_t key_begin, size_t key_end, float* partial, float* scratch) {
  const size_t length = padded(g.head_dim), result = g.head_dim + 2;
  float* const q = scratch;
  float* const scores = q + g.group * length;
  for (size_t head = 0; head < g.group; ++head) {
    copy_row(floats_of(g.q, 0) + head * g.head_dim, g.head_dim, g.scale * kLog2E, q + head * length, length);
    float* out = partial + head * result;
    for (size_t d = 0; d < g.head_dim; ++d) out[d] = 0;
    out[g.head_dim] = kMasked;
    out[g.head_dim + 1] = 0;
  }
  for (size_t begin = key_begin; begin < key_end; begin += kKeyBlock) {
    const size_t end = smaller(key_end, begin + kKeyBlock);
    decode_scores(g, q, begin, end, scores);
    for (size_t head = 0; head < g.group; ++head) {
      float *out = partial + head * result, *p = scores + head * kKeyBlock;
      const float decay = decode_softmax(p, out + g.head_dim, out + g.head_dim + 1);
      decode_values(g, p, begin, end, decay, out);
    }
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

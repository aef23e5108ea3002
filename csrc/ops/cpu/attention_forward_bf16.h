// Forward with bf16 operands and fp32 sums; like attention_forward.h, but
//   P = 2^(S - r) is taken while S is still in registers, and rounded to pairs of keys for VDPBF16PS;
//   r, a row's reference, is not its running maximum but raised to it only where a score is more than kHeadroom above: about once
//   a row, as a power of two changes no relative error;
//   l sums the rounded P, so that the weights of the values sum to one.
// Bound by VDPBF16PS: 4·D flops a visible pair, plus some 9 vector instructions a pair and vector.
#pragma once

#include "ops/cpu/attention_forward.h"
#include "ops/cpu/attention_pair_products.h"

#if defined(__AVX512BF16__)

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kPairKeyBlock = kKeyBlock;  // keys a step
constexpr float kHeadroom = 16;        // P <= 2^16: its sums are far from overflow

struct PairForwardState {
  Tile tile;
  float* q;                // [pair_rows][kTileLanes]
  float* o;                // [padded head_dim][kTileLanes], once `started`
  bool started;
  alignas(64) float reference[kTileLanes], sum[kTileLanes];
};

// Panels in scratch.
struct PairForwardPanels {
  float* k;   // [kPairKeyBlock][pair_key_stride]: pairs along head_dim
  float* v;   // pairs across keys
  float* p;   // [kPairKeyBlock / 2][kTileLanes]: pairs across keys
  float* scores;
};

inline size_t pair_forward_scratch(size_t head_dim) {
  return kPairKeyBlock * pair_key_stride(head_dim) + across_floats(head_dim, kPairKeyBlock) + kPairKeyBlock / 2 * kTileLanes + kScoreFloats +
         kAttentionRows * (pair_rows(head_dim) + padded(head_dim));
}

// Raises the references of a vector's rows to `high` where that is more than kHeadroom above, and shrinks what was summed under the
// old ones: l, O and the `pairs` of P that this block has so far.
__attribute__((noinline)) void raise_reference(PairForwardState& state, size_t lane, const float* high, size_t length, float* p,
                                               size_t pairs) {
  const V::T old = V::load(state.reference + lane), top = V::load(high);
  const __mmask16 above = _mm512_cmp_ps_mask(top, V::add(old, V::set(kHeadroom)), _CMP_GT_OQ);
  const V::T reference = _mm512_mask_mov_ps(old, above, top);
  const V::T decay = exp2_of(V::sub(old, reference));
  V::store(state.reference + lane, reference);
  V::store(state.sum + lane, V::mul(V::load(state.sum + lane), decay));
  for (size_t d = 0; state.started && d < length; ++d) {
    float* const o = state.o + d * kTileLanes + lane;
    V::store(o, V::mul(V::load(o), decay));
  }
  for (size_t i = 0; i < pairs; ++i, p += kTileLanes) {
    const __m512i both = _mm512_castps_si512(V::load(p));
    const V::T even = as_floats(_mm512_slli_epi32(both, 16)), odd = as_floats(_mm512_and_si512(both, _mm512_set1_epi32(-65536)));
    V::store(p, pairs_across(V::mul(even, decay), V::mul(odd, decay)));
  }
}

// Scores of kProductRows keys from `key` on for kVectors vectors from `lane` on, to pairs of probabilities. The block's P begins at `p`
// with key `begin`.
template <bool kEdge, size_t kVectors>
LR_INLINE void softmax_pairs(const AttentionGroup& g, PairForwardState& state, size_t lane, size_t begin, size_t key,
                             const V::T (&scores)[kProductRows][kVectors], float* p) {
  const V::T factor = V::set(score_factor(g));
  const auto visible = [&](size_t i, size_t j) __attribute__((always_inline)) {
    return sees(V::load(state.tile.position + lane + j * V::kWidth), key + i, g.window);
  };
  V::T high[kVectors];
  unsigned above = 0;
#pragma GCC unroll 4
  for (size_t j = 0; j < kVectors; ++j) {
    high[j] = kEdge ? V::set(-__builtin_inff()) : scores[0][j];
#pragma GCC unroll 8
    for (size_t i = 0; i < kProductRows; ++i) {
      high[j] = kEdge ? _mm512_mask_max_ps(high[j], visible(i, j), high[j], scores[i][j]) : V::max(high[j], scores[i][j]);
    }
    high[j] = V::mul(high[j], factor);
    const V::T limit = V::add(V::load(state.reference + lane + j * V::kWidth), V::set(kHeadroom));
    above |= _mm512_cmp_ps_mask(high[j], limit, _CMP_GT_OQ);
  }
  if (__builtin_expect(above != 0, 0)) {
    for (size_t j = 0; j < kVectors; ++j) {
      alignas(64) float top[V::kWidth];
      V::store(top, high[j]);
      raise_reference(state, lane + j * V::kWidth, top, padded(g.head_dim), p + lane + j * V::kWidth, (key - begin) / 2);
    }
  }
  float* const out = p + (key - begin) / 2 * kTileLanes + lane;
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
#pragma GCC unroll 4
  for (size_t j = 0; j < kVectors; ++j) {
    const V::T reference = V::load(state.reference + lane + j * V::kWidth);
    V::T sum = V::load(state.sum + lane + j * V::kWidth);
#pragma GCC unroll 4
    for (size_t i = 0; i < kProductRows; i += 2) {
      V::T even = exp2_to_round(_mm512_fmsub_ps(scores[i][j], factor, reference));
      V::T odd = exp2_to_round(_mm512_fmsub_ps(scores[i + 1][j], factor, reference));
      if (kEdge) {
        even = _mm512_maskz_mov_ps(visible(i, j), even);
        odd = _mm512_maskz_mov_ps(visible(i + 1, j), odd);
      }
      const V::T both = pairs_across(even, odd);
      V::store(out + i / 2 * kTileLanes + j * V::kWidth, both);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)both, ones);
    }
    V::store(state.sum + lane + j * V::kWidth, sum);
  }
}

// P of keys [begin, end) for the vectors that see them.
inline void score_pairs(const AttentionGroup& g, PairForwardState& state, size_t begin, size_t end, const PairForwardPanels& panels) {
  const Tile& tile = state.tile;
  const size_t stride = pair_key_stride(g.head_dim);
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    for_each_panel(tile.vectors - vector, [&](auto width, size_t first) __attribute__((always_inline)) {
      constexpr size_t kVectors = decltype(width)::kValue;
      const size_t at = vector + first, lane = at * V::kWidth;
      const auto source = Scores<kVectors>::at({to - from, kVectors, pairs_of(g.head_dim), panels.k + (from - begin) * stride, stride,
                                                state.q, kTileLanes, nullptr, 0}, lane, panels.scores);
      for (size_t key = from; key < to; key += kProductRows) {
        V::T scores[kProductRows][kVectors];
        source.get(key - from, scores);
        if (on_edge(g, tile, at, kVectors, key, key + kProductRows)) {
          softmax_pairs<true>(g, state, lane, begin, key, scores, panels.p);
        } else {
          softmax_pairs<false>(g, state, lane, begin, key, scores, panels.p);
        }
      }
    });
  });
}

// Adds keys [begin, end) to a tile.
inline void pair_forward_step(const AttentionGroup& g, PairForwardState& state, size_t begin, size_t end, const PairForwardPanels& at) {
  const Tile& tile = state.tile;
  score_pairs(g, state, begin, end, at);
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    const size_t lane = vector * V::kWidth, pairs = (to - from) / 2;
    const float* const v = across_at(at.v, g.head_dim, from - begin);
    const float* const p = at.p + (from - begin) / 2 * kTileLanes + lane;
    if (state.started) {
      product_across<Update::kAdd>(g.head_dim, tile.vectors - vector, pairs, v, kPairKeyBlock, p, state.o + lane, kTileLanes);
    } else {  // the first segment has all vectors
      product_across<Update::kSet>(g.head_dim, tile.vectors - vector, pairs, v, kPairKeyBlock, p, state.o + lane, kTileLanes);
    }
    state.started = true;
  });
}

inline void start_pair_tile(const AttentionGroup& g, PairForwardState& state) {
  const char* rows[kTileLanes];
  byte_pointers(g, state.tile, g.q, rows);
  for (size_t v = 0; v < state.tile.vectors; ++v) {
    pairs_to_lanes(rows + v * V::kWidth, g.q.bf16(), g.head_dim, score_sign(g), pair_rows(g.head_dim), state.q + v * V::kWidth, kTileLanes);
    V::store(state.reference + v * V::kWidth, V::set(kMasked));
    V::store(state.sum + v * V::kWidth, V::zero());
  }
  state.started = false;
}

inline void finish_pair_tile(const AttentionGroup& g, const AttentionOut& out, PairForwardState& state) {
  const Tile& tile = state.tile;
  char* rows[kTileLanes];
  byte_pointers(g, tile, out.o, rows);
  for (size_t v = 0; v < tile.vectors; ++v) {
    alignas(64) float inverse[V::kWidth];
    V::store(inverse, V::div(V::set(1.0f), V::load(state.sum + v * V::kWidth)));
    lanes_to_rows(state.o + v * V::kWidth, kTileLanes, inverse, g.head_dim, live_lanes(tile, v),
                  [&](size_t lane, size_t d, size_t n, V::T x) __attribute__((always_inline)) {
                    store_numbers(rows[v * V::kWidth + lane], out.o.bf16(), d, n, x);
                  });
  }
  if (out.lse != nullptr) write_log_sums(g, tile, state.reference, state.sum, out.lse);
}

void pair_forward(const AttentionGroup& g, const AttentionOut& out, size_t row_begin, size_t row_end, float* scratch) {
  PairForwardPanels at;
  at.k = scratch;
  at.v = at.k + kPairKeyBlock * pair_key_stride(g.head_dim);
  at.p = at.v + across_floats(g.head_dim, kPairKeyBlock);
  at.scores = at.p + kPairKeyBlock / 2 * kTileLanes;
  float* next = at.scores + kScoreFloats;
  const ProductScope scope;

  PairForwardState states[kForwardTiles];
  size_t tiles = 0, key_begin = 0, key_end = 0;
  for (size_t row = row_begin; row < row_end; row += kTileLanes, ++tiles) {
    PairForwardState& state = states[tiles];
    state.tile = make_tile<kProductVectors, kPairKeyAlign>(g, row, row_end);
    state.q = next;
    state.o = state.q + pair_rows(g.head_dim) * kTileLanes;
    next = state.o + padded(g.head_dim) * kTileLanes;
    start_pair_tile(g, state);
    if (tiles == 0) key_begin = state.tile.key_begin;
    key_end = state.tile.key_end;
  }
  for (size_t begin = key_begin; begin < key_end; begin += kPairKeyBlock) {
    const size_t end = smaller(key_end, begin + kPairKeyBlock);
    copy_pair_keys(g.k, g.head_dim, begin, end, g.kv_len, at.k);
    pack_across(g.v, g.head_dim, begin, end, g.kv_len, kPairKeyBlock, at.v);
    for (size_t i = 0; i < tiles; ++i) {
      if (end > states[i].tile.key_begin) pair_forward_step(g, states[i], begin, end, at);
    }
  }
  for (size_t i = 0; i < tiles; ++i) finish_pair_tile(g, out, states[i]);
}

}  // namespace
}  // namespace lowrank::LR_ISA

#endif  // __AVX512BF16__

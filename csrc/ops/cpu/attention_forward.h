// Forward: online softmax over blocks of keys, in base 2.                                        Dao 2023, arXiv:2307.08691
//   Sᵀ = K·Qᵀ (Q scaled by scale · log2 e);  m' = max(m, S);  P = 2^(S - m');  l = l·2^(m - m') + ΣP;  Oᵀ = Oᵀ·2^(m - m') + Vᵀ·Pᵀ
// Bound by FMA: 4·D flops a visible pair, plus about 20 vector instructions a pair and vector for the softmax.
#pragma once

#include "ops/cpu/attention_tile.h"

namespace lowrank::LR_ISA {
namespace {

// A tile's running state, in scratch.
struct ForwardState {
  Tile tile;
  float *q, *o;                                             // [padded head_dim][kTileLanes]
  alignas(64) float maximum[kTileLanes], sum[kTileLanes];
};

constexpr size_t kForwardTiles = kAttentionRows / kTileLanes;

inline size_t forward_scratch(size_t head_dim) {
  return kKeyBlock * kTileLanes + 2 * kKeyBlock * key_stride(head_dim) + 2 * kAttentionRows * padded(head_dim);
}

// Turns a vector's scores of keys [begin, end) into probabilities; returns by what earlier ones shrink.
LR_INLINE V::T softmax_step(const AttentionGroup& g, ForwardState& state, size_t v, size_t begin, size_t end, float* scores) {
  float* const first = scores + v * V::kWidth;
  const size_t count = end - begin;
  V::T high0 = V::load(state.maximum + v * V::kWidth), high1 = high0;
  const V::T old = high0;
  if (on_edge(g, state.tile, v, 1, begin, end)) {
    const V::T position = V::load(state.tile.position + v * V::kWidth);
    for (size_t j = 0; j < count; ++j) {
      float* s = first + j * kTileLanes;
      V::store(s, V::add(V::load(s), mask_of(position, begin + j, g.window)));
    }
  }
  for (size_t j = 0; j < count; j += 2) {  // count is even: bounds are multiples of kKeyAlign
    high0 = V::max(high0, V::load(first + j * kTileLanes));
    high1 = V::max(high1, V::load(first + (j + 1) * kTileLanes));
  }
  const V::T high = V::max(high0, high1);
  V::T sum0 = V::zero(), sum1 = V::zero();
  for (size_t j = 0; j < count; j += 2) {
    float* s = first + j * kTileLanes;
    const V::T p0 = exp2_of(V::sub(V::load(s), high)), p1 = exp2_of(V::sub(V::load(s + kTileLanes), high));
    V::store(s, p0);
    V::store(s + kTileLanes, p1);
    sum0 = V::add(sum0, p0);
    sum1 = V::add(sum1, p1);
  }
  const V::T decay = exp2_of(V::sub(old, high));
  float* sum = state.sum + v * V::kWidth;
  V::store(sum, V::fma(V::load(sum), decay, V::add(sum0, sum1)));
  V::store(state.maximum + v * V::kWidth, high);
  return decay;
}

// Adds keys [begin, end), whose panels start at k and v, to a tile.
inline void forward_step(const AttentionGroup& g, ForwardState& state, size_t begin, size_t end, const float* k, const float* v,
                  float* scores) {
  const Tile& tile = state.tile;
  const size_t stride = key_stride(g.head_dim);
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    const size_t lane = vector * V::kWidth;
    product<Numbers, Order::kRows, Update::kSet>({to - from, tile.vectors - vector, g.head_dim, k + (from - begin) * stride, stride,
                                         state.q + lane, kTileLanes, scores + (from - begin) * kTileLanes + lane, kTileLanes});
  });
  alignas(64) float decay[kTileLanes];
  for (size_t vector = 0; vector < tile.vectors; ++vector) {
    const size_t to = smaller(end, tile.end[vector]);
    if (begin < to) V::store(decay + vector * V::kWidth, softmax_step(g, state, vector, begin, to, scores));
  }
  bool first = true;  // the first segment has all vectors that see any of these keys
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    const size_t lane = vector * V::kWidth;
    const Product p{round_up_to(g.head_dim, kProductRows), tile.vectors - vector, to - from, v + (from - begin) * stride, stride,
                    scores + (from - begin) * kTileLanes + lane, kTileLanes, state.o + lane, kTileLanes, decay + lane};
    if (first) {
      product<Numbers, Order::kColumns, Update::kDecay>(p);
    } else {
      product<Numbers, Order::kColumns, Update::kAdd>(p);
    }
    first = false;
  });
}

inline void start_tile(const AttentionGroup& g, ForwardState& state) {
  const float* rows[kTileLanes];
  row_pointers(g, state.tile, g.q, rows);
  for (size_t v = 0; v < state.tile.vectors; ++v) {
    rows_to_lanes(rows + v * V::kWidth, g.head_dim, g.scale * kLog2E, state.q + v * V::kWidth, kTileLanes);
    V::store(state.maximum + v * V::kWidth, V::set(kMasked));
    V::store(state.sum + v * V::kWidth, V::zero());
  }
  zero_row(state.o, padded(g.head_dim) * kTileLanes);
}

// lse = ln(sum · 2^maximum) of each row.
inline void write_log_sums(const AttentionGroup& g, const Tile& tile, const float* maximum, const float* sum, float* lse) {
  for (size_t i = 0; i < tile.rows; ++i) {
    const size_t row = tile.first_row + i;
    lse[row / g.group * g.lse_stride + row % g.group] = (maximum[i] + __builtin_log2f(sum[i])) * kLn2;
  }
}

inline void finish_tile(const AttentionGroup& g, const AttentionOut& out, ForwardState& state) {
  const Tile& tile = state.tile;
  float* rows[kTileLanes];
  row_pointers(g, tile, out.o, rows);
  alignas(64) float inverse[kTileLanes];
  for (size_t v = 0; v < tile.vectors; ++v) {
    V::store(inverse + v * V::kWidth, V::div(V::set(1.0f), V::load(state.sum + v * V::kWidth)));
    write_lanes<false>(state.o + v * V::kWidth, kTileLanes, inverse + v * V::kWidth, g.head_dim, rows + v * V::kWidth,
                       live_lanes(tile, v));
  }
  if (out.lse != nullptr) write_log_sums(g, tile, state.maximum, state.sum, out.lse);
}

void forward(const AttentionGroup& g, const AttentionOut& out, size_t row_begin, size_t row_end, float* scratch) {
  const size_t stride = key_stride(g.head_dim), panel = padded(g.head_dim) * kTileLanes;
  float* const scores = scratch;
  float* const k = scores + kKeyBlock * kTileLanes;
  float* const v = k + kKeyBlock * stride;
  float* next = v + kKeyBlock * stride;

  ForwardState states[kForwardTiles];
  size_t tiles = 0, key_begin = 0, key_end = 0;
  for (size_t row = row_begin; row < row_end; row += kTileLanes, ++tiles, next += 2 * panel) {
    ForwardState& state = states[tiles];
    state.tile = make_tile(g, row, row_end);
    state.q = next;
    state.o = next + panel;
    start_tile(g, state);
    if (tiles == 0) key_begin = state.tile.key_begin;
    key_end = state.tile.key_end;
  }
  for (size_t begin = key_begin; begin < key_end; begin += kKeyBlock) {
    const size_t end = smaller(key_end, begin + kKeyBlock);
    copy_keys(g.k, g.head_dim, begin, end, g.kv_len, k);
    copy_keys(g.v, g.head_dim, begin, end, g.kv_len, v);
    for (size_t i = 0; i < tiles; ++i) {
      ForwardState& state = states[i];
      if (end > state.tile.key_begin) forward_step(g, state, begin, end, k, v, scores);
    }
  }
  for (size_t i = 0; i < tiles; ++i) finish_tile(g, out, states[i]);
}

}  // namespace
}  // namespace lowrank::LR_ISA

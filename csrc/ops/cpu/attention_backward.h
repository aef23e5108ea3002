// Backward of a pair of query positions and keys: probabilities are recomputed from the saved log-sum-exp.
//   Pᵀ = 2^(K·Qᵀ - lse);  dPᵀ = V·dOᵀ;  dSᵀ = Pᵀ ∘ (dPᵀ - delta);  dV += Pᵀ·dO;  dK += dSᵀ·Q·scale;  dQᵀ += Kᵀ·dSᵀ, scaled when written
// Keys stay for the whole pair, queries pass in tiles: 10·D flops a visible pair, bound by FMA. The rows of all heads of the group are
// summed into dK and dV in order.
#pragma once

#include "ops/cpu/attention_tile.h"

namespace lowrank::LR_ISA {
namespace {

// Panels in scratch.
struct BackwardPanels {
  float *k, *v;              // [kAttentionChunk][key_stride]
  float *dk, *dv;            // [kAttentionChunk][padded]
  float *q_lanes, *do_lanes; // [padded][kTileLanes]: q scaled for base-2 scores
  float *dq_lanes;
  float *q_rows, *do_rows;   // [kTileLanes][padded]: q times score_scale()
  float *p, *ds;             // [kKeyBlock][kTileLanes]
};

inline size_t backward_scratch(size_t head_dim) {
  return 2 * kAttentionChunk * (key_stride(head_dim) + padded(head_dim)) + 5 * padded(head_dim) * kTileLanes +
         2 * kKeyBlock * kTileLanes;
}

inline BackwardPanels backward_panels(size_t head_dim, float* scratch) {
  const size_t keys = kAttentionChunk * key_stride(head_dim), sums = kAttentionChunk * padded(head_dim);
  const size_t panel = padded(head_dim) * kTileLanes;
  BackwardPanels at;
  const auto take = [&scratch](size_t floats) {
    float* const start = scratch;
    scratch += floats;
    return start;
  };
  at.k = take(keys), at.v = take(keys);
  at.dk = take(sums), at.dv = take(sums);
  at.q_lanes = take(panel), at.do_lanes = take(panel), at.dq_lanes = take(panel);
  at.q_rows = take(panel), at.do_rows = take(panel);
  at.p = take(kKeyBlock * kTileLanes), at.ds = take(kKeyBlock * kTileLanes);
  return at;
}

// Per-lane statistics of a tile.
struct BackwardStatistics {
  alignas(64) float lse[kTileLanes];  // in base 2
  alignas(64) float delta[kTileLanes];
};

// What scales row i of a tile in the gradients of its scores. Nothing comes through the softmax of a single key, whose dP - delta is the
// rounding of two equal sums; AdamW would make steps of full size of it.
template <size_t kVectors>
LR_INLINE float score_scale(const AttentionGroup& g, const TileOf<kVectors>& tile, size_t i) {
  return g.window == 1 || tile.position[i] == 0 ? 0.0f : g.scale;
}

inline void load_tile(const AttentionGroup& g, const AttentionGradients& d, const Tile& tile, const BackwardPanels& at,
               BackwardStatistics& statistics) {
  const size_t length = padded(g.head_dim);
  const float *q[kTileLanes], *d_o[kTileLanes];
  row_pointers(g, tile, g.q, q);
  row_pointers(g, tile, d.d_o, d_o);
  for (size_t v = 0; v < tile.vectors; ++v) {
    const size_t lane = v * V::kWidth;
    rows_to_lanes(q + lane, g.head_dim, g.scale * kLog2E, at.q_lanes + lane, kTileLanes);
    rows_to_lanes(d_o + lane, g.head_dim, 1.0f, at.do_lanes + lane, kTileLanes);
  }
  for (size_t i = 0; i < tile.vectors * V::kWidth; ++i) {
    if (i < tile.rows) {
      copy_row(q[i], g.head_dim, score_scale(g, tile, i), at.q_rows + i * length, length);
      copy_row(d_o[i], g.head_dim, 1.0f, at.do_rows + i * length, length);
    } else {
      zero_row(at.q_rows + i * length, length);
      zero_row(at.do_rows + i * length, length);
    }
  }
  load_statistics(g, tile, d.lse, kLog2E, statistics.lse);
  load_statistics(g, tile, d.delta, 1.0f, statistics.delta);
  zero_row(at.dq_lanes, length * kTileLanes);
}

// p: scores -> probabilities; ds: dP -> dS. For the keys [begin, end) that vector v sees.
LR_INLINE void softmax_gradient(const AttentionGroup& g, const Tile& tile, const BackwardStatistics& statistics, size_t v, size_t begin,
                                size_t end, float* p, float* ds) {
  const size_t lane = v * V::kWidth;
  const V::T lse = V::load(statistics.lse + lane), delta = V::load(statistics.delta + lane);
  const V::T position = V::load(tile.position + lane);
  const bool edge = on_edge(g, tile, v, 1, begin, end);
  p += lane;
  ds += lane;
  for (size_t key = begin; key < end; ++key, p += kTileLanes, ds += kTileLanes) {
    V::T score = V::sub(V::load(p), lse);
    if (edge) score = V::add(score, mask_of(position, key, g.window));
    const V::T probability = exp2_of(score);
    V::store(p, probability);
    V::store(ds, V::mul(probability, V::sub(V::load(ds), delta)));
  }
}

// One tile against keys [begin, end); `key` is where they start in the panels.
inline void backward_step(const AttentionGroup& g, const Tile& tile, const BackwardPanels& at, const BackwardStatistics& statistics,
                   size_t begin, size_t end, size_t key) {
  const size_t stride = key_stride(g.head_dim), length = padded(g.head_dim);
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    const size_t lane = vector * V::kWidth, row = key + from - begin, scores = (from - begin) * kTileLanes + lane;
    product<Numbers, Order::kRows, Update::kSet>({to - from, tile.vectors - vector, g.head_dim, at.k + row * stride, stride,
                                         at.q_lanes + lane, kTileLanes, at.p + scores, kTileLanes});
    product<Numbers, Order::kRows, Update::kSet>({to - from, tile.vectors - vector, g.head_dim, at.v + row * stride, stride,
                                         at.do_lanes + lane, kTileLanes, at.ds + scores, kTileLanes});
  });
  for (size_t vector = 0; vector < tile.vectors; ++vector) {
    const size_t to = smaller(end, tile.end[vector]);
    if (begin < to) softmax_gradient(g, tile, statistics, vector, begin, to, at.p, at.ds);
  }
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    const size_t lane = vector * V::kWidth, row = key + from - begin, scores = (from - begin) * kTileLanes + lane;
    const size_t rows = (tile.vectors - vector) * V::kWidth;
    product<Numbers, Order::kRows, Update::kAdd>({to - from, length / V::kWidth, rows, at.p + scores, kTileLanes,
                                         at.do_rows + lane * length, length, at.dv + row * length, length});
    product<Numbers, Order::kRows, Update::kAdd>({to - from, length / V::kWidth, rows, at.ds + scores, kTileLanes,
                                         at.q_rows + lane * length, length, at.dk + row * length, length});
    product<Numbers, Order::kColumns, Update::kAdd>({round_up_to(g.head_dim, kProductRows), tile.vectors - vector, to - from,
                                            at.k + row * stride, stride, at.ds + scores, kTileLanes, at.dq_lanes + lane, kTileLanes});
  });
}

// dq (+)= score_scale() · dq_lanes.
inline void write_queries(const AttentionGroup& g, const AttentionGradients& d, const Tile& tile, const BackwardPanels& at, bool first) {
  float* rows[kTileLanes];
  row_pointers(g, tile, d.dq.sums, rows);
  alignas(64) float scale[kTileLanes];
  for (size_t i = 0; i < kTileLanes; ++i) scale[i] = score_scale(g, tile, i);
  for (size_t v = 0; v < tile.vectors; ++v) {
    const size_t lane = v * V::kWidth, lanes = live_lanes(tile, v);
    if (first) {
      write_lanes<false>(at.dq_lanes + lane, kTileLanes, scale + lane, g.head_dim, rows + lane, lanes);
    } else {
      write_lanes<true>(at.dq_lanes + lane, kTileLanes, scale + lane, g.head_dim, rows + lane, lanes);
    }
  }
}

// to[key] (+)= sums[key].
inline void write_keys(const float* sums, size_t head_dim, size_t key_begin, size_t key_end, const Rows& to, bool first) {
  for (size_t key = key_begin; key < key_end; ++key, sums += padded(head_dim)) {
    float* const out = floats_of(to, key);
    for (size_t i = 0; i < head_dim; i += V::kWidth) {
      const size_t n = smaller(V::kWidth, head_dim - i);
      const V::T sum = V::load(sums + i);
      V::store_n(out + i, first ? sum : V::add(V::load_n(out + i, n), sum), n);
    }
  }
}

void backward(const AttentionGroup& g, const AttentionGradients& d, const AttentionPair& pair, float* scratch) {
  const BackwardPanels at = backward_panels(g.head_dim, scratch);
  const size_t panel_end = round_up_to(pair.key_end, kKeyAlign);
  copy_keys(g.k, g.head_dim, pair.key_begin, panel_end, pair.key_end, at.k);
  copy_keys(g.v, g.head_dim, pair.key_begin, panel_end, pair.key_end, at.v);
  zero_row(at.dk, (panel_end - pair.key_begin) * padded(g.head_dim));
  zero_row(at.dv, (panel_end - pair.key_begin) * padded(g.head_dim));

  const size_t first_position = g.kv_len - g.q_len;
  const size_t row_end = (pair.position_end - first_position) * g.group;
  for (size_t row = (pair.position_begin - first_position) * g.group; row < row_end; row += kTileLanes) {
    const Tile tile = make_tile(g, row, row_end);
    BackwardStatistics statistics;
    load_tile(g, d, tile, at, statistics);
    const size_t end = smaller(panel_end, tile.key_end);
    for (size_t key = larger(pair.key_begin, tile.key_begin); key < end; key += kKeyBlock) {
      backward_step(g, tile, at, statistics, key, smaller(end, key + kKeyBlock), key - pair.key_begin);
    }
    write_queries(g, d, tile, at, pair.first_of_queries);
  }
  write_keys(at.dk, g.head_dim, pair.key_begin, pair.key_end, d.dk.sums, pair.first_of_keys);
  write_keys(at.dv, g.head_dim, pair.key_begin, pair.key_end, d.dv.sums, pair.first_of_keys);
}

}  // namespace
}  // namespace lowrank::LR_ISA

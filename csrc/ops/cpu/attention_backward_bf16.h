// Backward with bf16 operands and fp32 sums; like attention_backward.h, but
//   P and dS are taken while S and dP are in registers, and rounded where they become operands: by row of keys for dV and dK, which sum
//   over queries, and as pairs across keys for dQ;
//   dS = P ∘ (dP - delta) · scale, so that Q and K are operands as they are;
//   tiles have twice the rows, so that dV and dK are read and written half as often.
// Bound by VDPBF16PS: 10·D flops a visible pair.
#pragma once

#include "ops/cpu/attention_backward.h"
#include "ops/cpu/attention_pair_products.h"

#if defined(__AVX512BF16__)

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kGradientVectors = 2 * kProductVectors;
using GradientTile = TileOf<kGradientVectors>;
constexpr size_t kGradientRows = GradientTile::kRows;
constexpr size_t kGradientPairs = kGradientRows / 2;

// Panels in scratch.
struct PairBackwardPanels {
  float *k, *v;              // [kAttentionChunk][pair_key_stride]: pairs along head_dim
  float* k_across;           // pairs across keys
  float *dk, *dv;            // [kAttentionChunk][padded]
  float *q_lanes, *do_lanes; // [pair_rows][kGradientRows]
  float *q_rows, *do_rows;   // [kGradientPairs][padded]: pairs across rows
  float* dq_lanes;           // [padded][kGradientRows]
  float *p, *ds;             // [kKeyBlock][kGradientPairs]: pairs across rows
  float* ds_across;          // [kKeyBlock / 2][kGradientRows]: pairs across keys
  float *scores, *d_scores;  // S and dP
};

// Calls take(panel, floats) for every panel.
template <class Take>
LR_INLINE void for_each_backward_panel(size_t head_dim, PairBackwardPanels* at, const Take& take) {
  const size_t length = padded(head_dim), keys = kAttentionChunk * pair_key_stride(head_dim);
  take(at->k, keys), take(at->v, keys);
  take(at->k_across, across_floats(head_dim, kAttentionChunk));
  take(at->dk, kAttentionChunk * length), take(at->dv, kAttentionChunk * length);
  take(at->q_lanes, pair_rows(head_dim) * kGradientRows), take(at->do_lanes, pair_rows(head_dim) * kGradientRows);
  take(at->q_rows, kGradientPairs * length), take(at->do_rows, kGradientPairs * length);
  take(at->dq_lanes, length * kGradientRows);
  take(at->p, kKeyBlock * kGradientPairs), take(at->ds, kKeyBlock * kGradientPairs);
  take(at->ds_across, kKeyBlock / 2 * kGradientRows);
  take(at->scores, kScoreFloats), take(at->d_scores, kScoreFloats);
}

inline size_t pair_backward_scratch(size_t head_dim) {
  PairBackwardPanels at;
  size_t total = 0;
  for_each_backward_panel(head_dim, &at, [&](float*&, size_t floats) { total += floats; });
  return total;
}

inline PairBackwardPanels pair_backward_panels(size_t head_dim, float* scratch) {
  PairBackwardPanels at;
  for_each_backward_panel(head_dim, &at, [&](float*& panel, size_t floats) {
    panel = scratch;
    scratch += floats;
  });
  return at;
}

// Per-lane statistics of a tile.
struct PairBackwardStatistics {
  alignas(64) float lse[kGradientRows];    // in base 2
  alignas(64) float scale[kGradientRows];  // score_scale()
  alignas(64) float delta[kGradientRows];  // times scale
};

inline void load_gradient_tile(const AttentionGroup& g, const AttentionGradients& d, const GradientTile& tile,
                               const PairBackwardPanels& at, PairBackwardStatistics& statistics) {
  const size_t length = padded(g.head_dim);
  const char *q[kGradientRows], *d_o[kGradientRows];
  byte_pointers(g, tile, g.q, q);
  byte_pointers(g, tile, d.d_o, d_o);
  for (size_t v = 0; v < tile.vectors; ++v) {
    const size_t lane = v * V::kWidth;
    pairs_to_lanes(q + lane, g.q.bf16(), g.head_dim, score_sign(g), pair_rows(g.head_dim), at.q_lanes + lane, kGradientRows);
    pairs_to_lanes(d_o + lane, d.d_o.bf16(), g.head_dim, 0, pair_rows(g.head_dim), at.do_lanes + lane, kGradientRows);
  }
  const auto live = [&](const char* const* rows, size_t i) { return i < tile.rows ? rows[i] : nullptr; };
  for (size_t i = 0; i < tile.vectors * V::kWidth; i += 2) {
    interleave_row_pair(live(q, i), live(q, i + 1), g.q.bf16(), g.head_dim, at.q_rows + i / 2 * length, length);
    interleave_row_pair(live(d_o, i), live(d_o, i + 1), d.d_o.bf16(), g.head_dim, at.do_rows + i / 2 * length, length);
  }
  load_statistics(g, tile, d.lse, kLog2E, statistics.lse);
  load_statistics(g, tile, d.delta, 1.0f, statistics.delta);
  for (size_t i = 0; i < kGradientRows; ++i) {
    statistics.scale[i] = score_scale(g, tile, smaller(i, tile.rows - 1));
    statistics.delta[i] *= statistics.scale[i];
  }
  zero_row(at.dq_lanes, length * kGradientRows);
}

// Rows of two keys, rounded, as pairs across lanes; returns them as pairs across the keys.
LR_INLINE V::T store_two_keys(V::T even, V::T odd, float* row) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  _mm256_store_si256((__m256i*)row, _mm512_castsi512_si256(both));
  _mm256_store_si256((__m256i*)(row + kGradientPairs), _mm512_extracti64x4_epi64(both, 1));
  return as_floats(interleaved(both));
}

// P and dS of kProductRows keys from `key` on, for kVectors vectors from `v` on. `row` is the keys' first row in the sources of S and dP,
// `out` that in p and ds.
template <bool kEdge, size_t kVectors>
LR_INLINE void gradient_of_scores(const AttentionGroup& g, const GradientTile& tile, const PairBackwardPanels& at,
                                  const PairBackwardStatistics& statistics, const Scores<kVectors>& scores,
                                  const Scores<kVectors>& d_scores, size_t v, size_t key, size_t row, size_t out) {
  const size_t lane = v * V::kWidth;
  const V::T factor = V::set(score_factor(g));
  const auto visible = [&](size_t i, size_t j) __attribute__((always_inline)) {
    return sees(V::load(tile.position + lane + j * V::kWidth), key + i, g.window);
  };
  V::T s[kProductRows][kVectors];
  alignas(64) float probabilities[kProductRows][kVectors * V::kWidth];
  scores.get(row, s);
#pragma GCC unroll 4
  for (size_t j = 0; j < kVectors; ++j) {
    const V::T lse = V::load(statistics.lse + lane + j * V::kWidth);
    float* const p = at.p + out * kGradientPairs + (lane + j * V::kWidth) / 2;
#pragma GCC unroll 4
    for (size_t i = 0; i < kProductRows; i += 2) {
      V::T even = exp2_to_round(_mm512_fmsub_ps(s[i][j], factor, lse)), odd = exp2_to_round(_mm512_fmsub_ps(s[i + 1][j], factor, lse));
      if (kEdge) {
        even = _mm512_maskz_mov_ps(visible(i, j), even);
        odd = _mm512_maskz_mov_ps(visible(i + 1, j), odd);
      }
      V::store(probabilities[i] + j * V::kWidth, even);
      V::store(probabilities[i + 1] + j * V::kWidth, odd);
      store_two_keys(even, odd, p + i * kGradientPairs);
    }
  }
  d_scores.get(row, s);
#pragma GCC unroll 4
  for (size_t j = 0; j < kVectors; ++j) {
    const V::T scale = V::load(statistics.scale + lane + j * V::kWidth), delta = V::load(statistics.delta + lane + j * V::kWidth);
    float* const ds = at.ds + out * kGradientPairs + (lane + j * V::kWidth) / 2;
    float* const across = at.ds_across + out / 2 * kGradientRows + lane + j * V::kWidth;
#pragma GCC unroll 4
    for (size_t i = 0; i < kProductRows; i += 2) {
      V::T even = V::mul(V::load(probabilities[i] + j * V::kWidth), _mm512_fmsub_ps(s[i][j], scale, delta));
      V::T odd = V::mul(V::load(probabilities[i + 1] + j * V::kWidth), _mm512_fmsub_ps(s[i + 1][j], scale, delta));
      if (kEdge) {
        even = _mm512_maskz_mov_ps(visible(i, j), even);
        odd = _mm512_maskz_mov_ps(visible(i + 1, j), odd);
      }
      V::store(across + i / 2 * kGradientRows, store_two_keys(even, odd, ds + i * kGradientPairs));
    }
  }
}

// One tile against keys [begin, end); `key` is where they start in the panels.
inline void pair_backward_step(const AttentionGroup& g, const GradientTile& tile, const PairBackwardPanels& at,
                               const PairBackwardStatistics& statistics, size_t begin, size_t end, size_t key) {
  const size_t length = padded(g.head_dim), stride = pair_key_stride(g.head_dim);
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    for_each_panel(tile.vectors - vector, [&](auto width, size_t first) __attribute__((always_inline)) {
      constexpr size_t kVectors = decltype(width)::kValue;
      const size_t v = vector + first, row = (key + from - begin) * stride;
      const auto source = [&](const float* keys, const float* lanes, float* scratch) __attribute__((always_inline)) {
        return Scores<kVectors>::at({to - from, kVectors, pairs_of(g.head_dim), keys + row, stride, lanes, kGradientRows, nullptr, 0},
                                    v * V::kWidth, scratch);
      };
      const Scores<kVectors> scores = source(at.k, at.q_lanes, at.scores), d_scores = source(at.v, at.do_lanes, at.d_scores);
      for (size_t at_key = from; at_key < to; at_key += kProductRows) {
        if (on_edge(g, tile, v, kVectors, at_key, at_key + kProductRows)) {
          gradient_of_scores<true>(g, tile, at, statistics, scores, d_scores, v, at_key, at_key - from, at_key - begin);
        } else {
          gradient_of_scores<false>(g, tile, at, statistics, scores, d_scores, v, at_key, at_key - from, at_key - begin);
        }
      }
    });
  });
  for_each_segment(tile, begin, end, [&](size_t vector, size_t from, size_t to) {
    const size_t lane = vector * V::kWidth, row = key + from - begin, pairs = (tile.vectors - vector) * V::kWidth / 2;
    const size_t scores = (from - begin) * kGradientPairs + lane / 2;
    product_by_rows<Update::kAdd>({to - from, length / V::kWidth, pairs, at.p + scores, kGradientPairs, at.do_rows + lane / 2 * length,
                                   length, at.dv + row * length, length});
    product_by_rows<Update::kAdd>({to - from, length / V::kWidth, pairs, at.ds + scores, kGradientPairs, at.q_rows + lane / 2 * length,
                                   length, at.dk + row * length, length});
    product_across<Update::kAdd>(g.head_dim, tile.vectors - vector, (to - from) / 2, across_at(at.k_across, g.head_dim, row),
                                 kAttentionChunk, at.ds_across + (from - begin) / 2 * kGradientRows + lane, at.dq_lanes + lane,
                                 kGradientRows);
  });
}

// x plus what earlier pairs left, unless this is the first, to the sums, or to the gradient itself if this is the last.
LR_INLINE void write_gradient(V::T x, size_t d, size_t n, char* sums, char* out, bool out_bf16, bool first, bool last) {
  if (!first) x = V::add(V::load_n(reinterpret_cast<const float*>(sums) + d, n), x);
  if (last) {
    store_numbers(out, out_bf16, d, n, x);
  } else {
    store_numbers(sums, false, d, n, x);
  }
}

inline void write_pair_queries(const AttentionGroup& g, const AttentionGradient& to, const GradientTile& tile, const float* dq_lanes,
                               const AttentionPair& pair) {
  char *sums[kGradientRows], *out[kGradientRows];
  byte_pointers(g, tile, to.sums, sums);
  byte_pointers(g, tile, to.out, out);
  alignas(64) float ones[V::kWidth];
  for (float& one : ones) one = 1;
  for (size_t lane = 0; lane < tile.rows; lane += V::kWidth) {
    lanes_to_rows(dq_lanes + lane, kGradientRows, ones, g.head_dim, smaller(V::kWidth, tile.rows - lane),
                  [&](size_t i, size_t d, size_t n, V::T x) __attribute__((always_inline)) {
                    write_gradient(x, d, n, sums[lane + i], out[lane + i], to.out.bf16(), pair.first_of_queries, pair.last_of_queries);
                  });
  }
}

inline void write_pair_keys(const float* sums, size_t head_dim, const AttentionGradient& to, const AttentionPair& pair) {
  for (size_t key = pair.key_begin; key < pair.key_end; ++key, sums += padded(head_dim)) {
    char *const row = static_cast<char*>(to.sums.at(key, 0).data), *const out = static_cast<char*>(to.out.at(key, 0).data);
    for (size_t d = 0; d < head_dim; d += V::kWidth) {
      write_gradient(V::load(sums + d), d, smaller(V::kWidth, head_dim - d), row, out, to.out.bf16(), pair.first_of_keys,
                     pair.last_of_keys);
    }
  }
}

void pair_backward(const AttentionGroup& g, const AttentionGradients& d, const AttentionPair& pair, float* scratch) {
  const PairBackwardPanels at = pair_backward_panels(g.head_dim, scratch);
  const size_t panel_end = round_up_to(pair.key_end, kPairKeyAlign);
  copy_pair_keys(g.k, g.head_dim, pair.key_begin, panel_end, pair.key_end, at.k);
  copy_pair_keys(g.v, g.head_dim, pair.key_begin, panel_end, pair.key_end, at.v);
  pack_across(g.k, g.head_dim, pair.key_begin, panel_end, pair.key_end, kAttentionChunk, at.k_across);
  zero_row(at.dk, (panel_end - pair.key_begin) * padded(g.head_dim));
  zero_row(at.dv, (panel_end - pair.key_begin) * padded(g.head_dim));

  const ProductScope scope;
  const size_t first_position = g.kv_len - g.q_len;
  const size_t row_end = (pair.position_end - first_position) * g.group;
  for (size_t row = (pair.position_begin - first_position) * g.group; row < row_end; row += kGradientRows) {
    const GradientTile tile = make_tile<kGradientVectors, kPairKeyAlign, kPairVectorAlign>(g, row, row_end);
    PairBackwardStatistics statistics;
    load_gradient_tile(g, d, tile, at, statistics);
    const size_t end = smaller(panel_end, tile.key_end);
    for (size_t key = larger(pair.key_begin, tile.key_begin); key < end; key += kKeyBlock) {
      pair_backward_step(g, tile, at, statistics, key, smaller(end, key + kKeyBlock), key - pair.key_begin);
    }
    write_pair_queries(g, d.dq, tile, at.dq_lanes, pair);
  }
  write_pair_keys(at.dk, g.head_dim, d.dk, pair);
  write_pair_keys(at.dv, g.head_dim, d.dv, pair);
}

}  // namespace
}  // namespace lowrank::LR_ISA

#endif  // __AVX512BF16__

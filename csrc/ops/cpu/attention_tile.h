// What forward and backward share: a tile of rows in lanes, which keys its vectors see, and copies of keys in panels.
//
// Scores lie as Sᵀ[key][lane]: keys are broadcast and never transposed, and maxima and sums over keys need no step across lanes.
#pragma once

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/attention_product.h"
#include "ops/cpu/attention_transpose.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kTileLanes = kProductVectors * V::kWidth;
constexpr size_t kKeyBlock = 64;     // keys a step: their scores for a tile stay in L1
constexpr size_t kKeyAlign = 16;     // key bounds are rounded to so many; a multiple of kProductRows
constexpr float kMasked = -1e30f;    // finite, so that no inf - inf arises
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

static_assert(kAttentionRows % kTileLanes == 0 && kKeyAlign % kProductRows == 0 && kKeyBlock % kKeyAlign == 0);
static_assert(kAttentionChunk % kKeyBlock == 0 && kKeyAlign % V::kWidth == 0);

LR_INLINE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
LR_INLINE size_t larger(size_t a, size_t b) { return a > b ? a : b; }
LR_INLINE size_t round_up_to(size_t a, size_t multiple) { return (a + multiple - 1) / multiple * multiple; }

LR_INLINE const float* floats_of(const ConstRows& x, size_t row) { return static_cast<const float*>(x.data) + row * x.stride; }
LR_INLINE float* floats_of(const Rows& x, size_t row) { return static_cast<float*>(x.data) + row * x.stride; }

// Row length of panels whose rows are multiplied as vectors or as rows of A.
LR_INLINE size_t padded(size_t head_dim) { return round_up_to(head_dim, kKeyAlign); }
// Row length of key panels: an odd number of cache lines, so that a column of keys spreads over all sets of L1.
LR_INLINE size_t key_stride(size_t head_dim) { return (padded(head_dim) / 16 | 1) * 16; }

// 2^x for x <= 127, relative error below 2e-7; 2^-126 for x below -126. NaN stays NaN.   Cephes' exp2f
LR_INLINE V::T exp2_of(V::T x) {
  x = V::max(V::set(-126.0f), x);
  const V::T n = V::round(x), f = V::sub(x, n);
  V::T p = V::set(1.535336188319500e-4f);
  p = V::fma(p, f, V::set(1.339887440266574e-3f));
  p = V::fma(p, f, V::set(9.618437357674640e-3f));
  p = V::fma(p, f, V::set(5.550332471162809e-2f));
  p = V::fma(p, f, V::set(2.402264791363012e-1f));
  p = V::fma(p, f, V::set(6.931472028550421e-1f));
  p = V::fma(p, f, V::set(1.0f));
  return V::scale2(p, n);
}

// Up to kRows consecutive rows. Lanes past the last row repeat it, so that their scores are as tame; their results go nowhere.
template <size_t kVectors>
struct TileOf {
  static constexpr size_t kRows = kVectors * V::kWidth;
  size_t first_row, rows, vectors;
  size_t key_begin, key_end;        // keys that any of its rows sees, multiples of an alignment (the end may pass kv_len)
  size_t end[kVectors];             // of each vector's keys, likewise; ascending
  alignas(64) float position[kRows];
};
using Tile = TileOf<kProductVectors>;

LR_INLINE size_t position_of(const AttentionGroup& g, size_t row) { return g.kv_len - g.q_len + row / g.group; }

// Its vectors come in groups of kVectorAlign that see keys up to the same end.
template <size_t kVectors = kProductVectors, size_t kAlign = kKeyAlign, size_t kVectorAlign = 1>
LR_INLINE TileOf<kVectors> make_tile(const AttentionGroup& g, size_t first_row, size_t row_end) {
  TileOf<kVectors> tile;
  tile.first_row = first_row;
  tile.rows = smaller(tile.kRows, row_end - first_row);
  tile.vectors = round_up_to((tile.rows + V::kWidth - 1) / V::kWidth, kVectorAlign);
  for (size_t i = 0; i < tile.kRows; ++i) {
    tile.position[i] = static_cast<float>(position_of(g, first_row + smaller(i, tile.rows - 1)));
  }
  for (size_t v = 0; v < tile.vectors; ++v) {
    const size_t last = smaller((v / kVectorAlign + 1) * kVectorAlign * V::kWidth, tile.rows) - 1;
    tile.end[v] = round_up_to(position_of(g, first_row + last) + 1, kAlign);
  }
  const size_t position = position_of(g, first_row);
  tile.key_begin = g.window > 0 && position + 1 > g.window ? (position + 1 - g.window) / kAlign * kAlign : 0;
  tile.key_end = tile.end[tile.vectors - 1];
  return tile;
}

// body(vector, from, to): the keys of [begin, end) that vectors `vector` to the last see and earlier ones do not.
template <size_t kVectors, class Body>
LR_INLINE void for_each_segment(const TileOf<kVectors>& tile, size_t begin, size_t end, const Body& body) {
  for (size_t v = 0; v < tile.vectors && begin < end; ++v) {
    const size_t to = smaller(end, tile.end[v]);
    if (begin >= to) continue;
    body(v, begin, to);
    begin = to;
  }
}

// Whether some row of the vectors [v, v + count) does not see some key of [begin, end).
template <size_t kVectors>
LR_INLINE bool on_edge(const AttentionGroup& g, const TileOf<kVectors>& tile, size_t v, size_t count, size_t begin, size_t end) {
  return static_cast<float>(end) > tile.position[v * V::kWidth] + 1 ||
         (g.window > 0 && static_cast<float>(begin + g.window) <= tile.position[(v + count) * V::kWidth - 1]);
}

// 0 where the rows at `position` see `key`, else at most kMasked.
LR_INLINE V::T mask_of(V::T position, size_t key, size_t window) {
  const V::T ahead = V::sub(position, V::set(static_cast<float>(key)));
  V::T distance = V::min(V::zero(), ahead);
  if (window > 0) distance = V::min(distance, V::sub(V::set(static_cast<float>(window - 1)), ahead));
  return V::mul(distance, V::set(-kMasked));
}

// Pointers of the lanes' rows in a tensor whose head 0 of query 0 is at `base`; strides in elements of T.
template <class T, size_t kVectors>
LR_INLINE void row_pointers(const AttentionGroup& g, const TileOf<kVectors>& tile, T* base, size_t stride, size_t head_stride, T** rows) {
  size_t query = tile.first_row / g.group, head = tile.first_row % g.group;
  T* row = base;
  for (size_t i = 0; i < tile.kRows; ++i) {
    if (i < tile.rows) row = base + query * stride + head * head_stride;
    rows[i] = row;
    if (++head == g.group) head = 0, ++query;
  }
}

LR_INLINE void row_pointers(const AttentionGroup& g, const Tile& tile, const ConstRows& x, const float** rows) {
  row_pointers(g, tile, floats_of(x, 0), x.stride, g.head_dim, rows);
}

LR_INLINE void row_pointers(const AttentionGroup& g, const Tile& tile, const Rows& x, float** rows) {
  row_pointers(g, tile, floats_of(x, 0), x.stride, g.head_dim, rows);
}

// out[lane] = scale · values[row] of per-row statistics [queries, heads].
template <size_t kVectors>
LR_INLINE void load_statistics(const AttentionGroup& g, const TileOf<kVectors>& tile, const float* values, float scale, float* out) {
  for (size_t i = 0; i < tile.kRows; ++i) {
    const size_t row = tile.first_row + smaller(i, tile.rows - 1);
    out[i] = scale * values[row / g.group * g.lse_stride + row % g.group];
  }
}

// How many lanes of a vector hold rows of their own.
template <size_t kVectors>
LR_INLINE size_t live_lanes(const TileOf<kVectors>& tile, size_t v) { return smaller(V::kWidth, tile.rows - v * V::kWidth); }

// One row of `length`, times `scale`, with zeros up to `padded_length`.
LR_INLINE void copy_row(const float* from, size_t length, float scale, float* to, size_t padded_length) {
  const V::T factor = V::set(scale);
  size_t d = 0;
  for (; d + V::kWidth <= length; d += V::kWidth) V::store(to + d, V::mul(V::load(from + d), factor));
  if (d < length) {
    V::store(to + d, V::mul(V::load_n(from + d, length - d), factor));
    d += V::kWidth;
  }
  for (; d < padded_length; d += V::kWidth) V::store(to + d, V::zero());
}

LR_INLINE void zero_row(float* to, size_t length) {
  for (size_t d = 0; d < length; d += V::kWidth) V::store(to + d, V::zero());
}

// Rows [begin, end) of keys or values into a panel of key_stride; those past `available` are zeros.
inline void copy_keys(const ConstRows& from, size_t head_dim, size_t begin, size_t end, size_t available, float* to) {
  const size_t stride = key_stride(head_dim), length = padded(head_dim);
  for (size_t key = begin; key < end; ++key, to += stride) {
    if (key < available) {
      copy_row(floats_of(from, key), head_dim, 1.0f, to, length);
    } else {
      zero_row(to, length);
    }
  }
}

}  // namespace
}  // namespace lowrank::LR_ISA

// The products of bf16 attention, over panels of pairs: by VDPBF16PS in registers, or on AMX's tiles where the level has them. A unit has
// one of the two, under the same names.
//   by rows   A[m][pair] along head_dim, or along the rows of a tile: A's rows hold pairs that are consecutive in memory
//   across    A[m][pair of keys] where m is an element of the head: packed by pack_across
#pragma once

#include "ops/cpu/attention_pairs.h"

#if defined(__AMX_BF16__)
#include "ops/cpu/amx_tiles.h"
#endif

#if defined(__AVX512BF16__)

namespace lowrank::LR_ISA {
namespace {

#if defined(__AMX_BF16__)
// A tile's product takes 16 pairs: sums over keys are cut at 32 keys, sums over lanes at two vectors, sums over head_dim padded with zeros.
constexpr size_t kPairAlign = kTileRows;
constexpr size_t kPairKeyAlign = 2 * kPairAlign, kPairVectorAlign = 2;
// Floats that hold the scores of a block of keys for a panel of vectors.
constexpr size_t kScoreFloats = kKeyBlock * kTileLanes;

using ProductScope = TileScope;

// kRows x kColumns tiles of C.
template <Update kUpdate, int kRows, int kColumns>
LR_INLINE void tile_block(const Product& p, size_t m, size_t n) {
  const size_t a_bytes = p.a_stride * sizeof(float), b_bytes = p.b_stride * sizeof(float), c_bytes = p.c_stride * sizeof(float);
  float* const c = p.c + m * p.c_stride + n;
  float* const below = c + kTileRows * p.c_stride;
  if (kUpdate == Update::kSet) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(c, c_bytes);
    if (kColumns == 2) tile_load<1>(c + V::kWidth, c_bytes);
    if (kRows == 2) tile_load<2>(below, c_bytes);
    if (kRows == 2 && kColumns == 2) tile_load<3>(below + V::kWidth, c_bytes);
  }
  const float *a = p.a + m * p.a_stride, *b = p.b + n;
  for (size_t k = 0; k < p.k; k += kPairAlign, a += kPairAlign, b += kPairAlign * p.b_stride) {
    tile_load<4>(a, a_bytes);
    tile_load<6>(b, b_bytes);
    tile_multiply<0, 4, 6>();
    if (kColumns == 2) {
      tile_load<7>(b + V::kWidth, b_bytes);
      tile_multiply<1, 4, 7>();
    }
    if (kRows == 2) {
      tile_load<5>(a + kTileRows * p.a_stride, a_bytes);
      tile_multiply<2, 5, 6>();
      if (kColumns == 2) tile_multiply<3, 5, 7>();
    }
  }
  tile_store<0>(c, c_bytes);
  if (kColumns == 2) tile_store<1>(c + V::kWidth, c_bytes);
  if (kRows == 2) tile_store<2>(below, c_bytes);
  if (kRows == 2 && kColumns == 2) tile_store<3>(below + V::kWidth, c_bytes);
}

// C (+)= A·B; M and K in whole tiles.
template <Update kUpdate>
void product_by_rows(const Product& p) {
  for (size_t n = 0; n < p.vectors; n += 2) {
    for (size_t m = 0; m < p.m; m += 2 * kTileRows) {
      const bool two_rows = p.m - m > kTileRows, two_columns = p.vectors - n > 1;
      const size_t column = n * V::kWidth;
      if (two_rows && two_columns) tile_block<kUpdate, 2, 2>(p, m, column);
      if (two_rows && !two_columns) tile_block<kUpdate, 2, 1>(p, m, column);
      if (!two_rows && two_columns) tile_block<kUpdate, 1, 2>(p, m, column);
      if (!two_rows && !two_columns) tile_block<kUpdate, 1, 1>(p, m, column);
    }
  }
}

// Scores of a block's keys for kVectors vectors from `lane` on: all of them at once, handed out by kProductRows.
template <size_t kVectors>
class Scores {
 public:
  LR_INLINE Scores at(const Product& p, size_t lane, float* scratch) {
    constexpr size_t kStride = kVectors * V::kWidth;
    product_by_rows<Update::kSet>({p.m, kVectors, round_up_to(p.k, kPairAlign), p.a, p.a_stride, p.b + lane, p.b_stride, scratch, kStride});
    Scores scores;
    scores.rows_ = scratch;
    return scores;
  }
  __attribute__((always_inline)) void get(size_t m, V::T (&out)[kProductRows][kVectors]) const {
    for (size_t i = 0; i < kProductRows; ++i) {
      for (size_t j = 0; j < kVectors; ++j) out[i][j] = V::load(rows_ + ((m + i) * kVectors + j) * V::kWidth);
    }
  }

 private:
  const float* rows_;
};

// [padded head_dim][pairs of keys]; an odd number of cache lines from row to row.
LR_INLINE size_t across_stride(size_t keys) { return (keys / kPairNumbers | 1) * V::kWidth; }
LR_INLINE size_t across_floats(size_t head_dim, size_t keys) { return padded(head_dim) * across_stride(keys); }
LR_INLINE const float* across_at(const float* panel, size_t, size_t key) { return panel + key / 2; }

// Rows [begin, end) of keys or values as pairs across them, transposed; those past `available` are zeros. The panel has room for `keys`.
inline void pack_across(const ConstRows& from, size_t head_dim, size_t begin, size_t end, size_t available, size_t keys, float* to) {
  const size_t stride = across_stride(keys);
  const auto row = [&](size_t key) { return key < available ? from.at(key, 0).data : nullptr; };
  for (size_t key = begin; key < end; key += kPairNumbers, to += V::kWidth) {
    for (size_t d = 0; d < head_dim; d += V::kWidth) {
      V::T block[V::kWidth];
#pragma GCC unroll 16
      for (size_t i = 0; i < V::kWidth; ++i) {
        block[i] = interleave_rows(row(key + 2 * i), row(key + 2 * i + 1), from.bf16(), d, smaller(V::kWidth, head_dim - d));
      }
      transpose(block);
#pragma GCC unroll 16
      for (size_t i = 0; i < V::kWidth; ++i) V::store(to + (d + i) * stride, block[i]);
    }
  }
}

// C[head_dim][lanes] (+)= A·B over `pairs` of keys, A from across_at of a panel with room for `keys`.
template <Update kUpdate>
LR_INLINE void product_across(size_t head_dim, size_t vectors, size_t pairs, const float* a, size_t keys, const float* b, float* c,
                              size_t lanes) {
  product_by_rows<kUpdate>({padded(head_dim), vectors, pairs, a, across_stride(keys), b, lanes, c, lanes});
}

#else
constexpr size_t kPairAlign = 1;
constexpr size_t kPairKeyAlign = kKeyAlign, kPairVectorAlign = 1;
constexpr size_t kScoreFloats = 0;

struct ProductScope {};

template <Update kUpdate>
LR_INLINE void product_by_rows(const Product& p) {
  product<Pairs, Order::kRows, kUpdate>(p);
}

// Scores of a block's keys for kVectors vectors from `lane` on, computed when asked for.
template <size_t kVectors>
class Scores {
 public:
  LR_INLINE Scores at(const Product& p, size_t lane, float*) {
    Scores scores;
    scores.product_ = p;
    scores.lane_ = lane;
    return scores;
  }
  __attribute__((always_inline)) void get(size_t m, V::T (&out)[kProductRows][kVectors]) const {
    multiply<Pairs, Order::kRows>(product_, m, lane_, out);
  }

 private:
  Product product_;
  size_t lane_;
};

// [pairs of keys][padded head_dim]
LR_INLINE size_t across_floats(size_t head_dim, size_t keys) { return keys / 2 * padded(head_dim); }
LR_INLINE const float* across_at(const float* panel, size_t head_dim, size_t key) { return panel + key / 2 * padded(head_dim); }

inline void pack_across(const ConstRows& from, size_t head_dim, size_t begin, size_t end, size_t available, size_t, float* to) {
  const auto row = [&](size_t key) { return key < available ? from.at(key, 0).data : nullptr; };
  for (size_t key = begin; key < end; key += 2, to += padded(head_dim)) {
    interleave_row_pair(row(key), row(key + 1), from.bf16(), head_dim, to, padded(head_dim));
  }
}

template <Update kUpdate>
LR_INLINE void product_across(size_t head_dim, size_t vectors, size_t pairs, const float* a, size_t, const float* b, float* c,
                              size_t lanes) {
  product<Pairs, Order::kColumns, kUpdate>({round_up_to(head_dim, kProductRows), vectors, pairs, a, padded(head_dim), b, lanes, c, lanes});
}
#endif

// Rows of a panel of lanes whose pairs run along head_dim.
LR_INLINE size_t pair_rows(size_t head_dim) { return round_up_to(pairs_of(head_dim), kPairAlign); }

}  // namespace
}  // namespace lowrank::LR_ISA

#endif  // __AVX512BF16__

// The micro-kernel: an MR × (NV vectors) tile of C in registers, A broadcast from where it lies, B
// streamed from a panel. Bound by FMA: at 8 × 48 (AVX-512) a step of k is 24 FMA, 3 loads of B and
// 8 broadcasts, 12 cycles of FMA against 5.5 of loads; at 6 × 16 (AVX2) 6 against 4. Part of
// gemm_kernels.cpp.                  Goto & van de Geijn 2008; Van Zee & van de Geijn 2015 (BLIS)
#pragma once

#include "ops/cpu/gemm_kernels.h"
#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr size_t kMr = 8, kNv = 3;
#elif defined(__AVX2__)
constexpr size_t kMr = 6, kNv = 2;
#elif defined(__aarch64__)
constexpr size_t kMr = 8, kNv = 3;
#else
constexpr size_t kMr = 4, kNv = 2;  // 16 registers, and a product needs one before its sum
#endif
constexpr size_t kNr = kNv * V::kWidth;
constexpr size_t kPrefetchSteps = 8;  // of k, ahead in B
constexpr size_t kCacheLine = 64;

// The longest k of a block, which bounds the strip of A that for_each_strip packs.
constexpr size_t kMaxBlockK = 832;
constexpr size_t kPackRows = 12;

// Where a tile's sums go: the first `columns` columns.
struct TileOutput {
  BlockOutput to;
  size_t columns;
};

struct Tile {
  const GemmSegment* segments;
  size_t segment_count, first_row;
  const float* b;
  size_t b_step;  // floats from one row of B to the next
  TileOutput out;
};

// C is fetched for writing while the product runs.
template <size_t MR, size_t NV>
LR_INLINE void prefetch_output(const BlockOutput& out) {
  const size_t element = out.bf16 ? sizeof(uint16_t) : sizeof(float);
#pragma GCC unroll 8
  for (size_t i = 0; i < MR; ++i) {
    const char* c = (const char*)out.c + i * out.ldc * element;
    for (size_t byte = 0; byte < NV * V::kWidth * element; byte += kCacheLine)
      __builtin_prefetch(c + byte, 1);
  }
}

// Stores n lanes of a row's sums from column j on.
LR_INLINE void write_vector(V::T sum, const BlockOutput& out, size_t i, size_t j, size_t n) {
  const bool whole = n == V::kWidth;
  if (out.add != nullptr) {
    const float* add = out.add + i * out.add_ld + j;
    sum = V::add(whole ? V::load(add) : V::load_n(add, n), sum);
  }
  if (out.bias != nullptr)
    sum = V::add(sum, whole ? V::load(out.bias + j) : V::load_n(out.bias + j, n));
  if (out.bf16) {
    uint16_t* c = (uint16_t*)out.c + i * out.ldc + j;
    whole ? V::store_bf16(c, sum) : V::store_bf16_n(c, sum, n);
  } else {
    float* c = (float*)out.c + i * out.ldc + j;
    whole ? V::store(c, sum) : V::store_n(c, sum, n);
  }
}

// The last vector may hold fewer columns than lanes.
template <size_t MR, size_t NV>
LR_INLINE void write_output(const V::T (&sums)[MR][NV], const TileOutput& out) {
  const size_t last = out.columns - (NV - 1) * V::kWidth;
#pragma GCC unroll 4
  for (size_t j = 0; j < NV; ++j) {
    const size_t n = j + 1 < NV ? V::kWidth : last;
#pragma GCC unroll 8
    for (size_t i = 0; i < MR; ++i) write_vector(sums[i][j], out.to, i, j * V::kWidth, n);
  }
}

// kMasked: B's last vector holds only `columns` floats (it is read from a matrix, not from a padded
// panel).
template <size_t MR, size_t NV, bool kMasked>
void micro(const Tile& tile) {
  V::T acc[MR][NV];
#pragma GCC unroll 8
  for (size_t i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (size_t j = 0; j < NV; ++j) acc[i][j] = V::zero();
  }
  const size_t last = tile.out.columns - (NV - 1) * V::kWidth;  // columns in the last vector
  prefetch_output<MR, NV>(tile.out.to);
  const float* b = tile.b;
  const size_t b_step = tile.b_step;
  for (size_t s = 0; s < tile.segment_count; ++s) {
    const GemmSegment& segment = tile.segments[s];
    const size_t row = segment.row, col = segment.col;
    const float* a = (const float*)segment.a + tile.first_row * row;
    for (size_t p = segment.k; p > 0; --p) {
      V::T bv[NV];
#pragma GCC unroll 4
      for (size_t j = 0; j < NV; ++j) {
        bv[j] = kMasked && j + 1 == NV ? V::load_n(b + j * V::kWidth, last)
                                       : V::load(b + j * V::kWidth);
      }
      const char* ahead = (const char*)(b + kPrefetchSteps * b_step);
#pragma GCC unroll 4
      for (size_t byte = 0; byte < NV * V::kWidth * sizeof(float); byte += kCacheLine)
        __builtin_prefetch(ahead + byte);
      b += b_step;
#pragma GCC unroll 8
      for (size_t i = 0; i < MR; ++i) {
        const V::T x = V::set(a[i * row]);
#pragma GCC unroll 4
        for (size_t j = 0; j < NV; ++j) acc[i][j] = V::fma(x, bv[j], acc[i][j]);
      }
      a += col;
    }
  }
  write_output(acc, tile.out);
}

using Micro = void (*)(const Tile&);

// By vectors of columns, minus one.
template <size_t MR>
constexpr Micro kMicro[3] = {micro<MR, 1, false>, micro<MR, (kNv >= 2 ? 2 : 1), false>,
                             micro<MR, (kNv >= 3 ? 3 : 1), false>};

// The kernel of a tile; ragged edges are smaller tiles, never a second algorithm.
template <size_t MR = kMr>
LR_INLINE Micro micro_for(size_t rows, size_t vectors) {
  if constexpr (MR > 1) {
    if (rows < MR) return micro_for<MR - 1>(rows, vectors);
  }
  return kMicro<MR>[vectors - 1];
}

// The kernel of one last vector of columns that is not whole.
template <size_t MR = kMr>
LR_INLINE Micro micro_masked_for(size_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return micro_masked_for<MR - 1>(rows);
  }
  return micro<MR, 1, true>;
}

// Rows [first, first + rows) of a segment that is strided along k, as [k][kMr]: adjacent rows are
// adjacent floats there.
LR_INLINE void pack_rows(const GemmSegment& segment, size_t first, size_t rows, float* out) {
  const float* a = (const float*)segment.a + first * segment.row;
  if (segment.row == 1 && rows == kMr) {
    for (size_t p = 0; p < segment.k; ++p, a += segment.col, out += kMr)
      memcpy(out, a, kMr * sizeof(float));
    return;
  }
  for (size_t p = 0; p < segment.k; ++p, a += segment.col, out += kMr) {
    for (size_t i = 0; i < rows; ++i) out[i] = a[i * segment.row];
  }
}

// Calls f(tile rows, tile) for each strip of kMr rows, with A's strided segments packed. Rows are
// outermost, so that a strip of A stays in L1 and B streams from L2.
template <class F>
LR_INLINE void for_each_strip(const GemmSegment* segments, size_t segment_count, size_t m,
                              const F& f) {
  bool strided = false;
  for (size_t s = 0; s < segment_count; ++s) strided |= segments[s].col != 1;
  if (!strided) {
    for (size_t i = 0; i < m; i += kMr) f(i, m - i < kMr ? m - i : kMr, segments, i);
    return;
  }
  alignas(64) float strip[kMaxBlockK * kMr];
  GemmSegment packed[kGemmMaxSegments];
  for (size_t i = 0; i < m; i += kMr) {
    const size_t rows = m - i < kMr ? m - i : kMr;
    float* out = strip;
    for (size_t s = 0; s < segment_count; ++s) {
      const GemmSegment& segment = segments[s];
      if (segment.col == 1) {
        packed[s] = {(const float*)segment.a + i * segment.row, segment.row, 1, segment.k};
        continue;
      }
      pack_rows(segment, i, rows, out);
      packed[s] = {out, 1, kMr, segment.k};
      out += segment.k * kMr;
    }
    f(i, rows, packed, 0);
  }
}

void block(const GemmSegment* segments, size_t segment_count, size_t m, const float* panels,
           size_t n, const BlockOutput& out) {
  size_t k = 0;
  for (size_t s = 0; s < segment_count; ++s) k += segments[s].k;
  for_each_strip(segments, segment_count, m,
                 [&](size_t i, size_t rows, const GemmSegment* strip, size_t first_row) {
                   for (size_t j = 0; j < n; j += kNr) {
                     const size_t columns = n - j < kNr ? n - j : kNr;
                     const size_t vectors = (columns + V::kWidth - 1) / V::kWidth;
                     micro_for(rows, vectors)({strip, segment_count, first_row, panels + j * k,
                                               vectors * V::kWidth, {out.at(i, j), columns}});
                   }
                 });
}

void direct(const GemmSegment& segment, size_t m, const float* b, size_t ldb, size_t n,
            const BlockOutput& out) {
  for_each_strip(
      &segment, 1, m, [&](size_t i, size_t rows, const GemmSegment* strip, size_t first_row) {
        for (size_t j = 0; j < n;) {
          const size_t whole = (n - j) / V::kWidth, vectors = whole < kNv ? whole : kNv;
          const size_t columns = vectors > 0 ? vectors * V::kWidth : n - j;
          const Micro kernel = vectors > 0 ? micro_for(rows, vectors) : micro_masked_for(rows);
          kernel({strip, 1, first_row, b + j, ldb, {out.at(i, j), columns}});
          j += columns;
        }
      });
}

}  // namespace
}  // namespace lowrank::LR_ISA

// Packed blocks with bf16 operands and fp32 sums on AMX's tiles: 32 × 32 of C in four tiles, a unit
// of 32 k in 64 cycles. Bound by what feeds it: loads of tiles (one per product, so A should stay
// in L1 while B streams past it from L2) and the way of C to memory, which is why the sums of a
// block are written between the products of the next. Panels are those of gemm_pairs.h, 32 columns
// wide, so that a tile of B is 16 rows of pairs as they lie; k is padded with zeros to whole units.
// Part of gemm_kernels.cpp.
#pragma once

#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/gemm_micro.h"
#include "ops/cpu/gemm_pairs.h"

namespace lowrank::LR_ISA {
namespace {

constexpr size_t kTileK = kTileRowBytes / sizeof(uint16_t);     // of a row of A
constexpr size_t kTileColumns = kTileRowBytes / sizeof(float);  // of C, and pairs of a row of A
constexpr size_t kTilePairs = kTileRows;                        // along k, in a tile of B
constexpr size_t kTileFloats = kTileRows * kTileColumns;
constexpr size_t kPairMr = 2 * kTileRows, kPairNr = 2 * kTileColumns, kPairUnit = kTileK;
// The longest k of a block. A strip of A of 40 KiB and the sums of two blocks fill an L1 of 48 KiB:
// pieces of 576, or 608 with LoRA's tail, stay there; with 768 a tenth of the speed or more is
// lost.
constexpr size_t kPairMaxK = 640;
constexpr size_t kPairPackRows = 75;
constexpr size_t kMaxUnits = kPairMaxK / kTileK;
static_assert(kTileK == kPairWeights && kTileColumns == kW && kPairNr % kTileK == 0);

// ── A ──
// The tiles of one unit of k: row i of the strip at rows + i * stride, in bytes.
struct UnitOfA {
  const uint8_t* rows;
  size_t stride;
  // What the next strip's come from: 32 rows, or k, of 32 elements.
  const uint8_t* ahead;
  size_t ahead_stride, ahead_bytes;
};

struct StripOfA {
  alignas(64) float copies[kMaxUnits][kPairMr][kTileColumns];  // pairs
  UnitOfA units[kMaxUnits];
};

// Tiles are loaded from bf16 rows where they lie, if each of their rows is a line of the cache and
// they take no more of a set of L1 than a copy could. Copying adds a few percent to a wide product,
// more to a narrow one.
LR_INLINE bool tile_loadable(const GemmSegment& segment, size_t rows) {
  const size_t stride = segment.row * sizeof(uint16_t);
  if (!segment.bf16 || segment.col != 1 || segment.k % kTileK != 0 || rows % kTileRows != 0 ||
      ((uintptr_t)segment.a | stride) % kTileRowBytes != 0) {
    return false;
  }
  const size_t lines = segment.k / kTileK, stride_lines = stride / kTileRowBytes;
  const size_t power_of_two = stride_lines & (0 - stride_lines);  // rows meet at multiples of it
  return ((lines + power_of_two - 1) & (0 - power_of_two)) <= kMaxUnits;
}

// Rows whose k are adjacent, rounded where they are fp32; zeros below them.
template <DType kType>
LR_INLINE void copy_rows(const uint8_t* source, size_t stride, size_t k, size_t rows,
                         float (*units)[kPairMr][kTileColumns]) {
  const size_t tile_rows = rows <= kTileRows ? kTileRows : kPairMr;
  for (size_t i = 0; i < tile_rows; ++i, source += stride) {
    for (size_t p = 0; p < k; p += kTileK) {
      const size_t n = k - p < kTileK ? k - p : kTileK;
      V::store(units[p / kTileK][i], i < rows ? pairs_along<kType>(source, p, n) : V::zero());
    }
  }
}

// Adjacent columns of a matrix whose rows are k: pairs along k, 16 by 16, transposed.
template <DType kType>
LR_INLINE void copy_columns(const uint8_t* source, size_t stride, size_t k, size_t rows,
                            float (*units)[kPairMr][kTileColumns]) {
  for (size_t p = 0; p < k; p += kTileK, source += kTileK * stride) {
    for (size_t i = 0; i < rows; i += kTileRows) {
      const size_t n = rows - i < kTileRows ? rows - i : kTileRows;
      V::T r[kW];
      for (size_t pair = 0; pair < kW; ++pair) {
        const size_t even = p + 2 * pair;
        const uint8_t* row = source + 2 * pair * stride;
        r[pair] = even < k
                      ? pairs_across<kType>(row, even + 1 < k ? row + stride : nullptr, i, n)
                      : V::zero();
      }
      transpose(r);
#pragma GCC unroll 16
      for (size_t j = 0; j < kW; ++j) V::store(units[p / kTileK][i + j], r[j]);
    }
  }
}

template <DType kType>
LR_INLINE void copy_segment(const GemmSegment& segment, const uint8_t* source, size_t element,
                            size_t rows, float (*units)[kPairMr][kTileColumns]) {
  if (segment.col == 1) {
    copy_rows<kType>(source, segment.row * element, segment.k, rows, units);
  } else {
    copy_columns<kType>(source, segment.col * element, segment.k, rows, units);
  }
}

// Rows [first, first + rows) of A.
void load_strip(const GemmSegment* segments, size_t segment_count, size_t first, size_t rows,
                StripOfA* strip) {
  size_t unit = 0;
  for (size_t s = 0; s < segment_count; ++s) {
    const GemmSegment& segment = segments[s];
    const size_t element = segment.bf16 ? sizeof(uint16_t) : sizeof(float);
    const uint8_t* source = (const uint8_t*)segment.a + first * segment.row * element;
    const bool in_place = tile_loadable(segment, rows);
    if (!in_place && segment.bf16)
      copy_segment<DType::kBF16>(segment, source, element, rows, strip->copies + unit);
    if (!in_place && !segment.bf16)
      copy_segment<DType::kF32>(segment, source, element, rows, strip->copies + unit);
    const size_t row = segment.row * element, col = segment.col * element;
    for (size_t p = 0; p < segment.k; p += kTileK, ++unit) {
      UnitOfA& to = strip->units[unit];
      const uint8_t* at = source + p * col;
      to.rows = in_place ? at : (const uint8_t*)strip->copies[unit];
      to.stride = in_place ? row : kTileRowBytes;
      to.ahead = at + kPairMr * row;
      to.ahead_stride = segment.col == 1 ? row : col;
      to.ahead_bytes = kTileK * element;
    }
  }
}

// ── C ──
// Where the sums of a block go.
struct BlockOfC {
  BlockOutput to;
  size_t rows = 0;
  __mmask32 columns = 0;
};

// Row i of sums that tiles have left: [2][2] tiles of [16][16].
LR_INLINE void write_row(const float* sums, const BlockOfC& c, size_t i) {
  sums += i / kTileRows * 2 * kTileFloats + i % kTileRows * kTileColumns;
  V::T low = V::load(sums), high = V::load(sums + kTileFloats);
  const __mmask16 low_mask = (__mmask16)c.columns, high_mask = (__mmask16)(c.columns >> kW);
  if (c.to.add != nullptr) {
    const float* add = c.to.add + i * c.to.add_ld;
    low = V::add(_mm512_maskz_loadu_ps(low_mask, add), low);
    high = V::add(_mm512_maskz_loadu_ps(high_mask, add + kW), high);
  }
  if (c.to.bias != nullptr) {
    low = V::add(low, _mm512_maskz_loadu_ps(low_mask, c.to.bias));
    high = V::add(high, _mm512_maskz_loadu_ps(high_mask, c.to.bias + kW));
  }
  if (c.to.bf16) {
    uint16_t* out = (uint16_t*)c.to.c + i * c.to.ldc;
    _mm512_mask_storeu_epi16(out, c.columns, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  } else {
    float* out = (float*)c.to.c + i * c.to.ldc;
    _mm512_mask_storeu_ps(out, low_mask, low);
    _mm512_mask_storeu_ps(out + kW, high_mask, high);
  }
}

// Row i of C is fetched for writing, and what is added to it for reading.
LR_INLINE void fetch_row(const BlockOfC& c, size_t i) {
  const size_t bytes = kPairNr * (c.to.bf16 ? sizeof(uint16_t) : sizeof(float));
  const char* out = (const char*)c.to.c + i * c.to.ldc * (bytes / kPairNr);
  __builtin_prefetch(out, 1);
  if (bytes > kCacheLine) __builtin_prefetch(out + kCacheLine, 1);
  if (c.to.add != nullptr && c.to.add != c.to.c) {
    const char* add = (const char*)(c.to.add + i * c.to.add_ld);
    __builtin_prefetch(add);
    __builtin_prefetch(add + kCacheLine);
  }
}

// The work between the products of a block, a share of it at each unit of k: rows of the block
// before are written, rows of its own C fetched, and so is a share of the next strip of A.
class Pipeline {
 public:
  Pipeline(size_t units, size_t panels)
      : rows_per_unit_(share_of_rows(units)), ahead_per_panel_(share_of_rows(panels)) {}

  // Panel `panel` of a strip begins. `more`: another strip comes after it.
  __attribute__((always_inline)) void begin(const BlockOfC& c, size_t panel, bool more) {
    before_ = c_;
    c_ = c;
    written_ = fetched_ = 0;
    ahead_begin_ = panel * ahead_per_panel_;
    ahead_end_ = more ? ahead_begin_ + ahead_per_panel_ : ahead_begin_;
  }

  __attribute__((always_inline)) void write_some() {
    const size_t end = at_most(written_ + rows_per_unit_, before_.rows);
    for (; written_ < end; ++written_) write_row(done_, before_, written_);
  }

  __attribute__((always_inline)) void fetch_some() {
    const size_t end = at_most(fetched_ + rows_per_unit_, c_.rows);
    for (; fetched_ < end; ++fetched_) fetch_row(c_, fetched_);
  }

  __attribute__((always_inline)) void fetch_ahead(const UnitOfA& unit) const {
    for (size_t i = ahead_begin_; i < ahead_end_; ++i) {
      const uint8_t* line = unit.ahead + i * unit.ahead_stride;
      __builtin_prefetch(line, 0, 2);
      if (unit.ahead_bytes > kCacheLine) __builtin_prefetch(line + kCacheLine, 0, 2);
    }
  }

  // The block's products are done: returns where its tiles are to be stored.
  __attribute__((always_inline)) float* end() {
    for (; written_ < before_.rows; ++written_) write_row(done_, before_, written_);
    float* const free = done_;
    done_ = next_;
    next_ = free;
    return done_;
  }

  // The last block's sums.
  void finish() const {
    for (size_t i = 0; i < c_.rows; ++i) write_row(done_, c_, i);
  }

 private:
  LR_INLINE size_t at_most(size_t a, size_t b) { return a < b ? a : b; }
  LR_INLINE size_t share_of_rows(size_t steps) {
    return steps == 0 ? kPairMr : (kPairMr + steps - 1) / steps;
  }

  alignas(64) float sums_[2][4 * kTileFloats];
  float* done_ = sums_[0];  // the block before's
  float* next_ = sums_[1];
  BlockOfC before_, c_;
  const size_t rows_per_unit_, ahead_per_panel_;
  size_t written_ = 0, fetched_ = 0, ahead_begin_ = 0, ahead_end_ = 0;
};

// ── the product ──
// One block: tiles 0 to 3 are C, 4 and 5 A, 6 and 7 B. The order is that in which loads keep up.
template <size_t kRowTiles, size_t kColumnTiles>
void multiply_block(const UnitOfA* units, size_t unit_count, const float* b, Pipeline& between) {
  constexpr size_t kStride = kColumnTiles * kTileRowBytes;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (size_t u = 0; u < unit_count; ++u, b += kTilePairs * kColumnTiles * kTileColumns) {
    const uint8_t* a = units[u].rows;
    const size_t stride = units[u].stride;
    tile_load<4>(a, stride);
    tile_stream<6>(b, kStride);
    tile_multiply<0, 4, 6>();
    between.write_some();
    if constexpr (kColumnTiles == 2) {
      tile_stream<7>(b + kTileColumns, kStride);
      tile_multiply<1, 4, 7>();
    }
    between.fetch_some();
    if constexpr (kRowTiles == 2) {
      tile_load<5>(a + kTileRows * stride, stride);
      tile_multiply<2, 5, 6>();
    }
    between.fetch_ahead(units[u]);
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) tile_multiply<3, 5, 7>();
  }
  float* sums = between.end();
  tile_store<0>(sums, kTileRowBytes);
  if constexpr (kColumnTiles == 2) tile_store<1>(sums + kTileFloats, kTileRowBytes);
  if constexpr (kRowTiles == 2) tile_store<2>(sums + 2 * kTileFloats, kTileRowBytes);
  if constexpr (kRowTiles == 2 && kColumnTiles == 2)
    tile_store<3>(sums + 3 * kTileFloats, kTileRowBytes);
}

using MultiplyBlock = void (*)(const UnitOfA*, size_t, const float*, Pipeline&);

// Rows of A are outermost, so that a strip of it stays in L1 and B streams from L2.
void pair_block(const GemmSegment* segments, size_t segment_count, size_t m, const float* panels,
               size_t n, const BlockOutput& out) {
  static constexpr MultiplyBlock kMultiply[2][2] = {
      {multiply_block<1, 1>, multiply_block<1, 2>}, {multiply_block<2, 1>, multiply_block<2, 2>}};
  size_t units = 0;
  for (size_t s = 0; s < segment_count; ++s) units += (segments[s].k + kTileK - 1) / kTileK;
  const TileScope tiles;
  StripOfA strip;
  Pipeline between(units, (n + kPairNr - 1) / kPairNr);
  for (size_t i = 0; i < m; i += kPairMr) {
    const size_t rows = m - i < kPairMr ? m - i : kPairMr;
    load_strip(segments, segment_count, i, rows, &strip);
    for (size_t j = 0; j < n; j += kPairNr) {
      const size_t columns = n - j < kPairNr ? n - j : kPairNr;
      between.begin({out.at(i, j), rows, (__mmask32)((uint64_t{1} << columns) - 1)}, j / kPairNr,
                    i + kPairMr < m);
      kMultiply[rows > kTileRows][columns > kTileColumns](
          strip.units, units, panels + j * units * kTilePairs, between);
    }
  }
  between.finish();
}

}  // namespace
}  // namespace lowrank::LR_ISA

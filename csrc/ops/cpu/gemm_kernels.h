// The single-threaded pieces that everything dense is built from: packing a block of a weight,
// multiplying rows by a packed block, unpacking rows, and row-wise dot products for very few rows.
// They check nothing and allocate nothing.
//
// A packed block holds B[k, n] as panels of `nr` columns, each stored [k][columns]; the last panel
// is rounded up to whole vectors and zero-padded. Panel j begins at float j * nr * k, so a block
// takes k * round_up(n, width) floats (of depths in place of k where an element holds a pair).
// Several terms of one sum may lie back to back along k in one block: then C is touched once for
// all of them.
//
//   S = H·Wᵀ over rows [v, v + n) of W:  pack(W, true, 0, K, v, n, …), then block({H, ldh, 1, K}, …)
//   O += P·W over the same rows:         pack(W, false, v, n, 0, K, …), then block({P, ldp, 1, n}, …)
// Fastest with k in 256..832 and a block that fits in half of L2; results depend on k, not on how m
// and n are cut.
#pragma once

#include <stdint.h>

#include "ops/matrix.h"

namespace lowrank {

// The most terms of a sum that lie in one packed block.
constexpr size_t kGemmMaxSegments = 64;
// The most rows of A that `dot` takes.
constexpr size_t kGemmMaxDotRows = 16;
constexpr size_t gemm_dot_scratch(size_t k) { return kGemmMaxDotRows * ((k + 31) / 32 * 32); }

// A[m, k] at element a[m * row + k * col], fp32 or bf16: the operand of `k` consecutive rows of a
// packed block.
struct GemmSegment {
  const void* a;
  size_t row, col;
  size_t k;
  bool bf16 = false;
};

// C = add + A·B + bias, at c[m * ldc + n].
struct BlockOutput {
  void* c;
  size_t ldc;
  const float* add = nullptr;  // [m, n] at add[m * add_ld + n]; may be c itself, which accumulates
  size_t add_ld = 0;
  const float* bias = nullptr;  // [n]
  bool bf16 = false;            // C holds bf16, rounded to nearest even

  __attribute__((always_inline)) BlockOutput at(size_t row, size_t column) const {
    BlockOutput moved = *this;
    moved.c = static_cast<unsigned char*>(c) + (row * ldc + column) * (bf16 ? 2 : sizeof(float));
    if (add != nullptr) moved.add = add + row * add_ld + column;
    if (bias != nullptr) moved.bias = bias + column;
    return moved;
  }
};

// The two steps of a packed product in one number format.
struct BlockKernels {
  size_t mr, nr;  // the tile: rows, and the columns of a panel (a multiple of width and of k_unit)
  size_t max_k;   // the longest k of a block; gemm() cuts K there
  // Consecutive k that a 32-bit element of a panel holds: 1 (fp32), or 2 (a pair of bf16, the lower
  // k in the lower half).
  size_t k_step;
  size_t k_unit;  // each segment's k is padded with zeros to a multiple of it
  size_t pack_rows;  // packing a weight takes about as long as this many rows of its product

  // Elements that k takes in a column of a panel.
  size_t depth(size_t k) const { return (k + k_unit - 1) / k_unit * (k_unit / k_step); }

  // Packs B[k, n] for kk in [k_begin, k_begin + k), nn in [n_begin, n_begin + n) of
  //   B[kk][nn] = transposed ? b[nn][kk] : b[kk][nn]
  // as rows [at, at + depth(k)) of the panels of a block of `block_depth` rows. `panels` is 64-byte
  // aligned.
  void (*pack)(const Matrix& b, bool transposed, size_t k_begin, size_t k, size_t n_begin, size_t n,
               float* panels, size_t block_depth, size_t at);

  // Σ_segments A·B over a packed block whose depth is the sum of the segments'. Where k_step is 2,
  // fp32 rows of A are rounded to nearest even; where it is 1, A is fp32.
  void (*block)(const GemmSegment* segments, size_t segment_count, size_t m, const float* panels,
                size_t n, const BlockOutput& out);

  // out[i] = bf16(x[i]); returns their sum. `out` may be x's own memory. Null with fp32.
  double (*round)(const float* x, size_t n, uint16_t* out);
};

struct GemmKernels {
  size_t width;  // fp32 lanes of a vector

  BlockKernels f32;
  const BlockKernels* bf16;  // null where the level has no instruction for it

  // An fp32 block of one segment with B[k, n] at b[k * ldb + n] read where it lies: pays for few
  // rows.
  void (*direct)(const GemmSegment& segment, size_t m, const float* b, size_t ldb, size_t n,
                 const BlockOutput& out);

  // out[r * out_stride + c] = w[row_begin + r][col_begin + c], in fp32; any cut of columns, also
  // inside a block.
  void (*dequantize)(const Matrix& w, size_t row_begin, size_t rows, size_t col_begin, size_t cols,
                     float* out, size_t out_stride);

  // c[i * ldc + n] (+)= Σ_k a[i * lda + k] · w[row_begin + n][k] + bias[n] for i < m <=
  // kGemmMaxDotRows, n < rows, k < w.cols. Streams w, unpacked in registers. `scratch` is 64-byte
  // aligned and holds gemm_dot_scratch(w.cols) floats.
  void (*dot)(const Matrix& w, size_t row_begin, size_t rows, const float* a, size_t lda, size_t m,
              float* c, size_t ldc, const float* bias, bool accumulate, float* scratch);
  // The same with operands rounded to bf16; null where the level has no instruction for it.
  void (*dot_pairs)(const Matrix& w, size_t row_begin, size_t rows, const float* a, size_t lda, size_t m,
                    float* c, size_t ldc, const float* bias, bool accumulate, float* scratch);
};

}  // namespace lowrank

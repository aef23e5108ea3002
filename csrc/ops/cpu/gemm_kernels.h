// The single-threaded pieces that everything dense is built from: packing a block of a weight,
// multiplying rows by a packed block, unpacking rows, and row-wise dot products for very few rows.
// They check nothing and allocate nothing.
//
// A packed block holds B[k, n] as panels of `nr` columns, each stored [k][columns]; the last panel
// is rounded up to whole vectors and zero-padded. Panel j begins at float j * nr * k, so a block
// takes k * round_up(n, width) floats. Several terms of one sum may lie back to back along k in one
// block: then C is touched once for all of them.
//
//   S = H·Wᵀ over rows [v, v + n) of W:  pack(W, true, 0, K, v, n, panels, K, 0), then block({H,
//   ldh, 1, K}, 1, ...) O += P·W over the same rows:         pack(W, false, v, n, 0, K, panels, n,
//   0), then block({P, ldp, 1, n}, 1, ...)
// Fastest with k in 256..832 and a block that fits in half of L2; results depend on k, not on how m
// and n are cut.
#pragma once

#include "ops/matrix.h"

namespace lowrank {

// The longest k of a packed block whose A operands need packing (col != 1); also where gemm() cuts
// K.
constexpr size_t kGemmMaxBlockK = 832;
// The most terms of a sum that lie in one packed block.
constexpr size_t kGemmMaxSegments = 64;
// The most rows of A that `dot` takes.
constexpr size_t kGemmMaxDotRows = 16;

// A[m, k] at a[m * row + k * col]: the operand of `k` consecutive rows of a packed block.
struct GemmSegment {
  const float* a;
  size_t row, col;
  size_t k;
};

// The two steps of a packed product in one number format.
struct BlockKernels {
  // Consecutive k that a 32-bit element of a panel holds: 1 (fp32), or 2 (a pair of bf16, the lower
  // k in the lower half). Each term begins on an element of its own.
  size_t k_step;

  // Elements that k takes in a column of a panel.
  size_t depth(size_t k) const { return (k + k_step - 1) / k_step; }

  // Packs B[k, n] for kk in [k_begin, k_begin + k), nn in [n_begin, n_begin + n) of
  //   B[kk][nn] = transposed ? b[nn][kk] : b[kk][nn]
  // as rows [at, at + depth(k)) of the panels of a block of `block_depth` rows. `panels` is 64-byte
  // aligned.
  void (*pack)(const Matrix& b, bool transposed, size_t k_begin, size_t k, size_t n_begin, size_t n,
               float* panels, size_t block_depth, size_t at);

  // C[m, n] (+)= Σ_segments A·B + bias, over a packed block whose depth is the sum of the segments'.
  // `bias` ([n]) may be null. With bf16, A is rounded to nearest even and its col is 1.
  void (*block)(const GemmSegment* segments, size_t segment_count, size_t m, const float* panels,
                size_t n, float* c, size_t ldc, const float* bias, bool accumulate);

  // x becomes what `block` would round it to; returns the sum of that. Null with fp32.
  double (*round)(float* x, size_t n);
};

struct GemmKernels {
  size_t width;   // fp32 lanes of a vector
  size_t mr, nr;  // the micro-kernel's tile: mr rows by nr columns (a multiple of width)

  BlockKernels f32;
  const BlockKernels* bf16;  // null where the level has no instruction for it

  // An fp32 block of one segment with B[k, n] at b[k * ldb + n] read where it lies: pays for few
  // rows.
  void (*direct)(const GemmSegment& segment, size_t m, const float* b, size_t ldb, size_t n,
                 float* c, size_t ldc, const float* bias, bool accumulate);

  // out[r * out_stride + c] = w[row_begin + r][col_begin + c], in fp32; any cut of columns, also
  // inside a block.
  void (*dequantize)(const Matrix& w, size_t row_begin, size_t rows, size_t col_begin, size_t cols,
                     float* out, size_t out_stride);

  // c[i * ldc + n] (+)= Σ_k a[i * lda + k] · w[row_begin + n][k] + bias[n] for i < m <=
  // kGemmMaxDotRows, n < rows, k < w.cols. Streams w once, unpacked in registers or L1: bound by
  // memory.
  void (*dot)(const Matrix& w, size_t row_begin, size_t rows, const float* a, size_t lda, size_t m,
              float* c, size_t ldc, const float* bias, bool accumulate);
};

}  // namespace lowrank

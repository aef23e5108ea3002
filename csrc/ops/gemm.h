// The packed GEMM that everything dense runs on: activations in fp32 or bf16, weights of any storage type,
// unpacked while a block of them is packed for the micro-kernel.   Goto & van de Geijn 2008
// Where the context computes in bf16, both operands are rounded to it; sums stay fp32.
//
// One call computes several parts that share M, each a sum of products:
//   C_p[M,N_p] = add_p + Σ_t A_t[M,K_t] · B_t[K_t,N_p] + bias_p
// which gives Y = [x | s]·[W | B]ᵀ for q, k and v in one pass, and dX = Σ dY_p·W_p + ds_p·A_p in another.
//
// Determinism: the K of each term is cut at fixed bounds and summed in order; only M and N are split
// over threads, so the bits do not depend on their number. C must not overlap any A or B.
#pragma once

#include <span>

#include "core/context.h"
#include "ops/matrix.h"
#include "ops/rows.h"

namespace lowrank {

// Products B[k, n] = b[n][k] of at most this many fp32 rows are row-wise dot products: while training, where
// they are rare and a loss should depend as little as possible on how its rows are batched, and while
// decoding. Of at most kGemmDotRows they are fp32 whatever the context's compute type.
constexpr size_t kGemmDotRows = 8, kGemmDecodingDotRows = 16;

inline size_t gemm_dot_rows(const Context& context) {
  return context.decoding ? kGemmDecodingDotRows : kGemmDotRows;
}

// Bytes of a packed block, each worker's scratch: it stays in L2 (1 MiB or more on the cores this is tuned for) beside the rows that
// stream past it.
constexpr size_t kGemmScratch = size_t{704} << 10;

struct GemmTerm {
  const void* a;            // A[m,k] at element a[m * a_row + k * a_col]; one of the two is 1
  size_t a_row, a_col;
  Matrix b;
  bool b_transposed;        // B[k,n] = b[n][k] (a weight [out, in] going forward), else b[k][n]
  size_t k;                 // b.cols if b_transposed, else b.rows
  DType a_type = DType::kF32;    // kBF16 only where the context computes in bf16
};

struct GemmPart {
  void* c;                  // C[m,n] at element c[m * ldc + n]
  size_t ldc, n;
  std::span<const GemmTerm> terms;
  const float* bias = nullptr;   // [n], added once
  const float* add = nullptr;    // [m,n] at add[m * add_ld + n]; an fp32 C itself accumulates
  size_t add_ld = 0;
  DType c_type = DType::kF32;    // kBF16, rounded once at the end, only where the context computes in bf16
};

// kShapeMismatch where a term's b does not fit (k, n), or b's row cut is not whole blocks; kInvalidOption where bf16
// rows meet a context that computes in fp32.
Status gemm(Context&, size_t m, std::span<const GemmPart> parts);

// C[M,N] (+)= A · B for a single term.
inline Status gemm(Context& context, size_t m, const GemmTerm& term, float* c, size_t ldc, size_t n, bool accumulate) {
  const GemmPart part{c, ldc, n, {&term, 1}, nullptr, accumulate ? c : nullptr, ldc};
  return gemm(context, m, {&part, 1});
}

// C[M,N] += Aᵀ·B with A[T,M], B[T,N] (gradients of weights). A bf16 C, whatever is computed in, is rounded once, when the whole sum is
// added. `transposed_c` writes row n, column m of an fp32 C instead, so that a rank-r M stays the short side of the kernel.
Status gemm_tn(Context&, size_t m, size_t n, size_t t, ConstRows a, ConstRows b, Rows c, bool transposed_c = false);

}  // namespace lowrank

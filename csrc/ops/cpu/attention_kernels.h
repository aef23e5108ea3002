// Single-threaded attention and rotary kernels of one instruction-set level. ops/attention.cpp cuts the work into the
// pieces these take; the pieces do not depend on the number of threads.
//
// A "row" is one query of one head: row r of a group is query r / group, head r % group. Rows lie in the lanes of vectors, so the
// queries of all heads that share a key head are worked on together.
#pragma once

#include <stddef.h>

#include "ops/rows.h"

namespace lowrank {

// One sequence seen by the query heads of one key head. Rows are from the sequence's first and the group's first head on.
struct AttentionGroup {
  ConstRows q, k, v;
  size_t group, head_dim;   // query heads, elements of a head
  size_t q_len, kv_len;     // query i sits at position kv_len - q_len + i
  size_t window;            // 0: none
  float scale;
  size_t lse_stride;        // heads of the tensor: lse and delta of row r at [r / group * lse_stride + r % group]
};

struct AttentionOut {
  Rows o;
  float* lse;               // natural log-sum-exp; may be null
};

// Where a gradient goes: pairs but the last of a row leave their sum in `sums` (fp32), the last one writes `out`. The same memory where
// `out` is fp32.
struct AttentionGradient {
  Rows out, sums;
};

struct AttentionGradients {
  ConstRows d_o;
  const float *lse, *delta;  // delta[row] = Σ_d d_o · o
  AttentionGradient dq, dk, dv;
};

// A pair of query and key positions; the first pair of a row (key) writes its gradient, later ones add to it.
struct AttentionPair {
  size_t position_begin, position_end;
  size_t key_begin, key_end;
  bool first_of_queries, first_of_keys;
  bool last_of_queries, last_of_keys;
};

// The kernels of one number format of the products' operands.
struct AttentionProducts {
  // Floats of scratch that either kernel needs.
  size_t (*scratch_floats)(size_t head_dim);
  // Rows [row_begin, row_end), at most kAttentionRows of them.
  void (*forward)(const AttentionGroup&, const AttentionOut&, size_t row_begin, size_t row_end, float* scratch);
  // At most kAttentionChunk positions and keys.
  void (*backward)(const AttentionGroup&, const AttentionGradients&, const AttentionPair&, float* scratch);
};

struct AttentionKernels {
  AttentionProducts f32;          // all rows are fp32
  const AttentionProducts* bf16;  // rows of either type; null where the level has no instruction for it

  // One query (q_len == 1) over keys [key_begin, key_end), all fp32: for each head of the group, head_dim sums of p · v, then the maximum
  // score in base 2 and the sum of p, into partial[head * (head_dim + 2)].
  size_t (*decode_scratch_floats)(size_t head_dim, size_t group);
  void (*decode)(const AttentionGroup&, size_t key_begin, size_t key_end, float* partial, float* scratch);
  // out[t * out_stride + h] = Σ_d a[t, h, d] · b[t, h, d].
  void (*head_dots)(const ConstRows& a, const ConstRows& b, size_t tokens, size_t heads, size_t head_dim, size_t out_stride, float* out);
  // Rotates the heads of one token, fp32 or bf16; cos and sin: [rotary_dim / 2].
  void (*rope_row)(void* x, bool bf16, size_t heads, size_t head_dim, size_t rotary_dim, const float* cos, const float* sin, bool inverse);
};

constexpr size_t kAttentionRows = 192;   // a multiple of every level's tile: keys are copied once for so many rows
constexpr size_t kAttentionChunk = 256;  // keys of a backward pair: their gradients and copies stay in L2

}  // namespace lowrank

// Single-threaded attention and rotary kernels of one instruction-set level. ops/attention.cpp cuts the work into the
// pieces these take; the pieces do not depend on the number of threads.
//
// A "row" is one query of one head: row r of a group is query r / group, head r % group. Rows lie in the lanes of vectors, so the
// queries of all heads that share a key head are worked on together.
#pragma once

#include <stddef.h>

namespace lowrank {

// One sequence seen by the query heads of one key head. Pointers are at the sequence's first row and the group's first head.
struct AttentionGroup {
  const float *q, *k, *v;
  size_t q_stride, k_stride, v_stride;
  size_t group, head_dim;   // query heads, elements of a head
  size_t q_len, kv_len;     // query i sits at position kv_len - q_len + i
  size_t window;            // 0: none
  float scale;
  size_t lse_stride;        // heads of the tensor: lse and delta of row r at [r / group * lse_stride + r % group]
};

struct AttentionOut {
  float* o;
  size_t o_stride;
  float* lse;               // natural log-sum-exp; may be null
};

struct AttentionGradients {
  const float* d_o;
  size_t do_stride;
  const float *lse, *delta;  // delta[row] = Σ_d d_o · o
  float *dq, *dk, *dv;
  size_t dq_stride, dk_stride, dv_stride;
};

// A pair of query and key positions; the first pair of a row (key) writes its gradient, later ones add to it.
struct AttentionPair {
  size_t position_begin, position_end;
  size_t key_begin, key_end;
  bool first_of_queries, first_of_keys;
};

struct AttentionKernels {
  // Floats of scratch that the kernels below need, whichever is the largest.
  size_t (*scratch_floats)(size_t head_dim, size_t group);
  // Rows [row_begin, row_end), at most kAttentionRows of them.
  void (*forward)(const AttentionGroup&, const AttentionOut&, size_t row_begin, size_t row_end, float* scratch);
  // At most kAttentionChunk positions and keys.
  void (*backward)(const AttentionGroup&, const AttentionGradients&, const AttentionPair&, float* scratch);
  // One query (q_len == 1) over keys [key_begin, key_end): for each head of the group, head_dim sums of p · v, then the maximum score
  // in base 2 and the sum of p, into partial[head * (head_dim + 2)].
  void (*decode)(const AttentionGroup&, size_t key_begin, size_t key_end, float* partial, float* scratch);
  // out[t * out_stride + h] = Σ_d a[t, h, d] · b[t, h, d].
  void (*head_dots)(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t tokens, size_t heads, size_t head_dim,
                    size_t out_stride, float* out);
  // Rotates the heads of one token, fp32 or bf16; cos and sin: [rotary_dim / 2].
  void (*rope_row)(void* x, bool bf16, size_t heads, size_t head_dim, size_t rotary_dim, const float* cos, const float* sin, bool inverse);
};

constexpr size_t kAttentionRows = 192;   // a multiple of every level's tile: keys are copied once for so many rows
constexpr size_t kAttentionChunk = 256;  // keys of a backward pair: their gradients and copies stay in L2

}  // namespace lowrank

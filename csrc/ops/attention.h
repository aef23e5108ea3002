// Causal softmax attention over packed sequences, grouped queries, optional sliding window, without the
// score matrix: online softmax over blocks of keys, recomputed in the backward.   Dao 2023, arXiv:2307.08691
//   o[i] = Σ_j softmax_j(scale · q[i]·k[j]) v[j],   over j visible to i
// A sequence has q_len queries that sit at the end of its kv_len keys (q_len == kv_len in training; a KV cache has more
// keys). Query i (counted from the sequence's start, offset by kv_len - q_len) sees keys j <= i, and with a window w > 0 only j > i - w.
//
// Memory is linear in T. Deterministic: fixed blocks, fixed order, any number of threads. kShapeMismatch where heads do not fit, a
// sequence has more queries than keys, or more than 2^24 keys.
#pragma once

#include <span>

#include "core/context.h"
#include "ops/rows.h"

namespace lowrank {

struct AttentionSequence {
  size_t q_begin, q_len;    // rows of q, o, do, dq
  size_t kv_begin, kv_len;  // rows of k, v, dk, dv
};

struct AttentionShape {
  size_t heads, kv_heads, head_dim;  // heads is a multiple of kv_heads
  float scale;                       // usually 1 / sqrt(head_dim)
  size_t window = 0;                 // 0: all earlier keys
};

// Row t, head h of a tensor X begins at element t * X.stride + h * head_dim. Where the context computes in bf16 and the level has kernels
// for it, tensors are fp32 or bf16 in any mix, and the products' operands (q, k, v, d_o, probabilities and the gradients of scores) are
// rounded to bf16; sums, softmax and lse stay fp32. Everywhere else all are fp32, else kInvalidOption. A single query in fp32 rows is
// computed in fp32 in either case.
//
// lse: [q rows, heads] fp32, log-sum-exp of the scaled scores, saved for the backward; may be null when not needed.
Status attention_forward(Context&, const AttentionShape&, std::span<const AttentionSequence>, ConstRows q, ConstRows k, ConstRows v,
                         Rows o, float* lse);

// Scratch the backward needs, in bytes, for `q_rows` rows of q: Σ_d o · do of each row and head. With gradients in bf16 also their sums in
// fp32: head_dim * 4 bytes for every head of a row of q and twice that for every key head of `kv_rows` rows of k.
size_t attention_backward_scratch(const AttentionShape&, size_t q_rows, size_t kv_rows = 0, DType gradients = DType::kF32);

// dq, dk, dv are written (=), for every row that a sequence names. Sequences must not share rows. `q_rows` and `kv_rows` are those that
// the scratch was made for. dq, dk and dv are of one type.
Status attention_backward(Context&, const AttentionShape&, std::span<const AttentionSequence>, ConstRows q, ConstRows k, ConstRows v,
                          ConstRows o, const float* lse, ConstRows d_o, Rows dq, Rows dk, Rows dv, void* scratch);

}  // namespace lowrank

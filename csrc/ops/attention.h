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

// Row t, head h of a tensor X at X.data[t * X.stride + h * head_dim].
struct HeadsView { const float* data; size_t stride; };
struct HeadsViewOut { float* data; size_t stride; };

// lse: [q rows, heads] fp32, log-sum-exp of the scaled scores, saved for the backward; may be null when not needed.
Status attention_forward(Context&, const AttentionShape&, std::span<const AttentionSequence>, HeadsView q, HeadsView k,
                         HeadsView v, HeadsViewOut o, float* lse);

// Scratch the backward needs, in bytes, for `q_rows` rows of q: Σ_d o · do of each row and head.
size_t attention_backward_scratch(const AttentionShape&, size_t q_rows);

// dq, dk, dv are written (=), for every row that a sequence names. Sequences must not share rows.
Status attention_backward(Context&, const AttentionShape&, std::span<const AttentionSequence>, HeadsView q, HeadsView k,
                          HeadsView v, HeadsView o, const float* lse, HeadsView d_o, HeadsViewOut dq, HeadsViewOut dk,
                          HeadsViewOut dv, void* scratch);

}  // namespace lowrank

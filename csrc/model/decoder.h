// The decoder's forward and backward over a packed micro-batch, written out block by block:
//   x ← x + O(attention(rope(QKV(norm(x)))));   x ← x + Down(silu(Gate(norm(x))) · Up(norm(x)))
// Explicit backward, no tape: with frozen base weights it is dX and the adapters' gradients only.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "model/cache.h"
#include "model/workspace.h"

namespace lowrank {

// T tokens of packed sequences; sequence i holds tokens starts[i] to starts[i + 1].
struct Batch {
  std::span<const int32_t> ids, positions, starts;
};

// kShapeMismatch names what does not fit; kInvalidOption an id outside the vocabulary.
Status check_batch(const DecoderConfig&, const Batch&);

struct Loss {
  double nll_sum = 0;
  size_t tokens = 0;    // supervised
  size_t correct = 0;   // of those, predicted right
};

class Decoder {
 public:
  Decoder(Context& context, const DecoderConfig& config) : context_(context), config_(config) {}

  // Runs the blocks; the last output is at workspace.inputs[layers]. The workspace is prepared here.
  Status forward(const ModelPlan&, const Batch&, const Retention&, uint64_t seed, Workspace*) const;

  // The same over new tokens of a cache's rows; the cache's lengths grow by the caller's commit.
  Status forward_cached(const ModelPlan&, const Batch&, std::span<const size_t> rows, KvCache*, Workspace*) const;

  // After forward: loss over targets (-100: none), and for a training mode the gradients, scaled by grad_scale.
  Status loss(const ModelPlan&, const Batch&, std::span<const int32_t> targets, float grad_scale, uint64_t seed, Workspace*,
              Loss*) const;

  // After forward: logits [rows.size(), vocab] of the named tokens.
  Status logits(const ModelPlan&, std::span<const size_t> rows, Workspace*, float* out) const;

 private:
  // The rows of the embedding. Those of a large table in a file are given back as it goes.
  Status look_up(const ModelPlan&, std::span<const int32_t> ids, float* out) const;
  // Of tokens [begin, end), whose last position sets the frequencies where rope is dynamic: a batch shares them, as in Transformers; rows of
  // a cache have their own.
  Status rope_tables(const Batch&, size_t begin, size_t end, Workspace*) const;
  Status project_qkv(const LayerPlan&, const float* input, size_t tokens, uint64_t seed, const BlockSaved&, Workspace*) const;
  Status add_attention(const LayerPlan&, const float* input, size_t tokens, uint64_t seed, const BlockSaved&, Workspace*) const;
  Status gate_up(const LayerPlan&, size_t tokens, uint64_t seed, const BlockSaved&, Workspace*) const;
  Status finish_block(const LayerPlan&, const float* input, size_t tokens, uint64_t seed, const BlockSaved&, Workspace*, float* output) const;
  Status run_blocks(const ModelPlan&, const Batch&, size_t begin, size_t end, uint64_t seed, Workspace*) const;
  Status recompute(const LayerPlan&, const Batch&, const float* input, uint64_t seed, const BlockSaved&, bool kept, bool has_attention,
                   Workspace*) const;
  Status rotate(Rows q, Rows k, size_t tokens, bool inverse, const Workspace*) const;
  Status attend(const LayerPlan&, const Batch&, const BlockSaved&) const;
  Status block_backward(const LayerPlan&, const Batch&, const float* input, uint64_t seed, const BlockSaved&, bool needs_input_gradient,
                        Workspace*) const;
  Status backward(const ModelPlan&, const Batch&, uint64_t seed, Workspace*) const;

  Context& context_;
  const DecoderConfig& config_;
};

}  // namespace lowrank

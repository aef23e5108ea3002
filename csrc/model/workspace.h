// The buffers of a forward and backward over up to `tokens` packed tokens, laid out in one arena before the run.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "model/plan.h"

namespace lowrank {

enum class Mode {
  kForward,        // nothing is kept for a backward
  kTrain,          // every block keeps what its backward reads, but for what is cheap to compute again
  kCheckpointed,   // a block keeps only its input; the rest is computed again in the backward
};

// What a block's backward reads. T tokens each.
struct BlockSaved {
  float* qkv;        // [T, qkv_width], q and k rotated
  float* attention;  // [T, query_width]
  float* lse;        // [T, heads]
  float* inv_rms_in;   // [T]
  float* inv_rms_mid;  // [T]
  float* gate_up;    // [T, 2 * ffn]
  float* s_qkv;      // [T, rank sum of the group], LoRA's inner activations
  float* s_output;
  float* s_gate_up;
  float* s_down;
};

struct Workspace {
  size_t tokens = 0;
  Mode mode = Mode::kForward;

  std::vector<float*> inputs;      // [layers + 1] of [T, hidden]: each block's input, then the last block's output; one shared when forward only
  std::vector<BlockSaved> blocks;  // a block's own, or one shared
  float* mid = nullptr;            // [T, hidden]: the residual stream after a block's attention
  float* normed = nullptr;         // [T, hidden]
  float* hidden_ffn = nullptr;     // [T, ffn]
  float* cos = nullptr;            // [T, rotary_dim / 2]
  float* sin = nullptr;
  // Of the backward. Some share memory: see lay_out.
  float* d_stream = nullptr;       // [T, hidden]
  float* d_normed = nullptr;       // [T, hidden]
  float* d_ffn = nullptr;          // [T, ffn]
  float* d_qkv = nullptr;          // [T, qkv_width]
  float* d_attention = nullptr;    // [T, query_width]
  void* attention_scratch = nullptr;
  // Of the head: supervised rows only.
  float* head_in = nullptr;        // [T, hidden], gathered
  float* head_normed = nullptr;    // [T, hidden]
  float* d_head = nullptr;         // [T, hidden]
  float* inv_rms_head = nullptr;   // [T]

  const BlockSaved& block(size_t layer) const { return blocks[blocks.size() == 1 ? 0 : layer]; }
  float* input(size_t layer) const { return inputs.size() == 1 ? inputs[0] : inputs[layer]; }

  // Lays the buffers out for `tokens` (grown when more come). kOutOfMemory names what was wanted.
  Status prepare(const DecoderConfig&, const ModelPlan&, Mode mode, size_t tokens);

  // Bytes by component that prepare would take.
  static std::map<std::string, size_t> estimate(const DecoderConfig&, const ModelPlan&, Mode mode, size_t tokens);

 private:
  Buffer arena_;
  uint64_t revision_ = 0;
};

}  // namespace lowrank

// The decoder as data. A family (Llama, Mistral, Qwen2, …) is a way to fill this in: see lib/model/families.ts.
#pragma once

#include <cstddef>
#include <vector>

#include "core/status.h"
#include "ops/rope.h"

namespace lowrank {

struct DecoderConfig {
  size_t vocab = 0;
  size_t hidden = 0;
  size_t ffn = 0;
  size_t layers = 0;
  size_t heads = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  float norm_eps = 1e-5f;
  bool tied_head = false;               // the head is the embedding table
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  std::vector<size_t> windows;          // per layer; 0: attends to everything before
  RopeConfig rope;

  size_t query_width() const { return heads * head_dim; }
  size_t kv_width() const { return kv_heads * head_dim; }
  size_t qkv_width() const { return query_width() + 2 * kv_width(); }
};

// kInvalidConfig names the first value that cannot be.
Status validate(const DecoderConfig&);

// The linear layers of a block, in the order they run. q, k, v read one input, and so do gate, up.
enum Linear : size_t { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kLinears };

struct LinearShape {
  const char* name;  // e.g. "self_attn.q_proj"
  size_t out, in;
  bool bias;
};
LinearShape linear_shape(const DecoderConfig&, Linear);

}  // namespace lowrank

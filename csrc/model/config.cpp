#include "model/config.h"

#include <cmath>

#include "core/checked.h"

namespace lowrank {
namespace {

// Sizes above these are no model's; the bound keeps every product of two of them within 64 bits.
constexpr size_t kMaxWidth = size_t{1} << 24;
constexpr size_t kMaxLayers = 4096;

Status check_size(const char* name, size_t value, size_t max) {
  if (value >= 1 && value <= max) return {};
  return error(Code::kInvalidConfig, "%s is %zu; expected 1 to %zu", name, value, max);
}

}  // namespace

Status validate(const DecoderConfig& c) {
  LR_RETURN_IF_ERROR(check_size("vocab_size", c.vocab, kMaxWidth));
  LR_RETURN_IF_ERROR(check_size("hidden_size", c.hidden, kMaxWidth));
  LR_RETURN_IF_ERROR(check_size("intermediate_size", c.ffn, kMaxWidth));
  LR_RETURN_IF_ERROR(check_size("num_hidden_layers", c.layers, kMaxLayers));
  LR_RETURN_IF_ERROR(check_size("num_attention_heads", c.heads, 4096));
  LR_RETURN_IF_ERROR(check_size("num_key_value_heads", c.kv_heads, c.heads));
  LR_RETURN_IF_ERROR(check_size("head_dim", c.head_dim, 4096));
  if (c.heads % c.kv_heads != 0) {
    return error(Code::kInvalidConfig, "num_attention_heads %zu is not a multiple of num_key_value_heads %zu", c.heads, c.kv_heads);
  }
  if (c.rope.rotary_dim % 2 != 0 || c.rope.rotary_dim > c.head_dim) {
    return error(Code::kInvalidConfig, "the rotary dimension is %zu; expected an even number of at most head_dim %zu",
                 c.rope.rotary_dim, c.head_dim);
  }
  if (!(c.norm_eps >= 0) || !std::isfinite(c.norm_eps)) {
    return error(Code::kInvalidConfig, "rms_norm_eps is %g; expected a finite number of at least 0", static_cast<double>(c.norm_eps));
  }
  if (c.windows.size() != c.layers) {
    return error(Code::kInvalidConfig, "%zu sliding windows for %zu layers", c.windows.size(), c.layers);
  }
  return {};
}

LinearShape linear_shape(const DecoderConfig& c, Linear linear) {
  switch (linear) {
    case kQuery: return {"self_attn.q_proj", c.query_width(), c.hidden, c.qkv_bias};
    case kKey: return {"self_attn.k_proj", c.kv_width(), c.hidden, c.qkv_bias};
    case kValue: return {"self_attn.v_proj", c.kv_width(), c.hidden, c.qkv_bias};
    case kOutput: return {"self_attn.o_proj", c.hidden, c.query_width(), c.output_bias};
    case kGate: return {"mlp.gate_proj", c.ffn, c.hidden, c.mlp_bias};
    case kUp: return {"mlp.up_proj", c.ffn, c.hidden, c.mlp_bias};
    default: return {"mlp.down_proj", c.hidden, c.ffn, c.mlp_bias};
  }
}

}  // namespace lowrank

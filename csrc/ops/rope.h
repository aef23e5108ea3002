// Rotary position embedding in the half-split order of Hugging Face's Llama (pairs i, i + rotary/2), with
// the context extensions of Transformers' modeling_rope_utils.        Su et al. 2021, arXiv:2104.09864
//   default, linear (positions / factor), dynamic (NTK), yarn (Peng et al. 2023, arXiv:2309.00071), llama3
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "ops/rows.h"

namespace lowrank {

enum class RopeKind { kDefault, kLinear, kDynamic, kYarn, kLlama3 };

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  size_t rotary_dim = 0;             // even, at most head_dim; the rest of a head passes through
  double factor = 1.0;
  size_t max_position = 2048;        // max_position_embeddings
  size_t original_max_position = 0;  // of the unextended model; 0: max_position
  double low_freq_factor = 1.0, high_freq_factor = 4.0;   // llama3
  double beta_fast = 32.0, beta_slow = 1.0;               // yarn
  double attention_factor = -1.0;                         // yarn; negative: derived from factor, mscale, mscale_all_dim
  double mscale = 0.0, mscale_all_dim = 0.0;              // yarn; 0: unset
  bool truncate = true;                                   // yarn: whole correction bounds
};

// Inverse frequencies [rotary_dim / 2] for a batch whose positions stay below `length` (only dynamic
// looks at it), with the fp32 roundings of Transformers; *attention_scale multiplies cos and sin. kInvalidConfig names what does not fit.
Status rope_frequencies(const RopeConfig&, size_t length, std::vector<float>* inv_freq, float* attention_scale);

// cos, sin: [T, rotary_dim / 2].
Status rope_table(Context&, const int32_t* positions, size_t tokens, const std::vector<float>& inv_freq,
                  float attention_scale, float* cos, float* sin);

// Rotates `heads` heads of each row in place: row t, head h at element h * head_dim of row t of x. `inverse` rotates by minus the angle, which is the backward.
Status rope_apply(Context&, Rows x, size_t tokens, size_t heads, size_t head_dim, size_t rotary_dim,
                  const float* cos, const float* sin, bool inverse);

}  // namespace lowrank

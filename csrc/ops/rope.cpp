#include "ops/rope.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"

namespace lowrank {
namespace {

constexpr size_t kRopeTokens = 16;  // tokens of a piece of work
constexpr double kPi = 3.14159265358979323846;

bool positive(double x) { return std::isfinite(x) && x > 0; }

Status check(const RopeConfig& c) {
  if (c.rotary_dim == 0 || c.rotary_dim % 2 != 0) {
    return error(Code::kInvalidConfig, "rope: %zu rotated dimensions; expected an even number of at least 2", c.rotary_dim);
  }
  if (!positive(c.theta)) return error(Code::kInvalidConfig, "rope_theta is %g; expected a positive number", c.theta);
  if (c.kind != RopeKind::kDefault && !positive(c.factor)) {
    return error(Code::kInvalidConfig, "rope factor is %g; expected a positive number", c.factor);
  }
  if (c.kind >= RopeKind::kDynamic && c.max_position == 0) {
    return error(Code::kInvalidConfig, "max_position_embeddings is 0; expected at least 1");
  }
  if (c.kind == RopeKind::kLlama3 && (!positive(c.low_freq_factor) || !(c.high_freq_factor > c.low_freq_factor))) {
    return error(Code::kInvalidConfig, "rope low_freq_factor is %g and high_freq_factor %g; expected 0 < low < high",
                 c.low_freq_factor, c.high_freq_factor);
  }
  if (c.kind == RopeKind::kYarn && c.theta == 1) return error(Code::kInvalidConfig, "rope_theta is 1; yarn expects another number");
  return {};
}

size_t original_positions(const RopeConfig& c) { return c.original_max_position > 0 ? c.original_max_position : c.max_position; }

// theta^(2i / dim) with the roundings of the reference's fp32: exponent, then power.
std::vector<float> periods(float theta, size_t rotary_dim) {
  std::vector<float> result(rotary_dim / 2);
  for (size_t i = 0; i < result.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    result[i] = static_cast<float>(std::pow(static_cast<double>(theta), static_cast<double>(exponent)));
  }
  return result;
}

// NTK scaling: a larger base for sequences beyond the trained length.
float dynamic_theta(const RopeConfig& c, size_t length) {
  if (length <= c.max_position) return static_cast<float>(c.theta);
  const float factor = static_cast<float>(c.factor), dim = static_cast<float>(c.rotary_dim);
  const float growth = factor * static_cast<float>(length) / static_cast<float>(c.max_position) - static_cast<float>(c.factor - 1);
  return static_cast<float>(c.theta) * static_cast<float>(std::pow(static_cast<double>(growth), static_cast<double>(dim) / (dim - 2)));
}

// Low frequencies are divided by factor, high ones kept, those between interpolated.
float llama3_frequency(const RopeConfig& c, float frequency) {
  const float factor = static_cast<float>(c.factor), low = static_cast<float>(c.low_freq_factor);
  const double positions = static_cast<double>(original_positions(c));
  const float wavelength = static_cast<float>(2 * kPi) / frequency;
  if (wavelength > static_cast<float>(positions / c.low_freq_factor)) return frequency / factor;
  if (wavelength < static_cast<float>(positions / c.high_freq_factor)) return frequency;
  const float smooth = (static_cast<float>(positions) / wavelength - low) / static_cast<float>(c.high_freq_factor - c.low_freq_factor);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

// The dimension whose period fits `rotations` times into the original length.
double yarn_dimension(const RopeConfig& c, double rotations) {
  const double dim = static_cast<double>(c.rotary_dim);
  return dim * std::log(static_cast<double>(original_positions(c)) / (rotations * 2 * kPi)) / (2 * std::log(c.theta));
}

// Dimensions below the range of the ramp extrapolate, those above it interpolate.
void yarn_frequencies(const RopeConfig& c, std::vector<float>* inv_freq) {
  double low = yarn_dimension(c, c.beta_fast > 0 ? c.beta_fast : 32), high = yarn_dimension(c, c.beta_slow > 0 ? c.beta_slow : 1);
  if (c.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(c.rotary_dim) - 1);
  if (low == high) high += 0.001;
  const std::vector<float> period = periods(static_cast<float>(c.theta), c.rotary_dim);
  for (size_t i = 0; i < period.size(); ++i) {
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float extrapolated = 1 - std::clamp(ramp, 0.0f, 1.0f);
    const float interpolation = 1 / (static_cast<float>(c.factor) * period[i]), extrapolation = 1 / period[i];
    (*inv_freq)[i] = interpolation * (1 - extrapolated) + extrapolation * extrapolated;
  }
}

double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

double yarn_attention(const RopeConfig& c) {
  if (c.attention_factor >= 0) return c.attention_factor;
  if (c.mscale != 0 && c.mscale_all_dim != 0) return yarn_mscale(c.factor, c.mscale) / yarn_mscale(c.factor, c.mscale_all_dim);
  return yarn_mscale(c.factor, 1);
}

}  // namespace

Status rope_frequencies(const RopeConfig& c, size_t length, std::vector<float>* inv_freq, float* attention_scale) {
  LR_RETURN_IF_ERROR(check(c));
  const float theta = c.kind == RopeKind::kDynamic ? dynamic_theta(c, length) : static_cast<float>(c.theta);
  *inv_freq = periods(theta, c.rotary_dim);
  for (float& value : *inv_freq) value = 1 / value;
  *attention_scale = 1;
  switch (c.kind) {
    case RopeKind::kDefault:
    case RopeKind::kDynamic:
      break;
    case RopeKind::kLinear:
      for (float& value : *inv_freq) value /= static_cast<float>(c.factor);
      break;
    case RopeKind::kLlama3:
      for (float& value : *inv_freq) value = llama3_frequency(c, value);
      break;
    case RopeKind::kYarn:
      yarn_frequencies(c, inv_freq);
      *attention_scale = static_cast<float>(yarn_attention(c));
      break;
  }
  return {};
}

Status rope_table(Context& context, const int32_t* positions, size_t tokens, const std::vector<float>& inv_freq,
                  float attention_scale, float* cos, float* sin) {
  const OpTimer timer(context, OpKind::kRope);
  const size_t half = inv_freq.size();
  context.pool.parallel(ceil_div(tokens, kRopeTokens), [&](size_t chunk, size_t) {
    const size_t end = std::min(tokens, (chunk + 1) * kRopeTokens);
    for (size_t t = chunk * kRopeTokens; t < end; ++t) {
      for (size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[t]) * inv_freq[i];  // rounded to fp32 as in the reference
        cos[t * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * attention_scale;
        sin[t * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * attention_scale;
      }
    }
  });
  return {};
}

Status rope_apply(Context& context, Rows x, size_t tokens, size_t heads, size_t head_dim, size_t rotary_dim,
                  const float* cos, const float* sin, bool inverse) {
  const OpTimer timer(context, OpKind::kRope);
  if (rotary_dim % 2 != 0 || rotary_dim > head_dim) {
    return error(Code::kShapeMismatch, "rope: %zu rotated dimensions of a head of %zu; expected an even number, at most the head",
                 rotary_dim, head_dim);
  }
  const size_t half = rotary_dim / 2;
  context.pool.parallel(ceil_div(tokens, kRopeTokens), [&](size_t chunk, size_t) {
    const size_t end = std::min(tokens, (chunk + 1) * kRopeTokens);
    for (size_t t = chunk * kRopeTokens; t < end; ++t) {
      context.kernels.attention.rope_row(x.at(t, 0).data, x.bf16(), heads, head_dim, rotary_dim, cos + t * half, sin + t * half, inverse);
    }
  });
  return {};
}

}  // namespace lowrank

#include "addon/kernels.h"

#include <vector>

#include "addon/kernel_call.h"
#include "ops/attention.h"
#include "ops/dequantize.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/linear_cross_entropy.h"
#include "ops/lora_linear.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace lowrank::addon {
namespace {

// ── linear ──

// a, transposeA, b, transposeB, m, n, k, bias?, c, accumulate
Status run_gemm(Context& context, Arguments& in) {
  const float* const a = in.floats();
  const bool transpose_a = in.flag();
  const Matrix b = in.weight();
  const bool transpose_b = in.flag();
  const size_t m = in.size(), n = in.size(), k = in.size();
  const float* const bias = in.optional_floats();
  float* const c = in.floats();
  const bool accumulate = in.flag();
  if (!in.ok()) return {};
  const GemmTerm term{a, transpose_a ? 1 : k, transpose_a ? m : 1, b, transpose_b, k};
  const GemmPart part{c, n, n, {&term, 1}, bias, accumulate ? c : nullptr, n};
  return gemm(context, m, {&part, 1});
}

// A group of projections whose attachments own the memory that the spans see.
struct LoraGroup {
  std::vector<std::vector<LoraAttachment>> loras;
  std::vector<Projection> projections;
  std::vector<Rows> y;  // or dy
};

// [a, b, r, scale, dropout, module, gradA?, gradB?]
LoraAttachment read_lora(Arguments in, bool* ok) {
  LoraAttachment lora{};
  lora.a = in.floats();
  lora.b = in.floats();
  lora.r = in.size();
  lora.scale = in.number32();
  lora.dropout = in.number32();
  lora.module = in.size();
  lora.grad_a = in.optional_floats();
  lora.grad_b = in.optional_floats();
  *ok = *ok && in.ok();
  return lora;
}

// [[weight, dtype, rows, cols, bias?, loras, y, gradWeight?, gradBias?], …]
LoraGroup read_group(Arguments& in, bool* ok) {
  LoraGroup group;
  for (Arguments& item : in.lists()) {
    Projection projection;
    projection.weight = item.weight();
    projection.bias = item.optional_floats();
    std::vector<LoraAttachment>& loras = group.loras.emplace_back();
    for (const Arguments& lora : item.lists()) loras.push_back(read_lora(lora, ok));
    group.y.push_back({item.floats(), projection.weight.rows});
    projection.grad_weight = {item.optional_floats(), projection.weight.cols};
    projection.grad_bias = item.optional_floats();
    group.projections.push_back(projection);
    *ok = *ok && item.ok();
  }
  for (size_t i = 0; i < group.loras.size(); ++i) group.projections[i].loras = group.loras[i];
  return group;
}

// x, tokens, in, group, s, seed [, dx?]
Status run_lora_linear(Context& context, Arguments& in, bool backward) {
  LinearArgs args{};
  const float* const x = in.floats();
  args.tokens = in.size();
  args.in = in.size();
  args.x = {x, args.in};
  bool ok = true;
  const LoraGroup group = read_group(in, &ok);
  args.group = group.projections;
  args.s = in.floats();
  args.seed = in.size();
  float* const dx = backward ? in.optional_floats() : nullptr;
  if (!ok || !in.ok()) return {};
  if (!backward) return lora_linear_forward(context, args, group.y);
  const std::vector<ConstRows> dy(group.y.begin(), group.y.end());
  return lora_linear_backward(context, args, dy, {dx, args.in}, false);
}

Status run_lora_linear_forward(Context& context, Arguments& in) { return run_lora_linear(context, in, false); }
Status run_lora_linear_backward(Context& context, Arguments& in) { return run_lora_linear(context, in, true); }

// weight, out
Status run_dequantize(Context& context, Arguments& in) {
  const Matrix weight = in.weight();
  float* const out = in.floats();
  if (!in.ok()) return {};
  return dequantize(context, weight, out);
}

// ── attention ──

struct AttentionArguments {
  AttentionShape shape;
  std::vector<AttentionSequence> sequences;
  ConstRows q, k, v;
  size_t q_rows;

  // heads, kvHeads, headDim, scale, window, queryStarts, keyStarts, sequences, q, k, v
  explicit AttentionArguments(Arguments& in) {
    shape.heads = in.size();
    shape.kv_heads = in.size();
    shape.head_dim = in.size();
    shape.scale = in.number32();
    shape.window = in.size();
    const int32_t *query_starts = in.ints(), *key_starts = in.ints();
    const size_t count = in.size();
    const size_t stride = q_stride(), kv = kv_stride();
    q = {in.floats(), stride};
    k = {in.floats(), kv};
    v = {in.floats(), kv};
    q_rows = 0;
    if (!in.ok()) return;
    for (size_t i = 0; i < count; ++i) {
      const auto q_begin = static_cast<size_t>(query_starts[i]), kv_begin = static_cast<size_t>(key_starts[i]);
      sequences.push_back({q_begin, static_cast<size_t>(query_starts[i + 1]) - q_begin, kv_begin,
                           static_cast<size_t>(key_starts[i + 1]) - kv_begin});
    }
    q_rows = static_cast<size_t>(query_starts[count]);
  }
  size_t q_stride() const { return shape.heads * shape.head_dim; }
  size_t kv_stride() const { return shape.kv_heads * shape.head_dim; }
};

// …, o, lse
Status run_attention(Context& context, Arguments& in) {
  const AttentionArguments a(in);
  float *const o = in.floats(), *const lse = in.floats();
  if (!in.ok()) return {};
  return attention_forward(context, a.shape, a.sequences, a.q, a.k, a.v, {o, a.q_stride()}, lse);
}

// …, o, lse, dO, dq, dk, dv
Status run_attention_backward(Context& context, Arguments& in) {
  const AttentionArguments a(in);
  const float *const o = in.floats(), *const lse = in.floats(), *const d_o = in.floats();
  float *const dq = in.floats(), *const dk = in.floats(), *const dv = in.floats();
  if (!in.ok()) return {};
  Buffer scratch;
  LR_RETURN_IF_ERROR(scratch.allocate(attention_backward_scratch(a.shape, a.q_rows), "scratch of attention"));
  return attention_backward(context, a.shape, a.sequences, a.q, a.k, a.v, {o, a.q_stride()}, lse, {d_o, a.q_stride()},
                            {dq, a.q_stride()}, {dk, a.kv_stride()}, {dv, a.kv_stride()}, scratch.as<>());
}

Result<RopeKind> rope_kind(const std::string& name) {
  if (name == "default") return RopeKind::kDefault;
  if (name == "linear") return RopeKind::kLinear;
  if (name == "dynamic") return RopeKind::kDynamic;
  if (name == "yarn") return RopeKind::kYarn;
  if (name == "llama3") return RopeKind::kLlama3;
  return error(Code::kInvalidOption, "kind is '%.40s'; expected default, linear, dynamic, yarn or llama3", name.c_str());
}

// kind, theta, rotaryDim, factor, maxPosition, originalMaxPosition, lowFreqFactor, highFreqFactor, betaFast, betaSlow,
// attentionFactor, mscale, mscaleAllDim, truncate, length, invFreq, attentionScale
Status run_rope_frequencies(Context&, Arguments& in) {
  const std::string kind_name = in.text();
  RopeConfig config;
  config.theta = in.number();
  config.rotary_dim = in.size();
  config.factor = in.number();
  config.max_position = in.size();
  config.original_max_position = in.size();
  config.low_freq_factor = in.number();
  config.high_freq_factor = in.number();
  config.beta_fast = in.number();
  config.beta_slow = in.number();
  config.attention_factor = in.number();
  config.mscale = in.number();
  config.mscale_all_dim = in.number();
  config.truncate = in.flag();
  const size_t length = in.size();
  float *const inv_freq = in.floats(), *const attention_scale = in.floats();
  if (!in.ok()) return {};
  const Result<RopeKind> kind = rope_kind(kind_name);
  if (!kind.ok()) return kind.status();
  config.kind = kind.value();
  std::vector<float> frequencies;
  LR_RETURN_IF_ERROR(rope_frequencies(config, length, &frequencies, attention_scale));
  std::copy(frequencies.begin(), frequencies.end(), inv_freq);
  return {};
}

// positions, tokens, invFreq, half, attentionScale, cos, sin
Status run_rope_table(Context& context, Arguments& in) {
  const int32_t* const positions = in.ints();
  const size_t tokens = in.size();
  const float* const frequencies = in.floats();
  const size_t half = in.size();
  const float attention_scale = in.number32();
  float *const cos = in.floats(), *const sin = in.floats();
  if (!in.ok()) return {};
  return rope_table(context, positions, tokens, {frequencies, frequencies + half}, attention_scale, cos, sin);
}

// x, tokens, heads, headDim, rotaryDim, cos, sin, inverse
Status run_rope(Context& context, Arguments& in) {
  float* const x = in.floats();
  const size_t tokens = in.size(), heads = in.size(), head_dim = in.size(), rotary_dim = in.size();
  const float *const cos = in.floats(), *const sin = in.floats();
  const bool inverse = in.flag();
  if (!in.ok()) return {};
  return rope_apply(context, {x, heads * head_dim}, tokens, heads, head_dim, rotary_dim, cos, sin, inverse);
}

// ── elementwise ──

// x, weight, eps, tokens, channels, y, invRms
Status run_rms_norm(Context& context, Arguments& in) {
  const float *const x = in.floats(), *const weight = in.floats();
  const float eps = in.number32();
  const size_t tokens = in.size(), channels = in.size();
  float *const y = in.floats(), *const inv_rms = in.floats();
  if (!in.ok()) return {};
  return rmsnorm_forward(context, x, weight, eps, tokens, channels, {y, channels}, inv_rms);
}

// x, weight, invRms, dy, tokens, channels, dx, dWeight
Status run_rms_norm_backward(Context& context, Arguments& in) {
  const float *const x = in.floats(), *const weight = in.floats(), *const inv_rms = in.floats(), *const dy = in.floats();
  const size_t tokens = in.size(), channels = in.size();
  float *const dx = in.floats(), *const d_weight = in.floats();
  if (!in.ok()) return {};
  return rmsnorm_backward(context, x, weight, inv_rms, dy, tokens, channels, dx, false, d_weight);
}

// gate, up, tokens, channels, h
Status run_swiglu(Context& context, Arguments& in) {
  const float *const gate = in.floats(), *const up = in.floats();
  const size_t tokens = in.size(), channels = in.size();
  float* const h = in.floats();
  if (!in.ok()) return {};
  return swiglu_forward(context, {gate, channels}, {up, channels}, tokens, channels, {h, channels});
}

// gate, up, dh, tokens, channels, dGate, dUp
Status run_swiglu_backward(Context& context, Arguments& in) {
  const float *const gate = in.floats(), *const up = in.floats(), *const dh = in.floats();
  const size_t tokens = in.size(), channels = in.size();
  float *const d_gate = in.floats(), *const d_up = in.floats();
  if (!in.ok()) return {};
  return swiglu_backward(context, {gate, channels}, {up, channels}, {dh, channels}, tokens, channels, {d_gate, channels}, {d_up, channels});
}

// x, tokens, channels, p, seed, module, y
Status run_dropout(Context& context, Arguments& in) {
  const float* const x = in.floats();
  const size_t tokens = in.size(), channels = in.size();
  const float p = in.number32();
  const size_t seed = in.size(), module = in.size();
  float* const y = in.floats();
  if (!in.ok()) return {};
  return dropout_apply(context, {x, channels}, tokens, channels, p, seed, module, {y, channels}, false);
}

// ── embedding and head ──

// table, ids, tokens, x
Status run_embedding(Context& context, Arguments& in) {
  const Matrix table = in.weight();
  const int32_t* const ids = in.ints();
  const size_t tokens = in.size();
  float* const x = in.floats();
  if (!in.ok()) return {};
  return embedding_forward(context, table, ids, tokens, x);
}

// ids, tokens, dx, rows, cols, dTable
Status run_embedding_backward(Context& context, Arguments& in) {
  const int32_t* const ids = in.ints();
  const size_t tokens = in.size();
  const float* const dx = in.floats();
  const size_t rows = in.size(), columns = in.size();
  float* const d_table = in.floats();
  if (!in.ok()) return {};
  return embedding_backward(context, ids, tokens, dx, rows, columns, {d_table, columns});
}

// h, weight, targets, rows, gradScale, dh?, dWeight?, result: [nllSum, correct]
Status run_linear_cross_entropy(Context& context, Arguments& in) {
  const float* const h = in.floats();
  const Matrix weight = in.weight();
  const int32_t* const targets = in.ints();
  const size_t rows = in.size();
  const float grad_scale = in.number32();
  float *const dh = in.optional_floats(), *const d_weight = in.optional_floats();
  double* const result = in.doubles();
  if (!in.ok()) return {};
  HeadLoss loss;
  LR_RETURN_IF_ERROR(linear_cross_entropy(context, {h, weight.cols}, weight, targets, rows, grad_scale, dh, {d_weight, weight.cols}, &loss));
  result[0] = loss.nll_sum;
  result[1] = static_cast<double>(loss.correct);
  return {};
}

// Bytes of a row of `cols` elements of a storage type.
Napi::Value row_bytes_of(const Napi::CallbackInfo& info) {
  Arguments in(info);
  const std::string name = in.text();
  const size_t columns = in.size();
  if (!in.ok()) return info.Env().Undefined();
  const Result<DType> type = weight_type(name);
  Status status = type.status();
  if (status.ok() && columns % dtype_info(type.value()).block_elements != 0) {
    status = error(Code::kShapeMismatch, "%s has %zu columns; expected a multiple of %zu", name.c_str(), columns,
                   dtype_info(type.value()).block_elements);
  }
  if (!status.ok()) {
    throw_status(info.Env(), status);
    return info.Env().Undefined();
  }
  return Napi::Number::New(info.Env(), static_cast<double>(row_bytes(type.value(), columns)));
}

}  // namespace

void register_kernels(Napi::Env env, Napi::Object exports) {
  Napi::Object kernels = Napi::Object::New(env);
  const auto set = [&](const char* name, auto function) { set_function(kernels, name, function); };
  set("rowBytes", row_bytes_of);
  set("gemm", call<run_gemm>);
  set("loraLinear", call<run_lora_linear_forward>);
  set("loraLinearBackward", call<run_lora_linear_backward>);
  set("dequantize", call<run_dequantize>);
  set("attention", call<run_attention>);
  set("attentionBackward", call<run_attention_backward>);
  set("ropeFrequencies", call<run_rope_frequencies>);
  set("ropeTable", call<run_rope_table>);
  set("rope", call<run_rope>);
  set("rmsNorm", call<run_rms_norm>);
  set("rmsNormBackward", call<run_rms_norm_backward>);
  set("swiglu", call<run_swiglu>);
  set("swigluBackward", call<run_swiglu_backward>);
  set("dropout", call<run_dropout>);
  set("embedding", call<run_embedding>);
  set("embeddingBackward", call<run_embedding_backward>);
  set("linearCrossEntropy", call<run_linear_cross_entropy>);
  register_quantization(kernels);
  register_optimizers(kernels);
  exports.Set("kernels", kernels);
}

}  // namespace lowrank::addon

#include "addon/timed_ops.h"

#include <cmath>
#include <memory>

#include "core/half.h"
#include "ops/adamw.h"
#include "ops/attention.h"
#include "ops/dropout.h"
#include "ops/gemm.h"
#include "ops/linear_cross_entropy.h"
#include "ops/lora_linear.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace lowrank::addon {

void* Operands::bytes(size_t n) {
  Buffer buffer;
  if (status_.ok()) status_ = buffer.allocate(n + 64, "operands of an op to time");
  buffers_.push_back(std::move(buffer));
  return buffers_.back().as<void>();
}

float Operands::next() {
  state_ = state_ * 1664525u + 1013904223u;
  return static_cast<float>(state_) / 2147483648.0f - 1.0f;
}

float* Operands::random(size_t n) {
  float* values = zeros(n);
  for (size_t i = 0; values != nullptr && i < n; ++i) values[i] = next();
  return values;
}

Rows Operands::random_rows(DType type, size_t rows, size_t columns) {
  return {weight(type, rows, columns), columns, type};
}

void* Operands::weight(DType type, size_t rows, size_t cols) {
  if (type == DType::kF32) return random(rows * cols);
  void* data = bytes(rows * row_bytes(type, cols));
  if (type != DType::kBF16 || data == nullptr) return data;
  auto* values = static_cast<uint16_t*>(data);
  for (size_t i = 0; i < rows * cols; ++i) values[i] = f32_to_bf16(next());
  return data;
}

namespace {

// Y[tokens, out] = X[tokens, in] · Wᵀ, and dX = dY · W.
TimedOp gemm_op(const OpCase& c, Operands* operands, bool forward) {
  const size_t k = forward ? c.in : c.out, n = forward ? c.out : c.in;
  const GemmTerm term{operands->random(c.tokens * k), k, 1, matrix(operands->weight(c.weight, c.out, c.in), c.weight, c.out, c.in), forward, k};
  float* y = operands->zeros(c.tokens * n);
  return [=, tokens = c.tokens](Context& context) { return gemm(context, tokens, term, y, n, n, false); };
}

// `group` projections [out, in] of one input with a LoRA of rank `rank` each.
struct LoraOperands {
  std::vector<LoraAttachment> loras;
  std::vector<Projection> group;
  LinearArgs args;
  std::vector<Rows> y;  // or dy
};

std::shared_ptr<LoraOperands> lora_operands(const OpCase& c, Operands* operands) {
  auto lora = std::make_shared<LoraOperands>();
  lora->loras.resize(c.group);
  for (LoraAttachment& attachment : lora->loras) {
    attachment = {.a = operands->random(c.rank * c.in), .b = operands->random(c.out * c.rank), .r = c.rank, .scale = 2.0f};
    attachment.grad_a = operands->zeros(c.rank * c.in);
    attachment.grad_b = operands->zeros(c.out * c.rank);
  }
  for (const LoraAttachment& attachment : lora->loras) {
    const Matrix weight = matrix(operands->weight(c.weight, c.out, c.in), c.weight, c.out, c.in);
    lora->group.push_back({.weight = weight, .loras = {&attachment, 1}});
    lora->y.push_back({operands->random(c.tokens * c.out), c.out});
  }
  lora->args = {.tokens = c.tokens, .in = c.in, .x = {operands->random(c.tokens * c.in), c.in}, .group = lora->group,
                .s = operands->random(c.tokens * c.group * c.rank)};
  return lora;
}

TimedOp lora_forward(const OpCase& c, Operands* operands) {
  return [lora = lora_operands(c, operands)](Context& context) {
    return lora_linear_forward(context, lora->args, lora->y);
  };
}

TimedOp lora_backward(const OpCase& c, Operands* operands) {
  auto lora = lora_operands(c, operands);
  float* dx = operands->zeros(c.tokens * c.in);
  return [=, dy = std::vector<ConstRows>(lora->y.begin(), lora->y.end()), in = c.in](Context& context) {
    return lora_linear_backward(context, lora->args, dy, {dx, in}, false);
  };
}

// `sequences` of `tokens` each, packed.
TimedOp attention_op(const OpCase& c, Operands* operands, bool forward) {
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim, 1.0f / std::sqrt(static_cast<float>(c.head_dim))};
  std::vector<AttentionSequence> sequences;
  for (size_t i = 0; i < c.sequences; ++i) sequences.push_back({i * c.tokens, c.tokens, i * c.tokens, c.tokens});
  const size_t rows = c.sequences * c.tokens, q_stride = c.heads * c.head_dim, kv_stride = c.kv_heads * c.head_dim;
  const ConstRows q = operands->random_rows(c.rows, rows, q_stride);
  const ConstRows k = operands->random_rows(c.rows, rows, kv_stride), v = operands->random_rows(c.rows, rows, kv_stride);
  const Rows o = operands->random_rows(c.rows, rows, q_stride);
  float* lse = operands->zeros(rows * c.heads);
  const TimedOp forward_op = [=](Context& context) { return attention_forward(context, shape, sequences, q, k, v, o, lse); };
  if (forward) return forward_op;
  const ConstRows d_o = operands->random_rows(c.rows, rows, q_stride);
  const Rows dq = operands->random_rows(c.rows, rows, q_stride);
  const Rows dk = operands->random_rows(c.rows, rows, kv_stride), dv = operands->random_rows(c.rows, rows, kv_stride);
  float* scratch = operands->zeros(attention_backward_scratch(shape, rows, rows, c.rows) / sizeof(float));
  // o and lse are what the first run's forward leaves; later ones find them.
  return [=, ready = std::make_shared<bool>(false)](Context& context) {
    if (!*ready) LR_RETURN_IF_ERROR(forward_op(context));
    *ready = true;
    return attention_backward(context, shape, sequences, q, k, v, o, lse, d_o, dq, dk, dv, scratch);
  };
}

// The frozen head over `out` rows of a vocabulary.
TimedOp head_op(const OpCase& c, Operands* operands) {
  const float* h = operands->random(c.tokens * c.in);
  const Matrix weight = matrix(operands->weight(c.weight, c.out, c.in), c.weight, c.out, c.in);
  float* dh = operands->zeros(c.tokens * c.in);
  std::vector<int32_t> targets;
  for (size_t i = 0; i < c.tokens; ++i) targets.push_back(static_cast<int32_t>(i * 7919 % c.out));
  return [=, tokens = c.tokens](Context& context) {
    HeadLoss loss;
    return linear_cross_entropy(context, {h, weight.cols}, weight, targets.data(), tokens, 1.0f, dh, {}, &loss);
  };
}

TimedOp rmsnorm_op(const OpCase& c, Operands* operands, bool forward) {
  const float* x = operands->random(c.tokens * c.in);
  const float* w = operands->random(c.in);
  float* inv_rms = operands->random(c.tokens);
  float* y = operands->zeros(c.tokens * c.in);
  if (forward) return [=, c = c](Context& context) { return rmsnorm_forward(context, x, w, 1e-5f, c.tokens, c.in, {y, c.in}, inv_rms); };
  const float* dy = operands->random(c.tokens * c.in);
  return [=, c = c](Context& context) { return rmsnorm_backward(context, x, w, inv_rms, dy, c.tokens, c.in, y, false, nullptr); };
}

TimedOp swiglu_op(const OpCase& c, Operands* operands, bool forward) {
  const float* g = operands->random(c.tokens * c.in);
  const float* u = operands->random(c.tokens * c.in);
  float* h = operands->random(c.tokens * c.in);
  if (forward) return [=, c = c](Context& context) { return swiglu_forward(context, {g, c.in}, {u, c.in}, c.tokens, c.in, {h, c.in}); };
  float* dg = operands->zeros(c.tokens * c.in);
  float* du = operands->zeros(c.tokens * c.in);
  return [=, c = c](Context& context) { return swiglu_backward(context, {g, c.in}, {u, c.in}, {h, c.in}, c.tokens, c.in, {dg, c.in}, {du, c.in}); };
}

TimedOp rope_op(const OpCase& c, Operands* operands) {
  const size_t stride = c.heads * c.head_dim;
  float* x = operands->random(c.tokens * stride);
  float* cos = operands->zeros(c.tokens * c.head_dim / 2);
  float* sin = operands->zeros(c.tokens * c.head_dim / 2);
  for (size_t i = 0; operands->status().ok() && i < c.tokens * c.head_dim / 2; ++i) {
    cos[i] = std::cos(static_cast<float>(i));
    sin[i] = std::sin(static_cast<float>(i));
  }
  return [=, c = c](Context& context) {
    return rope_apply(context, {x, stride}, c.tokens, c.heads, c.head_dim, c.head_dim, cos, sin, false);
  };
}

TimedOp dropout_op(const OpCase& c, Operands* operands) {
  const float* x = operands->random(c.tokens * c.in);
  float* y = operands->zeros(c.tokens * c.in);
  return [=, c = c](Context& context) { return dropout_apply(context, {x, c.in}, c.tokens, c.in, 0.1f, 1, 2, {y, c.in}, false); };
}

// `in` parameters.
TimedOp adamw_op(const OpCase& c, Operands* operands) {
  const float* g = operands->random(c.in);
  float* p = operands->random(c.in);
  float* m = operands->zeros(c.in);
  float* v = operands->zeros(c.in);
  return [=, n = c.in](Context& context) {
    return adamw_update(context, {1e-4, 0.9, 0.999, 1e-8, 0.0, 1, 1.0f}, n, g, p, m, v);
  };
}

TimedOp gradient_norm_op(const OpCase& c, Operands* operands) {
  const GradientSpan gradient(std::span<const float>(operands->random(c.in), c.in));
  return [=](Context& context) {
    double sum = 0;
    return grad_norm_squared(context, {&gradient, 1}, &sum);
  };
}

struct NamedOp {
  const char* name;
  TimedOp (*make)(const OpCase&, Operands*);
};

constexpr NamedOp kOps[] = {
    {"gemm", [](const OpCase& c, Operands* o) { return gemm_op(c, o, true); }},
    {"gemm backward", [](const OpCase& c, Operands* o) { return gemm_op(c, o, false); }},
    {"lora_linear", lora_forward},
    {"lora_linear backward", lora_backward},
    {"attention", [](const OpCase& c, Operands* o) { return attention_op(c, o, true); }},
    {"attention backward", [](const OpCase& c, Operands* o) { return attention_op(c, o, false); }},
    {"head", head_op},
    {"rms_norm", [](const OpCase& c, Operands* o) { return rmsnorm_op(c, o, true); }},
    {"rms_norm backward", [](const OpCase& c, Operands* o) { return rmsnorm_op(c, o, false); }},
    {"swiglu", [](const OpCase& c, Operands* o) { return swiglu_op(c, o, true); }},
    {"swiglu backward", [](const OpCase& c, Operands* o) { return swiglu_op(c, o, false); }},
    {"rope", rope_op},
    {"dropout", dropout_op},
    {"adamw", adamw_op},
    {"gradient norm", gradient_norm_op},
};

}  // namespace

Result<TimedOp> timed_op(const OpCase& c, Operands* operands) {
  for (const NamedOp& op : kOps) {
    if (c.op != op.name) continue;
    TimedOp made = op.make(c, operands);
    if (!operands->status().ok()) return operands->status();
    return made;
  }
  return error(Code::kInvalidOption, "no op to time is called '%s'", c.op.c_str());
}

}  // namespace lowrank::addon

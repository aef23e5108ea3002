// Bound by the base weights' products; the attachments add r more columns to them and four products
// with a short side of r, which read x and dy once each.
#include "ops/lora_linear.h"

#include <algorithm>
#include <vector>

#include "core/buffer.h"
#include "core/checked.h"
#include "core/half.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/dropout.h"
#include "ops/gemm.h"

namespace lowrank {
namespace {

constexpr size_t kScaleRows = 128;    // of ds in a chunk
constexpr size_t kBiasColumns = 256;  // of dy in a chunk

template <class T>
std::vector<T>& thread_list() {
  thread_local std::vector<T> list;
  return list;
}

// Memory between the products of one call. It is the pool's, so that there is one of it whichever thread calls, and grows to the
// largest call.
struct Scratch {
  explicit Scratch(Context& context)
      : stacked(context.pool.caller_buffer(ThreadPool::kStackedLora)),
        dropped(context.pool.caller_buffer(ThreadPool::kDroppedRows)),
        ds(context.pool.caller_buffer(ThreadPool::kLoraGradient)) {}

  Buffer& stacked;  // scaled A of several attachments, or the sum of their gradients
  Buffer& dropped;  // [T, in]: drop(x) in x's type, or what is to be dropped of dx
  Buffer& ds;       // [T, rank sum]
  std::vector<GemmTerm>& terms = thread_list<GemmTerm>();
  std::vector<GemmPart>& parts = thread_list<GemmPart>();
};

struct Attached {
  const LoraAttachment* lora;
  size_t projection;
  size_t offset;  // its first column of s
};

// The attachments in the order of s.
template <class F>
void for_each_attachment(std::span<const Projection> group, const F& f) {
  size_t offset = 0;
  for (size_t p = 0; p < group.size(); ++p) {
    for (const LoraAttachment& lora : group[p].loras) {
      f(Attached{&lora, p, offset});
      offset += lora.r;
    }
  }
}

// Consecutive attachments whose input is the same: all without dropout, or a single one with it.
struct Run {
  std::vector<Attached> members;
  size_t ranks = 0;
  size_t offset() const { return members.front().offset; }
  bool dropped() const { return members.front().lora->dropout > 0; }
};

std::vector<Run> runs_of(std::span<const Projection> group) {
  std::vector<Run> runs;
  for_each_attachment(group, [&](const Attached& attached) {
    if (runs.empty() || runs.back().dropped() || attached.lora->dropout > 0) runs.emplace_back();
    runs.back().members.push_back(attached);
    runs.back().ranks += attached.lora->r;
  });
  return runs;
}

// Outputs are Rows or ConstRows.
template <class AnyRows>
Status check(const LinearArgs& args, std::span<const AnyRows> outputs, const char* what) {
  if (outputs.size() != args.group.size()) {
    return error(Code::kShapeMismatch, "lora_linear: %zu %s for %zu projections", outputs.size(),
                 what, args.group.size());
  }
  if (args.x.stride < args.in) {
    return error(Code::kShapeMismatch, "lora_linear: rows of x lie %zu apart, but hold %zu",
                 args.x.stride, args.in);
  }
  for (size_t p = 0; p < args.group.size(); ++p) {
    const Matrix& weight = args.group[p].weight;
    if (weight.cols != args.in) {
      return error(Code::kShapeMismatch, "lora_linear: projection %zu takes %zu inputs, x has %zu",
                   p, weight.cols, args.in);
    }
    if (outputs[p].stride < weight.rows) {
      return error(Code::kShapeMismatch, "lora_linear: rows of %s %zu lie %zu apart, but hold %zu",
                   what, p, outputs[p].stride, weight.rows);
    }
  }
  if (lora_rank_sum(args.group) > 0 && args.s == nullptr) {
    return error(Code::kShapeMismatch, "lora_linear: there are attachments, but no memory for s");
  }
  return {};
}

GemmTerm term(ConstRows a, const Matrix& b, bool b_transposed, size_t k) {
  return {a.data, a.stride, 1, b, b_transposed, k, a.type};
}

Matrix floats(const float* data, size_t rows, size_t cols) {
  return matrix(data, DType::kF32, rows, cols);
}

// rows[t, begin + i] *= scale of the attachment that owns the column.
void scale_columns(Context& context, std::span<const Projection> group, size_t tokens, size_t ranks,
                   float* rows) {
  context.pool.parallel(ceil_div(tokens, kScaleRows), [&](size_t chunk, size_t) {
    const size_t begin = chunk * kScaleRows, end = std::min(tokens, begin + kScaleRows);
    for_each_attachment(group, [&](const Attached& attached) {
      const LoraAttachment& lora = *attached.lora;
      for (size_t t = begin; t < end; ++t) {
        float* row = rows + t * ranks + attached.offset;
        for (size_t i = 0; i < lora.r; ++i) row[i] *= lora.scale;
      }
    });
  });
}

// Rows of x for which stacking and scaling A costs more than its full panels save.
size_t few_tokens(const Context& context) { return context.decoding ? gemm_dot_rows(context) : 4; }

// Few rows (decoding): A is read once and where it lies; s is scaled afterwards.
Status project_few(Context& context, const LinearArgs& args, size_t ranks, Scratch& scratch) {
  scratch.terms.clear();
  scratch.parts.clear();
  for_each_attachment(args.group, [&](const Attached& attached) {
    const LoraAttachment& lora = *attached.lora;
    scratch.terms.push_back(term(args.x, floats(lora.a, lora.r, args.in), true, args.in));
  });
  size_t index = 0;
  for_each_attachment(args.group, [&](const Attached& attached) {
    scratch.parts.push_back(
        {args.s + attached.offset, ranks, attached.lora->r, {&scratch.terms[index++], 1}});
  });
  LR_RETURN_IF_ERROR(gemm(context, args.tokens, scratch.parts));
  scale_columns(context, args.group, args.tokens, ranks, args.s);
  return {};
}

// *x = drop(args.x) for the single attachment of a run, in the type of args.x.
Status drop_input(Context& context, const LinearArgs& args, const Run& run, Scratch& scratch,
                  ConstRows* x) {
  const LoraAttachment& lora = *run.members.front().lora;
  LR_RETURN_IF_ERROR(
      scratch.dropped.reserve(args.tokens * args.in * sizeof(float), "inputs after dropout"));
  const Rows dropped{scratch.dropped.as<void>(), args.in, args.x.type};
  *x = dropped;
  return dropout_apply(context, args.x, args.tokens, args.in, lora.dropout, args.seed, lora.module,
                       dropped, false);
}

// s = scale · drop(x) · Aᵀ for a run, whose A are stacked and scaled first: one pass over x, full
// panels.
Status project_run(Context& context, const LinearArgs& args, const Run& run, size_t ranks,
                   Scratch& scratch) {
  LR_RETURN_IF_ERROR(
      scratch.stacked.reserve(run.ranks * args.in * sizeof(float), "stacked LoRA matrices"));
  float* stacked = scratch.stacked.as<float>();
  float* out = stacked;
  for (const Attached& attached : run.members) {
    const LoraAttachment& lora = *attached.lora;
    for (size_t i = 0; i < lora.r * args.in; ++i) out[i] = lora.scale * lora.a[i];
    out += lora.r * args.in;
  }
  ConstRows x = args.x;
  if (run.dropped()) LR_RETURN_IF_ERROR(drop_input(context, args, run, scratch, &x));
  return gemm(context, args.tokens, term(x, floats(stacked, run.ranks, args.in), true, args.in),
              args.s + run.offset(), ranks, run.ranks, false);
}

// dA += dsᵀ · drop(x) for a run, and dx += drop'(ds · A) where it has dropout.
Status run_backward(Context& context, const LinearArgs& args, const Run& run, size_t ranks, Rows dx,
                    Scratch& scratch) {
  const float* ds = scratch.ds.as<float>() + run.offset();
  const bool trained =
      std::any_of(run.members.begin(), run.members.end(),
                  [](const Attached& attached) { return attached.lora->grad_a != nullptr; });
  if (!run.dropped()) {
    if (!trained) return {};
    LR_RETURN_IF_ERROR(
        scratch.stacked.reserve(run.ranks * args.in * sizeof(float), "stacked LoRA gradients"));
    float* sum = scratch.stacked.as<float>();
    const Matrix x{args.x.data, args.x.type, args.tokens, args.in,
                   args.x.stride * args.x.element_bytes()};
    LR_RETURN_IF_ERROR(gemm(context, run.ranks, {ds, 1, ranks, x, false, args.tokens}, sum, args.in,
                            args.in, false));
    for (const Attached& attached : run.members) {
      float* grad = attached.lora->grad_a;
      const size_t n = attached.lora->r * args.in;
      for (size_t i = 0; grad != nullptr && i < n; ++i) grad[i] += sum[i];
      sum += n;
    }
    return {};
  }

  const LoraAttachment& lora = *run.members.front().lora;
  if (trained) {
    ConstRows x;
    LR_RETURN_IF_ERROR(drop_input(context, args, run, scratch, &x));
    LR_RETURN_IF_ERROR(gemm_tn(context, lora.r, args.in, args.tokens, {ds, ranks}, x,
                               {lora.grad_a, args.in}));
  }
  if (dx.data == nullptr) return {};
  LR_RETURN_IF_ERROR(
      scratch.dropped.reserve(args.tokens * args.in * sizeof(float), "gradients before dropout"));
  float* dropped = scratch.dropped.as<float>();
  LR_RETURN_IF_ERROR(gemm(context, args.tokens,
                          {ds, ranks, 1, floats(lora.a, lora.r, args.in), false, lora.r}, dropped,
                          args.in, args.in, false));
  return dropout_apply(context, {dropped, args.in}, args.tokens, args.in, lora.dropout, args.seed,
                       lora.module, dx, true);
}

// ds = scale · dy · B for all attachments.
Status ds_forward(Context& context, const LinearArgs& args, std::span<const ConstRows> dy,
                  size_t ranks, Scratch& scratch) {
  LR_RETURN_IF_ERROR(scratch.ds.reserve(args.tokens * ranks * sizeof(float),
                                        "gradients of LoRA's inner activations"));
  float* ds = scratch.ds.as<float>();
  scratch.terms.clear();
  scratch.parts.clear();
  for_each_attachment(args.group, [&](const Attached& attached) {
    const size_t out = args.group[attached.projection].weight.rows;
    const LoraAttachment& lora = *attached.lora;
    scratch.terms.push_back(
        term(dy[attached.projection], floats(lora.b, out, lora.r), false, out));
  });
  size_t index = 0;
  for_each_attachment(args.group, [&](const Attached& attached) {
    scratch.parts.push_back(
        {ds + attached.offset, ranks, attached.lora->r, {&scratch.terms[index++], 1}});
  });
  LR_RETURN_IF_ERROR(gemm(context, args.tokens, scratch.parts));
  scale_columns(context, args.group, args.tokens, ranks, ds);
  return {};
}

// dbias += Σ_t dy, in token order.
void bias_backward(Context& context, ConstRows dy, size_t tokens, size_t out, float* grad) {
  context.pool.parallel(ceil_div(out, kBiasColumns), [&](size_t chunk, size_t) {
    const size_t begin = chunk * kBiasColumns, n = std::min(kBiasColumns, out - begin);
    float sum[kBiasColumns] = {};
    for (size_t t = 0; t < tokens; ++t) {
      const void* row = dy.at(t, begin).data;
      if (dy.bf16()) {
        for (size_t i = 0; i < n; ++i)
          sum[i] += bf16_to_f32(static_cast<const uint16_t*>(row)[i]);
      } else {
        for (size_t i = 0; i < n; ++i) sum[i] += static_cast<const float*>(row)[i];
      }
    }
    for (size_t i = 0; i < n; ++i) grad[begin + i] += sum[i];
  });
}

// dx (+)= Σ_p dy_p·W_p + Σ ds·A over the attachments without dropout.
Status input_backward(Context& context, const LinearArgs& args, std::span<const ConstRows> dy,
                      size_t ranks, Rows dx, bool accumulate, Scratch& scratch) {
  scratch.terms.clear();
  for (size_t p = 0; p < args.group.size(); ++p) {
    const Matrix& weight = args.group[p].weight;
    scratch.terms.push_back(term(dy[p], weight, false, weight.rows));
  }
  for_each_attachment(args.group, [&](const Attached& attached) {
    const LoraAttachment& lora = *attached.lora;
    if (lora.dropout > 0) return;
    scratch.terms.push_back({scratch.ds.as<float>() + attached.offset, ranks, 1,
                             floats(lora.a, lora.r, args.in), false, lora.r});
  });
  GemmPart part{dx.data, dx.stride, args.in, scratch.terms};
  part.c_type = dx.type;
  if (accumulate) {
    part.add = static_cast<const float*>(dx.data);
    part.add_ld = dx.stride;
  }
  return gemm(context, args.tokens, {&part, 1});
}

}  // namespace

size_t lora_rank_sum(std::span<const Projection> group) {
  size_t sum = 0;
  for (const Projection& projection : group) {
    for (const LoraAttachment& lora : projection.loras) sum += lora.r;
  }
  return sum;
}

void LoraMemory::add(std::span<const Projection> group, size_t in, size_t tokens) {
  for (const Run& run : runs_of(group)) {
    if (run.dropped()) dropped = std::max(dropped, tokens * in * sizeof(float));
    stacked = std::max(stacked, run.ranks * in * sizeof(float));
  }
  ds = std::max(ds, tokens * lora_rank_sum(group) * sizeof(float));
}

size_t LoraMemory::total() const { return Buffer::held(stacked) + Buffer::held(dropped) + Buffer::held(ds); }

Status lora_inner_forward(Context& context, const LinearArgs& args) {
  const OpTimer timer(context, OpKind::kLoraForward);
  Scratch scratch(context);
  const size_t ranks = lora_rank_sum(args.group);
  if (args.tokens == 0 || ranks == 0) return {};
  const std::vector<Run> runs = runs_of(args.group);
  const bool dropout =
      std::any_of(runs.begin(), runs.end(), [](const Run& run) { return run.dropped(); });
  if (args.tokens <= few_tokens(context) && !dropout && !args.x.bf16())
    return project_few(context, args, ranks, scratch);
  for (const Run& run : runs) LR_RETURN_IF_ERROR(project_run(context, args, run, ranks, scratch));
  return {};
}

Status lora_linear_forward(Context& context, const LinearArgs& args, std::span<const Rows> y,
                           std::span<const ConstRows> add) {
  const OpTimer timer(context, OpKind::kLoraForward);
  LR_RETURN_IF_ERROR(check(args, y, "y"));
  if (!add.empty()) LR_RETURN_IF_ERROR(check(args, add, "rows to add to"));
  if (args.tokens == 0) return {};
  LR_RETURN_IF_ERROR(lora_inner_forward(context, args));
  Scratch scratch(context);
  const size_t ranks = lora_rank_sum(args.group);

  scratch.terms.clear();
  scratch.parts.clear();
  size_t count = 0;
  for (const Projection& projection : args.group) count += 1 + projection.loras.size();
  scratch.terms.reserve(count);  // parts point into it
  size_t offset = 0;
  for (size_t p = 0; p < args.group.size(); ++p) {
    const Projection& projection = args.group[p];
    const size_t out = projection.weight.rows, first = scratch.terms.size();
    scratch.terms.push_back(term(args.x, projection.weight, true, args.in));
    for (const LoraAttachment& lora : projection.loras) {
      scratch.terms.push_back(
          {args.s + offset, ranks, 1, floats(lora.b, out, lora.r), true, lora.r});
      offset += lora.r;
    }
    const std::span<const GemmTerm> terms(scratch.terms.data() + first,
                                          scratch.terms.size() - first);
    GemmPart part{y[p].data, y[p].stride, out, terms, projection.bias};
    part.c_type = y[p].type;
    if (!add.empty()) {
      part.add = static_cast<const float*>(add[p].data);
      part.add_ld = add[p].stride;
    }
    scratch.parts.push_back(part);
  }
  return gemm(context, args.tokens, scratch.parts);
}

Status lora_linear_backward(Context& context, const LinearArgs& args, std::span<const ConstRows> dy,
                            Rows dx, bool accumulate_dx) {
  const OpTimer timer(context, OpKind::kLoraBackward);
  LR_RETURN_IF_ERROR(check(args, dy, "dy"));
  if (dx.data != nullptr && dx.stride < args.in) {
    return error(Code::kShapeMismatch, "lora_linear: rows of dx lie %zu apart, but hold %zu",
                 dx.stride, args.in);
  }
  if (args.tokens == 0) return {};
  Scratch scratch(context);
  const size_t ranks = lora_rank_sum(args.group);

  bool needs_ds = ranks > 0 && dx.data != nullptr;
  size_t offset = 0;
  for (size_t p = 0; p < args.group.size(); ++p) {
    const Projection& projection = args.group[p];
    const size_t out = projection.weight.rows;
    for (const LoraAttachment& lora : projection.loras) {
      needs_ds |= lora.grad_a != nullptr;
      if (lora.grad_b != nullptr) {
        LR_RETURN_IF_ERROR(gemm_tn(context, lora.r, out, args.tokens, {args.s + offset, ranks},
                                   dy[p], {lora.grad_b, lora.r}, true));
      }
      offset += lora.r;
    }
    if (projection.grad_weight.data != nullptr) {
      LR_RETURN_IF_ERROR(gemm_tn(context, out, args.in, args.tokens, dy[p], args.x,
                                 projection.grad_weight));
    }
    if (projection.grad_bias != nullptr)
      bias_backward(context, dy[p], args.tokens, out, projection.grad_bias);
  }

  if (needs_ds) LR_RETURN_IF_ERROR(ds_forward(context, args, dy, ranks, scratch));
  if (dx.data != nullptr)
    LR_RETURN_IF_ERROR(input_backward(context, args, dy, ranks, dx, accumulate_dx, scratch));
  if (!needs_ds) return {};
  for (const Run& run : runs_of(args.group)) {
    LR_RETURN_IF_ERROR(run_backward(context, args, run, ranks, dx, scratch));
  }
  return {};
}

}  // namespace lowrank

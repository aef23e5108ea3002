#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "ops/attention.h"
#include "ops/cpu/kernels.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/linear_cross_entropy.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/round_rows.h"
#include "ops/swiglu.h"

namespace lowrank {
namespace {

constexpr int32_t kIgnored = -100;

AttentionShape attention_shape(const DecoderConfig& c, size_t window) {
  return {c.heads, c.kv_heads, c.head_dim, 1.0f / std::sqrt(static_cast<float>(c.head_dim)), window};
}

std::vector<AttentionSequence> packed_sequences(std::span<const int32_t> starts) {
  std::vector<AttentionSequence> sequences;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const size_t begin = static_cast<size_t>(starts[i]), length = static_cast<size_t>(starts[i + 1]) - begin;
    if (length > 0) sequences.push_back({begin, length, begin, length});
  }
  return sequences;
}

// Rows of [T, columns] copied to (gather) or from (scatter) consecutive ones.
void gather_rows(Context& context, const float* from, std::span<const size_t> rows, size_t columns, float* to) {
  context.pool.parallel(ceil_div(rows.size(), 64), [&](size_t chunk, size_t) {
    for (size_t i = chunk * 64; i < std::min(rows.size(), chunk * 64 + 64); ++i) {
      std::memcpy(to + i * columns, from + rows[i] * columns, columns * sizeof(float));
    }
  });
}

LinearArgs linear_args(const GroupPlan& group, size_t tokens, ConstRows x, float* s, uint64_t seed) {
  return {tokens, group.in, x, group.projections, s, seed};
}

// The heads of q, k and v in rows that hold the three side by side.
struct QkvRows {
  Rows q, k, v;

  QkvRows(const DecoderConfig& c, Rows rows)
      : q(rows), k(rows.at(0, c.query_width())), v(rows.at(0, c.query_width() + c.kv_width())) {}
};

struct GateUpRows {
  Rows gate, up;

  GateUpRows(const DecoderConfig& c, Rows rows) : gate(rows), up(rows.at(0, c.ffn)) {}
};

}  // namespace

Status check_batch(const DecoderConfig& config, const Batch& batch) {
  const size_t tokens = batch.ids.size();
  if (tokens == 0) return error(Code::kShapeMismatch, "the batch has no tokens");
  if (batch.positions.size() != tokens) {
    return error(Code::kShapeMismatch, "the batch has %zu ids and %zu positions", tokens, batch.positions.size());
  }
  if (batch.starts.size() < 2 || batch.starts.front() != 0 || batch.starts.back() < 0 ||
      static_cast<size_t>(batch.starts.back()) != tokens || !std::is_sorted(batch.starts.begin(), batch.starts.end())) {
    return error(Code::kShapeMismatch, "starts must rise from 0 to the number of tokens, %zu", tokens);
  }
  for (size_t t = 0; t < tokens; ++t) {
    if (batch.ids[t] < 0 || static_cast<size_t>(batch.ids[t]) >= config.vocab) {
      return error(Code::kInvalidOption, "token %zu has id %d; the vocabulary has %zu", t, batch.ids[t], config.vocab);
    }
    if (batch.positions[t] < 0) return error(Code::kInvalidOption, "token %zu has position %d", t, batch.positions[t]);
  }
  return {};
}

Status Decoder::look_up(const ModelPlan& plan, std::span<const int32_t> ids, float* out) const {
  const Matrix& table = plan.embedding;
  const size_t rows = plan.release_embedding ? kLookUpRows : ids.size();
  for (size_t begin = 0; begin < ids.size(); begin += rows) {
    const size_t count = std::min(rows, ids.size() - begin);
    LR_RETURN_IF_ERROR(embedding_forward(context_, table, ids.data() + begin, count, out + begin * config_.hidden));
    if (plan.release_embedding) plan.release_embedding(table.data, table.rows * table.stride);
  }
  return {};
}

Status Decoder::rope_tables(const Batch& batch, size_t begin, size_t end, Workspace* w) const {
  const std::span<const int32_t> positions = batch.positions.subspan(begin, end - begin);
  const int32_t last = *std::max_element(positions.begin(), positions.end());
  std::vector<float> inv_freq;
  float scale = 1.0f;
  LR_RETURN_IF_ERROR(rope_frequencies(config_.rope, static_cast<size_t>(last) + 1, &inv_freq, &scale));
  const size_t at = begin * config_.rope.rotary_dim / 2;
  return rope_table(context_, positions.data(), positions.size(), inv_freq, scale, w->cos + at, w->sin + at);
}

Status Decoder::project_qkv(const LayerPlan& plan, const float* input, size_t tokens, uint64_t seed, const BlockSaved& saved,
                            Workspace* w) const {
  const DecoderConfig& c = config_;
  LR_RETURN_IF_ERROR(rmsnorm_forward(context_, input, plan.input_norm, c.norm_eps, tokens, c.hidden, w->normed, saved.inv_rms_in));
  const QkvRows rows(c, saved.qkv);
  const Rows y[] = {rows.q, rows.k, rows.v};
  LR_RETURN_IF_ERROR(lora_linear_forward(context_, linear_args(plan.qkv, tokens, w->normed, saved.s_qkv, seed), y));
  return rotate(rows.q, rows.k, tokens, false, w);
}

// Rotates queries and keys, or their gradients back.
Status Decoder::rotate(Rows q, Rows k, size_t tokens, bool inverse, const Workspace* w) const {
  const DecoderConfig& c = config_;
  LR_RETURN_IF_ERROR(rope_apply(context_, q, tokens, c.heads, c.head_dim, c.rope.rotary_dim, w->cos, w->sin, inverse));
  return rope_apply(context_, k, tokens, c.kv_heads, c.head_dim, c.rope.rotary_dim, w->cos, w->sin, inverse);
}

Status Decoder::attend(const LayerPlan& plan, const Batch& batch, const BlockSaved& saved) const {
  const DecoderConfig& c = config_;
  const QkvRows rows(c, saved.qkv);
  const auto sequences = packed_sequences(batch.starts);
  return attention_forward(context_, attention_shape(c, plan.window), sequences, rows.q, rows.k, rows.v, saved.attention,
                           saved.lse);
}

// mid = input + O(attention)
Status Decoder::add_attention(const LayerPlan& plan, const float* input, size_t tokens, uint64_t seed, const BlockSaved& saved,
                              Workspace* w) const {
  const Rows mid{w->mid, config_.hidden};
  const ConstRows residual{input, config_.hidden};
  return lora_linear_forward(context_, linear_args(plan.output, tokens, saved.attention, saved.s_output, seed), {&mid, 1},
                             {&residual, 1});
}

// The MLP up to silu(gate) * up, which is left in hidden_ffn.
Status Decoder::gate_up(const LayerPlan& plan, size_t tokens, uint64_t seed, const BlockSaved& saved, Workspace* w) const {
  const DecoderConfig& c = config_;
  LR_RETURN_IF_ERROR(rmsnorm_forward(context_, w->mid, plan.post_norm, c.norm_eps, tokens, c.hidden, w->normed, saved.inv_rms_mid));
  const GateUpRows rows(c, saved.gate_up);
  const Rows y[] = {rows.gate, rows.up};
  LR_RETURN_IF_ERROR(lora_linear_forward(context_, linear_args(plan.gate_up, tokens, w->normed, saved.s_gate_up, seed), y));
  return swiglu_forward(context_, rows.gate, rows.up, tokens, c.ffn, w->hidden_ffn);
}

// From the attention's output to the block's. `output` may be `input`.
Status Decoder::finish_block(const LayerPlan& plan, const float* input, size_t tokens, uint64_t seed, const BlockSaved& saved,
                             Workspace* w, float* output) const {
  LR_RETURN_IF_ERROR(add_attention(plan, input, tokens, seed, saved, w));
  LR_RETURN_IF_ERROR(gate_up(plan, tokens, seed, saved, w));
  const Rows out{output, config_.hidden};
  const ConstRows residual{w->mid, config_.hidden};
  return lora_linear_forward(context_, linear_args(plan.down, tokens, w->hidden_ffn, saved.s_down, seed), {&out, 1}, {&residual, 1});
}

// What block_backward reads and was not kept, with the bits it had. `mid` and `hidden_ffn` never are: a fortieth of a step buys a tenth of
// the memory. `kept`: all else was; `has_attention`: what attention made was.
Status Decoder::recompute(const LayerPlan& plan, const Batch& batch, const float* input, uint64_t seed, const BlockSaved& saved,
                          bool kept, bool has_attention, Workspace* w) const {
  const size_t tokens = batch.ids.size();
  if (kept) {
    LR_RETURN_IF_ERROR(add_attention(plan, input, tokens, seed, saved, w));
    const GateUpRows rows(config_, saved.gate_up);
    return swiglu_forward(context_, rows.gate, rows.up, tokens, config_.ffn, w->hidden_ffn);
  }
  LR_RETURN_IF_ERROR(project_qkv(plan, input, tokens, seed, saved, w));
  if (!has_attention) LR_RETURN_IF_ERROR(attend(plan, batch, saved));
  LR_RETURN_IF_ERROR(add_attention(plan, input, tokens, seed, saved, w));
  LR_RETURN_IF_ERROR(gate_up(plan, tokens, seed, saved, w));
  return lora_inner_forward(context_, linear_args(plan.down, tokens, w->hidden_ffn, saved.s_down, seed));
}

// Blocks [begin, end), each block's output in its place.
Status Decoder::run_blocks(const ModelPlan& plan, const Batch& batch, size_t begin, size_t end, uint64_t seed, Workspace* w) const {
  const size_t tokens = batch.ids.size();
  for (size_t l = begin; l < end; ++l) {
    const BlockSaved& saved = w->blocks[l];
    LR_RETURN_IF_ERROR(project_qkv(plan.layers[l], w->inputs[l], tokens, seed, saved, w));
    LR_RETURN_IF_ERROR(attend(plan.layers[l], batch, saved));
    LR_RETURN_IF_ERROR(finish_block(plan.layers[l], w->inputs[l], tokens, seed, saved, w, w->inputs[l + 1]));
    if (l >= plan.lowest_trained_layer && l + 1 < plan.layers.size()) w->park(l);  // the last is read at once
  }
  return {};
}

Status Decoder::forward(const ModelPlan& plan, const Batch& batch, const Retention& keep, uint64_t seed, Workspace* w) const {
  const size_t tokens = batch.ids.size();
  LR_RETURN_IF_ERROR(w->prepare(config_, plan, keep, activation_type(context_), tokens));
  LR_RETURN_IF_ERROR(rope_tables(batch, 0, tokens, w));
  LR_RETURN_IF_ERROR(look_up(plan, batch.ids, w->inputs[0]));
  return run_blocks(plan, batch, 0, plan.layers.size(), seed, w);
}

Status Decoder::forward_cached(const ModelPlan& plan, const Batch& batch, std::span<const size_t> rows, KvCache* cache,
                               Workspace* w) const {
  const DecoderConfig& c = config_;
  const size_t tokens = batch.ids.size();
  std::vector<AttentionSequence> sequences;
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t begin = static_cast<size_t>(batch.starts[i]), length = static_cast<size_t>(batch.starts[i + 1]) - begin;
    const size_t cached = cache->length(rows[i]);
    if (cached + length > cache->capacity()) {
      return error(Code::kShapeMismatch, "row %zu would hold %zu tokens; its cache has room for %zu", rows[i], cached + length, cache->capacity());
    }
    sequences.push_back({begin, length, rows[i] * cache->capacity(), cached + length});
  }
  LR_RETURN_IF_ERROR(w->prepare(c, plan, keep_nothing(), DType::kF32, tokens));
  for (const AttentionSequence& s : sequences) LR_RETURN_IF_ERROR(rope_tables(batch, s.q_begin, s.q_begin + s.q_len, w));
  LR_RETURN_IF_ERROR(embedding_forward(context_, plan.embedding, batch.ids.data(), tokens, w->inputs[0]));
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const BlockSaved& saved = w->blocks[l];
    LR_RETURN_IF_ERROR(project_qkv(plan.layers[l], w->inputs[l], tokens, 0, saved, w));
    const QkvRows rows_of(c, saved.qkv);
    float* const keys = cache->keys(l);
    float* const values = cache->values(l);
    for (const AttentionSequence& s : sequences) {
      for (size_t i = 0; i < s.q_len; ++i) {
        const auto* key = static_cast<const float*>(rows_of.k.at(s.q_begin + i, 0).data);
        const size_t at = (s.kv_begin + s.kv_len - s.q_len + i) * c.kv_width();
        std::memcpy(keys + at, key, c.kv_width() * sizeof(float));
        std::memcpy(values + at, key + c.kv_width(), c.kv_width() * sizeof(float));
      }
    }
    LR_RETURN_IF_ERROR(attention_forward(context_, attention_shape(c, plan.layers[l].window), sequences, rows_of.q,
                                         {keys, c.kv_width()}, {values, c.kv_width()}, saved.attention, nullptr));
    LR_RETURN_IF_ERROR(finish_block(plan.layers[l], w->inputs[l], tokens, 0, saved, w, w->inputs[l + 1]));
  }
  return {};
}

Status Decoder::logits(const ModelPlan& plan, std::span<const size_t> rows, Workspace* w, float* out) const {
  const DecoderConfig& c = config_;
  gather_rows(context_, w->inputs[plan.layers.size()], rows, c.hidden, w->head_in);
  LR_RETURN_IF_ERROR(rmsnorm_forward(context_, w->head_in, plan.norm, c.norm_eps, rows.size(), c.hidden, w->head_normed, w->inv_rms_head));
  const GemmTerm term{w->head_normed.data, c.hidden, 1, plan.head, true, c.hidden, w->type};
  return gemm(context_, rows.size(), term, out, c.vocab, c.vocab, false);
}

Status Decoder::loss(const ModelPlan& plan, const Batch& batch, std::span<const int32_t> targets, float grad_scale, uint64_t seed,
                     Workspace* w, Loss* loss) const {
  const DecoderConfig& c = config_;
  if (targets.size() != batch.ids.size()) {
    return error(Code::kShapeMismatch, "the batch has %zu ids and %zu targets", batch.ids.size(), targets.size());
  }
  std::vector<size_t> rows;
  std::vector<int32_t> supervised;
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] == kIgnored) continue;
    if (targets[t] < 0 || static_cast<size_t>(targets[t]) >= c.vocab) {
      return error(Code::kInvalidOption, "token %zu has target %d; expected -100 or an id below %zu", t, targets[t], c.vocab);
    }
    rows.push_back(t);
    supervised.push_back(targets[t]);
  }
  *loss = {};
  loss->tokens = rows.size();
  if (rows.empty()) return {};

  const bool training = w->keep.training;
  const size_t n = rows.size();
  gather_rows(context_, w->inputs[plan.layers.size()], rows, c.hidden, w->head_in);
  LR_RETURN_IF_ERROR(rmsnorm_forward(context_, w->head_in, plan.norm, c.norm_eps, n, c.hidden, w->head_normed, w->inv_rms_head));
  HeadLoss head;
  LR_RETURN_IF_ERROR(linear_cross_entropy(context_, w->head_normed, plan.head, supervised.data(), n, grad_scale,
                                          training ? w->d_head : nullptr, training ? plan.grad_head : Rows{}, &head));
  loss->nll_sum = head.nll_sum;
  loss->correct = head.correct;
  if (!training) return {};

  LR_RETURN_IF_ERROR(rmsnorm_backward(context_, w->head_in, plan.norm, w->inv_rms_head, w->d_head, n, c.hidden, w->d_head, false, plan.grad_norm));
  std::memset(w->d_stream, 0, targets.size() * c.hidden * sizeof(float));
  for (size_t i = 0; i < n; ++i) {
    std::memcpy(w->d_stream + rows[i] * c.hidden, w->d_head + i * c.hidden, c.hidden * sizeof(float));
  }
  if (w->d_stream_rounded != nullptr) round_rows(context_, {w->d_stream, c.hidden}, targets.size(), c.hidden, w->d_stream_rounded);
  return backward(plan, batch, seed, w);
}

Status Decoder::backward(const ModelPlan& plan, const Batch& batch, uint64_t seed, Workspace* w) const {
  const size_t tokens = batch.ids.size();
  const size_t layers = plan.layers.size();
  const size_t first = plan.lowest_trained_layer, every = w->keep.every;
  for (size_t l = layers; l-- > first;) {
    const LayerPlan& layer = plan.layers[l];
    const BlockSaved& saved = w->blocks[l];
    const Keep keep = w->keep.of(l - first);
    const bool ends_segment = keep == Keep::kInput && (l + 1 - first) % every == 0 && l + 1 < layers;
    if (l > first) w->fetch(l - 1);
    if (ends_segment && every > 1) LR_RETURN_IF_ERROR(run_blocks(plan, batch, l + 1 - every, l, seed, w));
    // The last block's rows are still those of the forward, and within a segment those of its second run.
    const bool kept = l + 1 == layers || (keep != Keep::kSelective && !ends_segment);
    LR_RETURN_IF_ERROR(recompute(layer, batch, w->inputs[l], seed, saved, kept, keep == Keep::kSelective, w));
    const bool needs_input_gradient = l > plan.lowest_trained_layer || plan.grad_embedding.data != nullptr;
    LR_RETURN_IF_ERROR(block_backward(layer, batch, w->inputs[l], seed, saved, needs_input_gradient, w));
    w->park(l);
  }
  if (plan.grad_embedding.data == nullptr) return {};
  return embedding_backward(context_, batch.ids.data(), tokens, w->d_stream, config_.vocab, config_.hidden, plan.grad_embedding);
}

// After recompute: d_stream holds the gradient of the block's output and becomes that of its input.
Status Decoder::block_backward(const LayerPlan& plan, const Batch& batch, const float* input, uint64_t seed, const BlockSaved& saved,
                               bool needs_input_gradient, Workspace* w) const {
  const DecoderConfig& c = config_;
  const size_t tokens = batch.ids.size();
  const ConstRows d_stream = w->d_stream_rows(c.hidden);
  const Rows d_normed{w->d_normed, c.hidden}, nothing;

  // MLP.
  LR_RETURN_IF_ERROR(lora_linear_backward(context_, linear_args(plan.down, tokens, w->hidden_ffn, saved.s_down, seed), {&d_stream, 1},
                                          w->d_ffn, false));
  const GateUpRows gate_up(c, saved.gate_up);  // their gradients take their place
  LR_RETURN_IF_ERROR(swiglu_backward(context_, gate_up.gate, gate_up.up, w->d_ffn, tokens, c.ffn, gate_up.gate, gate_up.up));
  LR_RETURN_IF_ERROR(rmsnorm_forward(context_, w->mid, plan.post_norm, c.norm_eps, tokens, c.hidden, w->normed, saved.inv_rms_mid));
  const ConstRows d_gate_up[] = {gate_up.gate, gate_up.up};
  LR_RETURN_IF_ERROR(lora_linear_backward(context_, linear_args(plan.gate_up, tokens, w->normed, saved.s_gate_up, seed), d_gate_up,
                                          d_normed, false));
  LR_RETURN_IF_ERROR(rmsnorm_backward(context_, w->mid, plan.post_norm, saved.inv_rms_mid, w->d_normed, tokens, c.hidden, w->d_stream,
                                      true, plan.grad_post_norm, w->d_stream_rounded));

  // Attention.
  const bool needs_qkv = needs_input_gradient || plan.qkv.trained || plan.grad_input_norm != nullptr;
  LR_RETURN_IF_ERROR(lora_linear_backward(context_, linear_args(plan.output, tokens, saved.attention, saved.s_output, seed),
                                          {&d_stream, 1}, needs_qkv ? w->d_attention : nothing, false));
  if (!needs_qkv) return {};
  const QkvRows rows(c, saved.qkv), d(c, w->d_qkv);
  const auto sequences = packed_sequences(batch.starts);
  LR_RETURN_IF_ERROR(attention_backward(context_, attention_shape(c, plan.window), sequences, rows.q, rows.k, rows.v, saved.attention,
                                        saved.lse, w->d_attention, d.q, d.k, d.v, w->attention_scratch));
  LR_RETURN_IF_ERROR(rotate(d.q, d.k, tokens, true, w));
  LR_RETURN_IF_ERROR(rmsnorm_forward(context_, input, plan.input_norm, c.norm_eps, tokens, c.hidden, w->normed, saved.inv_rms_in));
  const ConstRows d_qkv[] = {d.q, d.k, d.v};
  const bool needs_d_normed = needs_input_gradient || plan.grad_input_norm != nullptr;
  LR_RETURN_IF_ERROR(lora_linear_backward(context_, linear_args(plan.qkv, tokens, w->normed, saved.s_qkv, seed), d_qkv,
                                          needs_d_normed ? d_normed : nothing, false));
  if (!needs_d_normed) return {};
  return rmsnorm_backward(context_, input, plan.input_norm, saved.inv_rms_in, w->d_normed, tokens, c.hidden, w->d_stream, true,
                          plan.grad_input_norm, w->d_stream_rounded);
}

}  // namespace lowrank

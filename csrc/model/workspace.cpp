#include "model/workspace.h"

#include <algorithm>

#include "core/checked.h"
#include "ops/attention.h"

namespace lowrank {
namespace {

constexpr size_t kAlign = 128;  // two cache lines: adjacent buffers share none, prefetched pairs included

// Walks the layout; with a null base it only counts.
class Layout {
 public:
  explicit Layout(unsigned char* base) : base_(base) {}

  float* floats(const char* component, size_t rows, size_t columns) {
    return static_cast<float*>(bytes(component, rows * columns * sizeof(float)));
  }
  Rows rows(const char* component, size_t rows, size_t columns, DType type) {
    return {bytes(component, rows * row_bytes(type, columns)), columns, type};
  }
  void* bytes(const char* component, size_t count) {
    void* at = base_ == nullptr ? nullptr : base_ + total_;
    const size_t rounded = round_up(count, kAlign);
    total_ += rounded;
    components_[component] += rounded;
    return at;
  }
  size_t total() const { return total_; }
  const std::map<std::string, size_t>& components() const { return components_; }

 private:
  unsigned char* base_;
  size_t total_ = 0;
  std::map<std::string, size_t> components_;
};

constexpr const char* kSaved = "activations";

void lay_attention(Layout& layout, const DecoderConfig& c, DType type, size_t t, BlockSaved* b) {
  b->attention = layout.rows(kSaved, t, c.query_width(), type);
  b->lse = layout.floats(kSaved, t, c.heads);
}

BlockSaved lay_block(Layout& layout, const DecoderConfig& c, const LayerPlan& plan, DType type, size_t t) {
  BlockSaved b;
  b.qkv = layout.rows(kSaved, t, c.qkv_width(), type);
  lay_attention(layout, c, type, t, &b);
  b.inv_rms_in = layout.floats(kSaved, t, 1);
  b.inv_rms_mid = layout.floats(kSaved, t, 1);
  b.gate_up = layout.rows(kSaved, t, 2 * c.ffn, type);
  b.s_qkv = layout.floats(kSaved, t, plan.qkv.rank_sum);
  b.s_output = layout.floats(kSaved, t, plan.output.rank_sum);
  b.s_gate_up = layout.floats(kSaved, t, plan.gate_up.rank_sum);
  b.s_down = layout.floats(kSaved, t, plan.down.rank_sum);
  return b;
}

// A layer whose groups have the largest rank sum of all: what a shared block must hold.
LayerPlan widest(const ModelPlan& plan) {
  LayerPlan wide;
  for (const LayerPlan& layer : plan.layers) {
    wide.qkv.rank_sum = std::max(wide.qkv.rank_sum, layer.qkv.rank_sum);
    wide.output.rank_sum = std::max(wide.output.rank_sum, layer.output.rank_sum);
    wide.gate_up.rank_sum = std::max(wide.gate_up.rank_sum, layer.gate_up.rank_sum);
    wide.down.rank_sum = std::max(wide.down.rank_sum, layer.down.rank_sum);
  }
  return wide;
}

// The stream at the begin of each block and after the last one. Without a backward it is one; between the inputs that are kept,
// segments share theirs.
void lay_inputs(Layout& layout, const DecoderConfig& c, Retention keep, size_t layers, size_t t, Workspace* w) {
  const auto stream = [&] { return layout.floats(kSaved, t, c.hidden); };
  w->inputs.assign(layers + 1, nullptr);
  if (keep.mode == Mode::kForward) {
    w->inputs.assign(layers + 1, stream());
    return;
  }
  for (size_t l = 0; l <= layers; ++l) {
    const bool kept = keep.mode != Mode::kCheckpointed || l % keep.every == 0 || l < keep.every || l == layers;
    w->inputs[l] = kept ? stream() : w->inputs[l % keep.every];
  }
}

void lay_blocks(Layout& layout, const DecoderConfig& c, const ModelPlan& plan, Retention keep, DType type, size_t t, Workspace* w) {
  const size_t layers = plan.layers.size();
  w->blocks.clear();
  if (keep.mode == Mode::kTrain) {
    for (const LayerPlan& layer : plan.layers) w->blocks.push_back(lay_block(layout, c, layer, type, t));
    return;
  }
  const size_t own = keep.mode == Mode::kCheckpointed ? std::min(keep.every, layers) : std::min<size_t>(1, layers);
  for (size_t l = 0; l < own; ++l) w->blocks.push_back(lay_block(layout, c, widest(plan), type, t));
  for (size_t l = own; l < layers; ++l) w->blocks.push_back(w->blocks[l % own]);
  for (size_t l = own; l < layers && keep.mode == Mode::kSelective; ++l) lay_attention(layout, c, type, t, &w->blocks[l]);
}

void lay_out(Layout& layout, const DecoderConfig& c, const ModelPlan& plan, Retention keep, DType type, size_t t, Workspace* w) {
  lay_inputs(layout, c, keep, plan.layers.size(), t, w);
  lay_blocks(layout, c, plan, keep, type, t, w);
  constexpr const char* kScratch = "workspace";
  const auto rows_over = [&](void* memory, size_t columns) { return Rows{memory, columns, type}; };
  w->mid = layout.floats(kScratch, t, c.hidden);
  w->normed = layout.rows(kScratch, t, c.hidden, type);
  const size_t head_bytes = t * c.hidden * sizeof(float);
  w->hidden_ffn = rows_over(layout.bytes(kScratch, std::max(t * row_bytes(type, c.ffn), head_bytes)), c.ffn);
  w->cos = layout.floats(kScratch, t, c.rope.rotary_dim / 2);
  w->sin = layout.floats(kScratch, t, c.rope.rotary_dim / 2);
  w->inv_rms_head = layout.floats(kScratch, t, 1);
  // The head runs between the blocks' forward and backward, when their scratch is free.
  w->head_in = static_cast<float*>(w->hidden_ffn.data);
  w->head_normed = w->normed;
  if (keep.mode == Mode::kForward) return;
  w->d_stream = layout.floats(kScratch, t, c.hidden);
  w->d_stream_rounded =
      type == DType::kBF16 ? static_cast<uint16_t*>(layout.rows(kScratch, t, c.hidden, type).data) : nullptr;
  w->d_normed = static_cast<float*>(layout.bytes(kScratch, std::max(head_bytes, t * row_bytes(type, c.query_width()))));
  w->d_ffn = layout.rows(kScratch, t, std::max(c.ffn, c.qkv_width()), type);
  w->d_head = w->d_normed;
  // A block's backward is done with the MLP's buffers before attention's, and with d_normed between the two.
  w->d_attention = rows_over(w->d_normed, c.query_width());
  w->d_qkv = rows_over(w->d_ffn.data, c.qkv_width());
  w->d_ffn.stride = c.ffn;
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim, 1.0f};
  w->attention_scratch = layout.bytes(kScratch, attention_backward_scratch(shape, t, t, type));
}

}  // namespace

Status Workspace::prepare(const DecoderConfig& config, const ModelPlan& plan, Retention wanted, DType wanted_type, size_t wanted_tokens) {
  if (wanted_tokens <= tokens && wanted == keep && wanted_type == type && revision_ == plan.revision) return {};
  const size_t grown = std::max(wanted_tokens, tokens);
  Layout count(nullptr);
  lay_out(count, config, plan, wanted, wanted_type, grown, this);
  tokens = 0;
  revision_ = 0;
  if (count.total() > arena_.bytes()) LR_RETURN_IF_ERROR(arena_.allocate(count.total(), "activations and workspace"));
  Layout place(arena_.as<unsigned char>());
  lay_out(place, config, plan, wanted, wanted_type, grown, this);
  tokens = grown;
  keep = wanted;
  type = wanted_type;
  revision_ = plan.revision;
  return {};
}

std::map<std::string, size_t> Workspace::estimate(const DecoderConfig& config, const ModelPlan& plan, Retention keep, DType type,
                                                  size_t tokens) {
  Layout count(nullptr);
  Workspace unused;
  lay_out(count, config, plan, keep, type, tokens, &unused);
  return count.components();
}

}  // namespace lowrank

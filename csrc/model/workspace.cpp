#include "model/workspace.h"

#include <algorithm>

#include "core/checked.h"
#include "ops/attention.h"

namespace lowrank {
namespace {

constexpr size_t kAlign = 128;  // two cache lines: adjacent buffers share none, prefetched pairs included

constexpr size_t kParkedAlign = size_t{64} << 10;  // the largest page: an input is given back as a whole
constexpr size_t kParkedInMemory = 2;              // inputs: the one that a block reads and the one that it writes

// Walks the layout; with a null base it only counts.
class Layout {
 public:
  Layout(unsigned char* base, size_t align) : base_(base), align_(align) {}

  float* floats(const char* component, size_t rows, size_t columns) {
    return static_cast<float*>(bytes(component, rows * columns * sizeof(float)));
  }
  Rows rows(const char* component, size_t rows, size_t columns, DType type) {
    return {bytes(component, rows * row_bytes(type, columns)), columns, type};
  }
  void* bytes(const char* component, size_t count) {
    void* at = base_ == nullptr ? nullptr : base_ + total_;
    const size_t rounded = round_up(count, align_);
    total_ += rounded;
    components_[component] += rounded;
    return at;
  }
  size_t total() const { return total_; }
  const std::map<std::string, size_t>& components() const { return components_; }

 private:
  unsigned char* base_;
  const size_t align_;
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

// Blocks below the lowest that is trained have no backward.
size_t first_kept(const ModelPlan& plan) { return std::min(plan.lowest_trained_layer, plan.layers.size()); }

// The stream at the begin of each block and after the last one. Without a backward it is one; between the inputs that are kept,
// segments share theirs; up to the first that is kept there is one.
void lay_inputs(Layout& layout, Layout& parked, const DecoderConfig& c, const ModelPlan& plan, const Retention& keep, size_t t, Workspace* w) {
  const size_t layers = plan.layers.size(), first = first_kept(plan);
  const auto stream = [&] { return layout.floats(kSaved, t, c.hidden); };
  w->inputs.assign(layers + 1, nullptr);
  if (!keep.training) {
    w->inputs.assign(layers + 1, stream());
    return;
  }
  for (size_t l = first; l <= layers; ++l) {
    const size_t block = l - first;
    const bool kept = block % keep.every == 0 || block < keep.every || l == layers;
    if (!kept) {
      w->inputs[l] = w->inputs[first + block % keep.every];
    } else {
      w->inputs[l] = keep.parks() && l < layers ? parked.floats(kSaved, t, c.hidden) : stream();
    }
  }
  std::fill(w->inputs.begin(), w->inputs.begin() + static_cast<std::ptrdiff_t>(first), w->inputs[first]);
}

// Blocks that keep all have memory of their own; the others share that of one block, or within a segment of as many as it has.
void lay_blocks(Layout& layout, const DecoderConfig& c, const ModelPlan& plan, const Retention& keep, DType type, size_t t, Workspace* w) {
  const size_t layers = plan.layers.size(), first = first_kept(plan), count = keep.training ? layers - first : 0;
  w->blocks.assign(layers, {});
  if (layers == 0) return;
  const auto shared = [&] { return lay_block(layout, c, widest(plan), type, t); };
  std::vector<BlockSaved> segment;
  const bool all_keep_all = count == layers && keep.of(layers - 1) == Keep::kAll;
  for (size_t i = 0; i < std::min(std::max<size_t>(count, 1), keep.every) && !all_keep_all; ++i) segment.push_back(shared());
  bool shares_attention = count > 0 && keep.of(count - 1) != Keep::kSelective;  // taken by blocks that keep their input
  for (size_t l = 0; l < layers; ++l) {
    const Keep kept = l >= first && keep.training ? keep.of(l - first) : Keep::kInput;
    if (kept == Keep::kAll) {
      w->blocks[l] = lay_block(layout, c, plan.layers[l], type, t);
      continue;
    }
    w->blocks[l] = segment[l >= first && keep.training ? (l - first) % keep.every : 0];
    if (kept != Keep::kSelective) continue;
    // Where no other block uses it, the first keeps its attention in the shared memory.
    if (shares_attention) lay_attention(layout, c, type, t, &w->blocks[l]);
    shares_attention = true;
  }
}

void lay_out(Layout& layout, Layout& parked, const DecoderConfig& c, const ModelPlan& plan, const Retention& keep, DType type, size_t t,
             Workspace* w) {
  lay_inputs(layout, parked, c, plan, keep, t, w);
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
  if (!keep.training) return;
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

Status Workspace::prepare(const DecoderConfig& config, const ModelPlan& plan, const Retention& wanted, DType wanted_type, size_t wanted_tokens) {
  if (wanted_tokens <= tokens && wanted == keep && wanted_type == type && revision_ == plan.revision) return {};
  const size_t grown = std::max(wanted_tokens, tokens);
  Layout count(nullptr, kAlign), count_parked(nullptr, kParkedAlign);
  lay_out(count, count_parked, config, plan, wanted, wanted_type, grown, this);
  tokens = 0;
  revision_ = 0;
  if (count.total() > arena_.bytes()) LR_RETURN_IF_ERROR(arena_.allocate(count.total(), "activations and workspace"));
  if (count_parked.total() > parked_.bytes()) {
    LR_RETURN_IF_ERROR(parked_.allocate(count_parked.total(), 0, wanted.folder, "the inputs of blocks"));
  }
  Layout place(arena_.as<unsigned char>(), kAlign), place_parked(parked_.data(), kParkedAlign);
  lay_out(place, place_parked, config, plan, wanted, wanted_type, grown, this);
  tokens = grown;
  keep = wanted;
  type = wanted_type;
  parked_bytes_ = round_up(grown * config.hidden * sizeof(float), kParkedAlign);
  revision_ = plan.revision;
  return {};
}

void Workspace::park(size_t block) const {
  if (!keep.parks()) return;
  const size_t at = static_cast<size_t>(reinterpret_cast<unsigned char*>(inputs[block]) - parked_.data());
  parked_.release(at, at + parked_bytes_);
}

void Workspace::fetch(size_t block) const {
  if (!keep.parks()) return;
  const size_t at = static_cast<size_t>(reinterpret_cast<unsigned char*>(inputs[block]) - parked_.data());
  parked_.prefetch(at, at + parked_bytes_);
}

std::map<std::string, size_t> Workspace::estimate(const DecoderConfig& config, const ModelPlan& plan, const Retention& keep, DType type,
                                                  size_t tokens) {
  Layout count(nullptr, kAlign), parked(nullptr, kParkedAlign);
  Workspace unused;
  lay_out(count, parked, config, plan, keep, type, tokens, &unused);
  std::map<std::string, size_t> components = count.components();
  components[kSaved] += std::min(parked.total(), kParkedInMemory * round_up(tokens * config.hidden * sizeof(float), kParkedAlign));
  return components;
}

}  // namespace lowrank

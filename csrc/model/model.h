// A decoder's tensors: the base weights, bound in place in their storage type, and the adapters attached to them.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "model/config.h"
#include "ops/matrix.h"
#include "ops/quantize_4bit.h"

namespace lowrank {

// Values that can be trained. An adapter's are fp32.
struct Parameter {
  std::string name;
  std::vector<size_t> shape;             // [n] or [out, in]
  DType type = DType::kF32;              // or kBF16, of a matrix; a gradient has the same
  Buffer value;
  bool trainable = false;
  bool hidden = false;                   // a matrix of a block, or of an adapter on one: neither embedding nor head
  size_t id = 0;                         // unique within the model: sessions keep gradients by it

  float* data() const { return value.as<float>(); }  // where the type is kF32
  size_t elements() const { return shape.size() == 1 ? shape[0] : shape[0] * shape[1]; }
  size_t element_bytes() const { return dtype_info(type).block_bytes; }
  Matrix matrix() const;                 // a vector as one row
};

// Gives back the pages of a mapped file that hold these bytes.
using ReleasePages = std::function<void(const void* data, size_t bytes)>;

// A base tensor that the decoder needs, by its name in the safetensors files.
struct Slot {
  std::string name;
  std::vector<size_t> shape;             // [n] or [out, in]
  Matrix value;                          // 1-D tensors are fp32, one row
  std::shared_ptr<const void> owner;     // the mapped file or the memory that holds it; null: not bound yet
  ReleasePages release;                  // where `value` lies in a file
  std::shared_ptr<Parameter> parameter;  // that holds the value, where the model itself is trained (or was)
  // Of NF4 and FP4: how many weights share a magnitude, and the double quantisation of these or null. What is saved again needs them.
  size_t quantized_block = 0;
  std::shared_ptr<const NestedAbsmax> nested;

  size_t elements() const { return shape.size() == 1 ? shape[0] : shape[0] * shape[1]; }
};

struct LoraModule {
  size_t layer;
  Linear linear;
  size_t r;
  float scale, dropout;
  Parameter a, b;                        // [r, in], [out, r]
};

// An adapter's own copy of a base tensor, used in its place while the adapter is active.
struct Override {
  size_t slot;
  Parameter value;
};

struct Adapter {
  std::string name;
  std::vector<LoraModule> loras;
  std::vector<Override> overrides;
  bool active = false;
};

// A matrix as bitsandbytes' files hold it.
struct QuantizedWeight {
  DType type;                            // kNF4, kFP4, kInt8
  std::span<const uint8_t> codes;
  size_t block;                          // kNF4, kFP4: weights that share a magnitude; kInt8: one for each row
  std::span<const float> absmax;         // unless they are
  std::shared_ptr<const NestedAbsmax> nested;
};

struct LoraModuleConfig {
  std::string module;                    // "model.layers.0.self_attn.q_proj"
  size_t r;
  float scale, dropout;
};

class Model {
 public:
  // For planning, the model has no memory: slots are described, and parameters have their shapes alone. It is never ready.
  enum class Purpose { kUse, kPlanning };
  static Result<std::shared_ptr<Model>> create(DecoderConfig config, Purpose purpose = Purpose::kUse);

  const DecoderConfig& config() const { return config_; }
  std::span<const Slot> slots() const { return slots_; }

  // Uses `source` in place while `owner` lives; shapes must agree with the slot's. With unpermute_heads > 0 the rows of each
  // head lie in interleaved-RoPE order (llama GGUFs) and are copied into half-split order, still in their storage type. `release` is
  // for a source in a mapped file.
  Status bind(Context&, const std::string& slot, const Matrix& source, std::span<const size_t> shape,
              std::shared_ptr<const void> owner, size_t unpermute_heads, ReleasePages release = nullptr);
  // Copies fp32 values; matrices are stored as `type`: kF32, kBF16 or kF16.
  Status set_tensor(const std::string& slot, std::span<const float> values, DType type = DType::kF32);
  // Stores the tensor that a matrix's slot has as NF4, FP4 or INT8 instead, in memory of its own.
  Status quantize(Context&, const std::string& slot, const QuantizeOptions& options);
  // Stores bitsandbytes' bytes in a matrix's slot.
  Status set_quantized(Context&, const std::string& slot, const QuantizedWeight& weight);
  // Makes these base tensors (a tied head is the embedding) all that is trainable. Those that are not the model's own yet are copied
  // into parameters, matrices as `type` (kF32 or kBF16), a few MiB at a time, and their files' pages given back. From then on they
  // change by training and by what is written into them alone.
  Status train_base(Context&, std::span<const std::string> names, DType type);
  // Says in which type the slot's tensor would be stored, and whether in a mapped file, of a model for planning.
  Status describe(const std::string& slot, DType type, bool in_file);
  // Sets a parameter, an adapter's or the model's own, to a tensor of a file, whose pages `release` gives back.
  Status load(Context&, const std::string& name, const Matrix& source, std::span<const size_t> shape, const ReleasePages& release);
  // kInvalidConfig lists the slots that have no tensor.
  Status ready() const;

  // Adapters and overrides are made (which takes as long as there is memory to fill), then attached: others may read the model
  // meanwhile. A and B start at zero. kInvalidAdapter: name taken, module unknown or named twice, r or scale out of range.
  Result<std::shared_ptr<Adapter>> make_adapter(const std::string& name, std::span<const LoraModuleConfig> modules);
  Result<std::shared_ptr<Override>> make_override(Context&, const std::string& adapter, const std::string& slot);
  void attach(std::shared_ptr<Adapter> adapter);
  void attach(const std::string& adapter, Override override);
  Status remove_adapter(const std::string& name);
  Status set_active(std::span<const std::string> names);
  Status set_trainable(std::span<const std::string> names);

  std::span<const std::shared_ptr<Adapter>> adapters() const { return adapters_; }
  // Those of adapters; those and the model's own; and those that are trained: in force, and trainable.
  std::vector<Parameter*> adapter_parameters() const;
  std::vector<Parameter*> parameters() const;
  std::vector<Parameter*> trained() const;
  Parameter* find_parameter(const std::string& name) const;
  const Slot* find_slot(const std::string& name) const;

  // The slots' numbers.
  size_t embedding_slot() const { return 0; }
  size_t norm_slot() const { return 1; }
  size_t head_slot() const { return 2; }               // shares the embedding's value when tied
  size_t input_norm_slot(size_t layer) const { return layer_slots_[layer].input_norm; }
  size_t post_norm_slot(size_t layer) const { return layer_slots_[layer].post_norm; }
  size_t weight_slot(size_t layer, Linear linear) const { return layer_slots_[layer].weight[linear]; }
  size_t bias_slot(size_t layer, Linear linear) const { return layer_slots_[layer].bias[linear]; }   // kNone without
  static constexpr size_t kNone = static_cast<size_t>(-1);
  bool is_hidden(size_t slot) const { return slots_[slot].shape.size() == 2 && slot != embedding_slot() && slot != head_slot(); }

  // What the slot's value is now: the base tensor, or the override of the active adapter added last.
  Matrix value(size_t slot) const;
  // The override in force, or null.
  const Override* active_override(size_t slot) const;
  // What holds the slot's value and could be trained: an override, or the model's own (a tied head's is the embedding's). Or null.
  const Parameter* parameter_of(size_t slot) const;

  // What the model's products are computed in, wherever it runs.
  ComputeType compute() const { return compute_; }
  void set_compute(ComputeType compute) { compute_ = compute; }

  // Counts changes to what a forward would compute with; plans are remade when it moves.
  uint64_t revision() const { return revision_; }

 private:
  struct LayerSlots {
    size_t input_norm, post_norm;
    size_t weight[kLinears], bias[kLinears];
  };

  Model(DecoderConfig config, Purpose purpose);
  // A slot that may be given another tensor.
  Result<Slot*> find_replaceable(const std::string& name);
  Result<Slot*> find_matrix(const std::string& name);
  Status own(Context&, Slot* slot, DType type);
  // Its tensor is stored as `type` in memory of its own from now on, which fill(values) fills first.
  template <class Fill>
  Status replace(Slot* slot, DType type, const Fill& fill);
  size_t add_slot(std::string name, std::vector<size_t> shape);
  Adapter* find_adapter(const std::string& name) const;
  Status make_parameter(std::string name, std::vector<size_t> shape, DType type, Parameter* out);
  bool find_linear(const std::string& module, size_t* layer, Linear* linear) const;

  DecoderConfig config_;
  Purpose purpose_;
  std::vector<Slot> slots_;
  std::vector<LayerSlots> layer_slots_;
  std::unordered_map<std::string, size_t> slot_index_;
  std::vector<std::shared_ptr<Adapter>> adapters_;
  size_t next_parameter_id_ = 0;
  ComputeType compute_ = ComputeType::kF32;
  uint64_t revision_ = 1;
};

}  // namespace lowrank

#include "model/model.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/half.h"
#include "ops/dequantize.h"
#include "ops/quantize_int8.h"
#include "ops/round_rows.h"

namespace lowrank {
namespace {

// What is copied of a tensor before the pages that it was read from are given back.
constexpr size_t kCopiedFloats = size_t{1} << 20;

std::string shape_text(std::span<const size_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Row `row` of a half-split matrix lies at this row of an interleaved one: within a head of `d` rows, pair p has its
// first half at 2p and its second at 2p + 1.
size_t interleaved_row(size_t row, size_t head_dim) {
  const size_t head = row / head_dim, within = row % head_dim, half = head_dim / 2;
  return head * head_dim + (within < half ? 2 * within : 2 * (within - half) + 1);
}

// Copies a matrix as kF32 or kBF16, a few MiB at a time, and gives back what was read.
Status copy_values(Context& context, const Matrix& from, const ReleasePages& release, DType type, unsigned char* to) {
  const size_t stripe = std::max<size_t>(1, kCopiedFloats / from.cols), to_stride = row_bytes(type, from.cols);
  Buffer wide;
  for (size_t row = 0; row < from.rows; row += stripe, to += stripe * to_stride) {
    Matrix rows = from;
    rows.data = from.row(row);
    rows.rows = std::min(stripe, from.rows - row);
    if (from.type == type) {
      for (size_t i = 0; i < rows.rows; ++i) std::memcpy(to + i * to_stride, rows.row(i), to_stride);
    } else if (type == DType::kF32) {
      LR_RETURN_IF_ERROR(dequantize(context, rows, reinterpret_cast<float*>(to)));
    } else {
      LR_RETURN_IF_ERROR(wide.reserve(rows.rows * rows.cols * sizeof(float), "a weight's copy"));
      LR_RETURN_IF_ERROR(dequantize(context, rows, wide.as<float>()));
      round_rows(context, {wide.as<float>(), rows.cols}, rows.rows, rows.cols, reinterpret_cast<uint16_t*>(to));
    }
    if (release) release(rows.data, rows.rows * rows.stride);
  }
  return {};
}

}  // namespace

Matrix Parameter::matrix() const {
  return shape.size() == 1 ? lowrank::matrix(value.as<>(), type, 1, shape[0]) : lowrank::matrix(value.as<>(), type, shape[0], shape[1]);
}

Model::Model(DecoderConfig config, Purpose purpose) : config_(std::move(config)), purpose_(purpose) {}

Result<std::shared_ptr<Model>> Model::create(DecoderConfig config, Purpose purpose) {
  LR_RETURN_IF_ERROR(validate(config));
  std::shared_ptr<Model> model(new Model(std::move(config), purpose));
  const DecoderConfig& c = model->config_;
  model->add_slot("model.embed_tokens.weight", {c.vocab, c.hidden});
  model->add_slot("model.norm.weight", {c.hidden});
  model->add_slot("lm_head.weight", {c.vocab, c.hidden});
  for (size_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    LayerSlots slots;
    slots.input_norm = model->add_slot(prefix + "input_layernorm.weight", {c.hidden});
    slots.post_norm = model->add_slot(prefix + "post_attention_layernorm.weight", {c.hidden});
    for (size_t i = 0; i < kLinears; ++i) {
      const LinearShape shape = linear_shape(c, static_cast<Linear>(i));
      slots.weight[i] = model->add_slot(prefix + shape.name + ".weight", {shape.out, shape.in});
      slots.bias[i] = shape.bias ? model->add_slot(prefix + shape.name + ".bias", {shape.out}) : kNone;
    }
    model->layer_slots_.push_back(slots);
  }
  return model;
}

size_t Model::add_slot(std::string name, std::vector<size_t> shape) {
  slot_index_[name] = slots_.size();
  Slot slot;
  slot.name = std::move(name);
  slot.shape = std::move(shape);
  slots_.push_back(std::move(slot));
  return slots_.size() - 1;
}

const Slot* Model::find_slot(const std::string& name) const {
  const auto found = slot_index_.find(name);
  return found == slot_index_.end() ? nullptr : &slots_[found->second];
}

Status Model::bind(Context& context, const std::string& name, const Matrix& source, std::span<const size_t> shape,
                   std::shared_ptr<const void> owner, size_t unpermute_heads, ReleasePages release) {
  const Result<Slot*> found = find_replaceable(name);
  if (!found.ok()) return found.status();
  Slot* const slot = found.value();
  if (!std::equal(shape.begin(), shape.end(), slot->shape.begin(), slot->shape.end())) {
    return error(Code::kShapeMismatch, "tensor %s has shape %s; expected %s", name.c_str(), shape_text(shape).c_str(),
                 shape_text(slot->shape).c_str());
  }
  if (!dtype_info(source.type).is_weight) {
    return error(Code::kUnsupportedQuantization, "tensor %s is stored as %s, which cannot be computed with", name.c_str(),
                 dtype_info(source.type).name);
  }
  ++revision_;
  slot->release = nullptr;
  if (slot->shape.size() == 1) {  // norms and biases: few values, used as fp32
    auto values = std::make_shared<Buffer>();
    LR_RETURN_IF_ERROR(values->allocate(slot->elements() * sizeof(float), name.c_str()));
    LR_RETURN_IF_ERROR(dequantize(context, source, values->as<float>()));
    if (unpermute_heads > 0) {
      const size_t head_dim = slot->elements() / unpermute_heads;
      std::vector<float> interleaved(values->as<float>(), values->as<float>() + slot->elements());
      for (size_t i = 0; i < interleaved.size(); ++i) values->as<float>()[i] = interleaved[interleaved_row(i, head_dim)];
    }
    slot->value = matrix(values->as<float>(), DType::kF32, 1, slot->elements());
    slot->owner = std::move(values);
    return {};
  }
  slot->value = source;
  slot->owner = std::move(owner);
  slot->release = std::move(release);
  if (unpermute_heads == 0) return {};

  if (source.rows % unpermute_heads != 0 || source.rows / unpermute_heads % 2 != 0) {
    return error(Code::kShapeMismatch, "tensor %s has %zu rows, which are not %zu heads of even size", name.c_str(), source.rows, unpermute_heads);
  }
  const size_t bytes = row_bytes(source.type, source.cols), head_dim = source.rows / unpermute_heads;
  auto rows = std::make_shared<Buffer>();
  LR_RETURN_IF_ERROR(rows->allocate(source.rows * bytes, name.c_str()));
  for (size_t row = 0; row < source.rows; ++row) {
    std::memcpy(rows->as<unsigned char>() + row * bytes, source.row(interleaved_row(row, head_dim)), bytes);
  }
  if (slot->release) slot->release(source.data, source.rows * source.stride);
  slot->value = matrix(rows->as<>(), source.type, source.rows, source.cols);
  slot->owner = std::move(rows);
  slot->release = nullptr;
  return {};
}

Status Model::set_tensor(const std::string& name, std::span<const float> values, DType type) {
  const Result<Slot*> found = find_replaceable(name);
  if (!found.ok()) return found.status();
  Slot* const slot = found.value();
  if (values.size() != slot->elements()) {
    return error(Code::kShapeMismatch, "tensor %s got %zu values; expected %zu", name.c_str(), values.size(), slot->elements());
  }
  const bool vector = slot->shape.size() == 1;
  if (vector) type = DType::kF32;
  if (type != DType::kF32 && type != DType::kBF16 && type != DType::kF16) {
    return error(Code::kInvalidOption, "tensor %s cannot be stored as %s; expected F32, BF16 or F16", name.c_str(), dtype_info(type).name);
  }
  auto copy = std::make_shared<Buffer>();
  LR_RETURN_IF_ERROR(copy->allocate(values.size() * (type == DType::kF32 ? sizeof(float) : sizeof(uint16_t)), name.c_str()));
  if (type == DType::kF32) {
    std::memcpy(copy->as<>(), values.data(), values.size_bytes());
  } else {
    std::transform(values.begin(), values.end(), copy->as<uint16_t>(), type == DType::kBF16 ? f32_to_bf16 : f32_to_f16);
  }
  slot->value = matrix(copy->as<>(), type, vector ? 1 : slot->shape[0], vector ? slot->shape[0] : slot->shape[1]);
  slot->owner = std::move(copy);
  slot->release = nullptr;
  ++revision_;
  return {};
}

Result<Slot*> Model::find_replaceable(const std::string& name) {
  const auto found = slot_index_.find(name);
  if (found == slot_index_.end()) return error(Code::kInvalidConfig, "this model has no tensor named %s", name.c_str());
  Slot* const slot = &slots_[found->second];
  if (slot->parameter == nullptr) return slot;
  return error(Code::kInvalidOption, "tensor %s is trained, and cannot be given another type or file any more", name.c_str());
}

Result<Slot*> Model::find_matrix(const std::string& name) {
  const Result<Slot*> found = find_replaceable(name);
  if (!found.ok() || found.value()->shape.size() == 2) return found;
  return error(Code::kInvalidOption, "tensor %s is a vector, which is never quantised", name.c_str());
}

template <class Fill>
Status Model::replace(Slot* slot, DType type, const Fill& fill) {
  const Matrix shape = matrix(nullptr, type, slot->shape[0], slot->shape[1]);
  auto values = std::make_shared<Buffer>();
  LR_RETURN_IF_ERROR(values->allocate(shape.rows * shape.stride, slot->name.c_str()));
  const Status filled = fill(shape, values->as<>());
  if (!filled.ok()) return error(filled.code(), "tensor %s: %s", slot->name.c_str(), filled.message().c_str());
  slot->value = matrix(values->as<>(), type, shape.rows, shape.cols);
  slot->owner = std::move(values);
  slot->release = nullptr;
  ++revision_;
  return {};
}

Status Model::own(Context& context, Slot* slot, DType type) {
  if (slot->shape.size() == 1) type = DType::kF32;
  if (slot->parameter != nullptr && slot->parameter->type == type) return {};
  Parameter copy;
  LR_RETURN_IF_ERROR(make_parameter(slot->name, slot->shape, type, &copy));
  copy.hidden = is_hidden(static_cast<size_t>(slot - slots_.data()));
  if (purpose_ == Purpose::kUse) LR_RETURN_IF_ERROR(copy_values(context, slot->value, slot->release, type, copy.value.as<unsigned char>()));
  if (slot->parameter == nullptr) {
    slot->parameter = std::make_shared<Parameter>(std::move(copy));
  } else {  // sessions know it
    slot->parameter->type = type;
    slot->parameter->value = std::move(copy.value);
  }
  slot->value = slot->parameter->matrix();
  slot->owner = slot->parameter;
  slot->release = nullptr;
  ++revision_;
  return {};
}

Status Model::load(Context& context, const std::string& name, const Matrix& source, std::span<const size_t> shape, const ReleasePages& release) {
  const Parameter* const parameter = find_parameter(name);
  if (parameter == nullptr) return error(Code::kInvalidOption, "there is no parameter named %s that could be set", name.c_str());
  if (!std::ranges::equal(shape, parameter->shape)) {
    return error(Code::kShapeMismatch, "parameter %s was to be set from a tensor of another shape", name.c_str());
  }
  return copy_values(context, source, release, parameter->type, parameter->value.as<unsigned char>());
}

Status Model::train_base(Context& context, std::span<const std::string> names, DType type) {
  if (type != DType::kF32 && type != DType::kBF16) {
    return error(Code::kInvalidOption, "weights cannot be trained as %s; expected F32 or BF16", dtype_info(type).name);
  }
  std::vector<Slot*> chosen;
  for (const std::string& name : names) {
    const auto found = slot_index_.find(name);
    if (found == slot_index_.end()) return error(Code::kInvalidOption, "this model has no tensor named %s", name.c_str());
    chosen.push_back(&slots_[found->second]);
    if (chosen.back()->value.rows > 0) continue;
    return found->second == head_slot() && config_.tied_head
               ? error(Code::kInvalidOption, "%s shares its values with %s; name that instead", name.c_str(), slots_[embedding_slot()].name.c_str())
               : error(Code::kInvalidConfig, "tensor %s has no values yet", name.c_str());
  }
  for (Slot* slot : chosen) LR_RETURN_IF_ERROR(own(context, slot, type));
  for (Parameter* parameter : parameters()) parameter->trainable = false;
  for (Slot* slot : chosen) slot->parameter->trainable = true;
  ++revision_;
  return {};
}

Status Model::quantize(Context& context, const std::string& name, const QuantizeOptions& options) {
  const Result<Slot*> found = find_matrix(name);
  if (!found.ok()) return found.status();
  Slot* const slot = found.value();
  if (slot->owner == nullptr) return error(Code::kInvalidConfig, "tensor %s has no values yet", name.c_str());
  auto nested = std::make_shared<NestedAbsmax>();
  QuantizeOptions streaming = options;
  streaming.used = slot->release;
  LR_RETURN_IF_ERROR(replace(slot, options.type, [&](const Matrix&, void* out) {
    return options.type == DType::kInt8 ? quantize_int8_weight(context, slot->value, options.source, slot->release, out)
                                        : quantize_weight(context, slot->value, streaming, out, nested.get());
  }));
  slot->quantized_block = options.block;
  slot->nested = options.nested && is_4bit(options.type) ? std::move(nested) : nullptr;
  return {};
}

Status Model::set_quantized(Context& context, const std::string& name, const QuantizedWeight& weight) {
  const Result<Slot*> found = find_matrix(name);
  if (!found.ok()) return found.status();
  Slot* const slot = found.value();
  const bool bytes = weight.type == DType::kInt8;
  if (!bytes && !is_4bit(weight.type)) {
    return error(Code::kUnsupportedQuantization, "tensor %s: type %s; expected NF4, FP4 or INT8", name.c_str(), dtype_info(weight.type).name);
  }
  const size_t weights = slot->elements(), block = bytes ? slot->shape[1] : weight.block;
  const size_t codes = bytes ? weights : ceil_div(weights, 2), magnitudes = block == 0 ? 0 : ceil_div(weights, block);
  const size_t given = weight.nested == nullptr ? weight.absmax.size() : weight.nested->codes.size();
  if (weight.codes.size() != codes || given != magnitudes || (block == 0 && weights > 0)) {
    return error(Code::kShapeMismatch, "tensor %s got %zu bytes of codes and %zu magnitudes; expected those of %zu weights in blocks of %zu",
                 name.c_str(), weight.codes.size(), given, weights, block);
  }
  std::vector<float> unnested(weight.nested == nullptr ? 0 : given);
  if (weight.nested != nullptr) LR_RETURN_IF_ERROR(unnest_absmax(context, *weight.nested, unnested.data()));
  const float* const absmax = weight.nested == nullptr ? weight.absmax.data() : unnested.data();
  LR_RETURN_IF_ERROR(replace(slot, weight.type, [&](const Matrix& shape, void* out) {
    return bytes ? store_int8(context, reinterpret_cast<const int8_t*>(weight.codes.data()), absmax, shape, out)
                 : store_4bit(context, weight.codes.data(), absmax, block, shape, out);
  }));
  slot->quantized_block = block;
  slot->nested = weight.nested;
  return {};
}

Status Model::describe(const std::string& name, DType type, bool in_file) {
  Slot* slot = const_cast<Slot*>(find_slot(name));
  if (slot == nullptr) return error(Code::kInvalidConfig, "this model has no tensor named %s", name.c_str());
  if (purpose_ != Purpose::kPlanning) return error(Code::kInvalidOption, "the tensors of a model that is in use are not described");
  ++revision_;
  if (slot->shape.size() == 1) {
    slot->value = matrix(nullptr, DType::kF32, 1, slot->elements());
    return {};
  }
  const DTypeInfo& info = dtype_info(type);
  if (!info.is_weight || slot->shape[1] % info.block_elements != 0) {
    return error(Code::kUnsupportedQuantization, "tensor %s has rows of %zu weights, which cannot be stored as %s (blocks of %zu)", name.c_str(),
                 slot->shape[1], info.name, info.block_elements);
  }
  slot->value = matrix(nullptr, type, slot->shape[0], slot->shape[1]);
  slot->release = nullptr;
  if (in_file) slot->release = [](const void*, size_t) {};
  return {};
}

Status Model::ready() const {
  if (purpose_ == Purpose::kPlanning) return error(Code::kInvalidOption, "the model is for planning only: it has no memory");
  std::string missing;
  size_t count = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].owner != nullptr || (i == head_slot() && config_.tied_head)) continue;
    if (++count <= 8) missing += (missing.empty() ? "" : ", ") + slots_[i].name;
  }
  if (count == 0) return {};
  return error(Code::kInvalidConfig, "%zu tensors of the model are missing: %s%s", count, missing.c_str(), count > 8 ? ", …" : "");
}

}  // namespace lowrank

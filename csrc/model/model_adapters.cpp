// What is attached to a model's base tensors: adapters with their overrides, and which parameters are trained.
#include <algorithm>
#include <cmath>

#include "model/model.h"
#include "ops/dequantize.h"

namespace lowrank {

bool Model::find_linear(const std::string& module, size_t* layer, Linear* linear) const {
  const auto found = slot_index_.find(module + ".weight");
  if (found == slot_index_.end()) return false;
  for (size_t l = 0; l < layer_slots_.size(); ++l) {
    for (size_t i = 0; i < kLinears; ++i) {
      if (layer_slots_[l].weight[i] != found->second) continue;
      *layer = l;
      *linear = static_cast<Linear>(i);
      return true;
    }
  }
  return false;
}

Adapter* Model::find_adapter(const std::string& name) const {
  for (const auto& adapter : adapters_) {
    if (adapter->name == name) return adapter.get();
  }
  return nullptr;
}

Status Model::make_parameter(std::string name, std::vector<size_t> shape, DType type, Parameter* out) {
  out->name = std::move(name);
  out->shape = std::move(shape);
  out->type = type;
  out->id = next_parameter_id_++;
  if (purpose_ == Purpose::kPlanning) return {};
  return out->value.allocate(out->elements() * out->element_bytes(), out->name.c_str());
}

Result<std::shared_ptr<Adapter>> Model::make_adapter(const std::string& name, std::span<const LoraModuleConfig> modules) {
  if (find_adapter(name) != nullptr) return error(Code::kInvalidAdapter, "an adapter named '%s' is there already", name.c_str());
  auto adapter = std::make_shared<Adapter>();
  adapter->name = name;
  for (const LoraModuleConfig& wanted : modules) {
    LoraModule lora;
    if (!find_linear(wanted.module, &lora.layer, &lora.linear)) {
      return error(Code::kAdapterMismatch, "module %s is not a linear layer of this model's blocks", wanted.module.c_str());
    }
    for (const LoraModule& other : adapter->loras) {
      if (other.layer == lora.layer && other.linear == lora.linear) {
        return error(Code::kInvalidAdapter, "module %s is named twice", wanted.module.c_str());
      }
    }
    const LinearShape shape = linear_shape(config_, lora.linear);
    if (wanted.r < 1 || wanted.r > size_t{1} << 20) {
      return error(Code::kInvalidAdapter, "module %s has r = %zu; expected 1 to 1048576", wanted.module.c_str(), wanted.r);
    }
    if (!std::isfinite(wanted.scale) || !(wanted.dropout >= 0 && wanted.dropout < 1)) {
      return error(Code::kInvalidAdapter, "module %s has scale %g and dropout %g; expected a finite scale and a dropout in [0, 1)",
                   wanted.module.c_str(), static_cast<double>(wanted.scale), static_cast<double>(wanted.dropout));
    }
    lora.r = wanted.r;
    lora.scale = wanted.scale;
    lora.dropout = wanted.dropout;
    LR_RETURN_IF_ERROR(make_parameter(wanted.module + ".lora_A." + name, {wanted.r, shape.in}, DType::kF32, &lora.a));
    LR_RETURN_IF_ERROR(make_parameter(wanted.module + ".lora_B." + name, {shape.out, wanted.r}, DType::kF32, &lora.b));
    lora.a.hidden = lora.b.hidden = true;
    adapter->loras.push_back(std::move(lora));
  }
  return adapter;
}

void Model::attach(std::shared_ptr<Adapter> adapter) {
  adapters_.push_back(std::move(adapter));
  ++revision_;
}

Result<std::shared_ptr<Override>> Model::make_override(Context& context, const std::string& adapter_name, const std::string& slot_name) {
  const Adapter* adapter = find_adapter(adapter_name);
  if (adapter == nullptr) return error(Code::kInvalidAdapter, "there is no adapter named '%s'", adapter_name.c_str());
  const Slot* slot = find_slot(slot_name);
  if (slot == nullptr) return error(Code::kAdapterMismatch, "this model has no tensor named %s", slot_name.c_str());
  const size_t index = static_cast<size_t>(slot - slots_.data());
  for (const Override& other : adapter->overrides) {
    if (other.slot == index) return error(Code::kInvalidAdapter, "tensor %s is named twice", slot_name.c_str());
  }
  const Matrix base = index == head_slot() && config_.tied_head ? slots_[embedding_slot()].value : slot->value;
  if (base.data == nullptr && purpose_ == Purpose::kUse) return error(Code::kInvalidConfig, "tensor %s has no values yet", slot_name.c_str());
  auto override = std::make_shared<Override>(Override{index, {}});
  LR_RETURN_IF_ERROR(make_parameter(slot_name + "." + adapter_name, slot->shape, DType::kF32, &override->value));
  override->value.hidden = is_hidden(index);
  if (purpose_ == Purpose::kUse) LR_RETURN_IF_ERROR(dequantize(context, base, override->value.data()));
  return override;
}

void Model::attach(const std::string& adapter, Override override) {
  find_adapter(adapter)->overrides.push_back(std::move(override));
  ++revision_;
}

Status Model::remove_adapter(const std::string& name) {
  const auto found = std::find_if(adapters_.begin(), adapters_.end(), [&](const auto& a) { return a->name == name; });
  if (found == adapters_.end()) return error(Code::kInvalidAdapter, "there is no adapter named '%s'", name.c_str());
  adapters_.erase(found);
  ++revision_;
  return {};
}

Status Model::set_active(std::span<const std::string> names) {
  for (const std::string& name : names) {
    if (find_adapter(name) == nullptr) return error(Code::kInvalidAdapter, "there is no adapter named '%s'", name.c_str());
  }
  for (const auto& adapter : adapters_) {
    adapter->active = std::find(names.begin(), names.end(), adapter->name) != names.end();
  }
  ++revision_;
  return {};
}

Status Model::set_trainable(std::span<const std::string> names) {
  std::vector<Parameter*> chosen;
  for (const std::string& name : names) {
    Parameter* parameter = find_parameter(name);
    if (parameter == nullptr) return error(Code::kInvalidAdapter, "no adapter has a parameter named %s, and the model itself is not trained there", name.c_str());
    chosen.push_back(parameter);
  }
  for (Parameter* parameter : parameters()) parameter->trainable = false;
  for (Parameter* parameter : chosen) parameter->trainable = true;
  ++revision_;
  return {};
}

std::vector<Parameter*> Model::adapter_parameters() const {
  std::vector<Parameter*> all;
  for (const auto& adapter : adapters_) {
    for (LoraModule& lora : adapter->loras) {
      all.push_back(&lora.a);
      all.push_back(&lora.b);
    }
    for (Override& override : adapter->overrides) all.push_back(&override.value);
  }
  return all;
}

std::vector<Parameter*> Model::parameters() const {
  std::vector<Parameter*> all;
  for (const Slot& slot : slots_) {
    if (slot.parameter != nullptr) all.push_back(slot.parameter.get());
  }
  for (Parameter* parameter : adapter_parameters()) all.push_back(parameter);
  return all;
}

std::vector<Parameter*> Model::trained() const {
  std::vector<Parameter*> result;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    Parameter* const own = slots_[slot].parameter.get();
    const bool in_force = active_override(slot) == nullptr ||
                          (slot == embedding_slot() && parameter_of(head_slot()) == own);  // tied
    if (own != nullptr && own->trainable && in_force) result.push_back(own);
  }
  for (const auto& adapter : adapters_) {
    if (!adapter->active) continue;
    for (LoraModule& lora : adapter->loras) {
      if (lora.a.trainable) result.push_back(&lora.a);
      if (lora.b.trainable) result.push_back(&lora.b);
    }
    for (Override& override : adapter->overrides) {
      if (override.value.trainable && active_override(override.slot) == &override) result.push_back(&override.value);
    }
  }
  return result;
}

Parameter* Model::find_parameter(const std::string& name) const {
  for (Parameter* parameter : parameters()) {
    if (parameter->name == name) return parameter;
  }
  return nullptr;
}

const Override* Model::active_override(size_t slot) const {
  for (auto adapter = adapters_.rbegin(); adapter != adapters_.rend(); ++adapter) {
    if (!(*adapter)->active) continue;
    for (const Override& override : (*adapter)->overrides) {
      if (override.slot == slot) return &override;
    }
  }
  return nullptr;
}

const Parameter* Model::parameter_of(size_t slot) const {
  if (const Override* override = active_override(slot)) return &override->value;
  if (slot == head_slot() && slots_[slot].owner == nullptr) slot = embedding_slot();
  return slots_[slot].parameter.get();
}

Matrix Model::value(size_t slot) const {
  if (const Override* override = active_override(slot)) return override->value.matrix();
  if (slot == head_slot() && config_.tied_head && slots_[slot].owner == nullptr) return slots_[embedding_slot()].value;
  return slots_[slot].value;
}

}  // namespace lowrank

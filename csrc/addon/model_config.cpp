#include "addon/model_config.h"

#include <string>

#include "addon/bridge.h"

namespace lowrank::addon {
namespace {

// Reads the fields of one object; after the first that is wrong an exception is pending and all else is skipped.
class Reader {
 public:
  Reader(Napi::Object object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  bool ok() const { return ok_; }
  void size(const char* key, size_t* out) {
    if (ok_) ok_ = get_size(object_.Get(key), (prefix_ + key).c_str(), out);
  }
  void number(const char* key, double* out) {
    if (ok_) ok_ = get_double(object_.Get(key), (prefix_ + key).c_str(), out);
  }
  void boolean(const char* key, bool* out) {
    if (ok_) ok_ = get_bool(object_.Get(key), (prefix_ + key).c_str(), out);
  }
  // The optional ones keep *out as it is where the key is not there.
  void optional_size(const char* key, size_t* out) { if (has(key)) size(key, out); }
  void optional_number(const char* key, double* out) { if (has(key)) number(key, out); }
  void optional_boolean(const char* key, bool* out) { if (has(key)) boolean(key, out); }

 private:
  bool has(const char* key) { return ok_ && !object_.Get(key).IsUndefined(); }

  Napi::Object object_;
  std::string prefix_;
  bool ok_ = true;
};

bool get_rope(const Napi::Value& value, RopeConfig* out) {
  if (!value.IsObject()) {
    throw_status(value.Env(), error(Code::kInvalidConfig, "rope is not an object"));
    return false;
  }
  const Napi::Object object = value.As<Napi::Object>();
  std::string kind;
  if (!get_string(object.Get("kind"), "rope.kind", &kind)) return false;
  if (kind == "default") out->kind = RopeKind::kDefault;
  else if (kind == "linear") out->kind = RopeKind::kLinear;
  else if (kind == "dynamic") out->kind = RopeKind::kDynamic;
  else if (kind == "yarn") out->kind = RopeKind::kYarn;
  else if (kind == "llama3") out->kind = RopeKind::kLlama3;
  else {
    throw_status(value.Env(), error(Code::kUnsupportedModel, "rope kind '%s'; supported are default, linear, dynamic, yarn, llama3", kind.c_str()));
    return false;
  }
  Reader reader(object, "rope.");
  reader.number("theta", &out->theta);
  reader.size("rotaryDim", &out->rotary_dim);
  reader.size("maxPosition", &out->max_position);
  reader.optional_number("factor", &out->factor);
  reader.optional_size("originalMaxPosition", &out->original_max_position);
  reader.optional_number("lowFreqFactor", &out->low_freq_factor);
  reader.optional_number("highFreqFactor", &out->high_freq_factor);
  reader.optional_number("betaFast", &out->beta_fast);
  reader.optional_number("betaSlow", &out->beta_slow);
  reader.optional_number("attentionFactor", &out->attention_factor);
  reader.optional_number("mscale", &out->mscale);
  reader.optional_number("mscaleAllDim", &out->mscale_all_dim);
  reader.optional_boolean("truncate", &out->truncate);
  return reader.ok();
}

}  // namespace

bool get_config(const Napi::Value& value, DecoderConfig* out) {
  if (!value.IsObject()) {
    throw_status(value.Env(), error(Code::kInvalidConfig, "the model's configuration is not an object"));
    return false;
  }
  const Napi::Object object = value.As<Napi::Object>();
  double norm_eps = 0;
  Reader reader(object, "");
  reader.size("vocabSize", &out->vocab);
  reader.size("hiddenSize", &out->hidden);
  reader.size("intermediateSize", &out->ffn);
  reader.size("layers", &out->layers);
  reader.size("heads", &out->heads);
  reader.size("kvHeads", &out->kv_heads);
  reader.size("headDim", &out->head_dim);
  reader.number("normEps", &norm_eps);
  reader.boolean("tiedHead", &out->tied_head);
  reader.boolean("qkvBias", &out->qkv_bias);
  reader.boolean("outputBias", &out->output_bias);
  reader.boolean("mlpBias", &out->mlp_bias);
  if (!reader.ok() || !get_rope(object.Get("rope"), &out->rope)) return false;
  out->norm_eps = static_cast<float>(norm_eps);
  const Napi::Value windows = object.Get("windows");
  if (!windows.IsArray()) {
    throw_status(value.Env(), error(Code::kInvalidConfig, "windows is not an array"));
    return false;
  }
  const Napi::Array list = windows.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    size_t window = 0;
    if (!get_size(list.Get(i), "windows[]", &window)) return false;
    out->windows.push_back(window);
  }
  return true;
}

}  // namespace lowrank::addon

// The optimizers' updates and the gradients' norm over typed arrays.
#include <cmath>
#include <span>
#include <vector>

#include "addon/kernel_call.h"
#include "ops/adamw.h"
#include "ops/code_map.h"
#include "ops/coded_update.h"
#include "ops/muon.h"

namespace lowrank::addon {
namespace {

// [[gradient, length], …], result: [norm]
Status run_grad_norm(Context& context, Arguments& in) {
  std::vector<GradientSpan> gradients;
  bool ok = true;
  for (Arguments& item : in.lists()) {
    const float* const data = item.floats();
    gradients.emplace_back(data, item.size(), DType::kF32);
    ok = ok && item.ok();
  }
  double* const result = in.doubles();
  if (!ok || !in.ok()) return {};
  LR_RETURN_IF_ERROR(grad_norm_squared(context, gradients, result));
  *result = std::sqrt(*result);
  return {};
}

// learningRate, beta1, beta2, epsilon, weightDecay, step, gradScale
AdamWConfig read_config(Arguments& in) {
  AdamWConfig config{};
  config.lr = in.number();
  config.beta1 = in.number();
  config.beta2 = in.number();
  config.eps = in.number();
  config.weight_decay = in.number();
  config.step = in.size();
  config.grad_scale = in.number32();
  return config;
}

// …, n, g, p, m, v
Status run_adamw(Context& context, Arguments& in) {
  const AdamWConfig config = read_config(in);
  const size_t n = in.size();
  const float* const g = in.floats();
  float *const p = in.floats(), *const m = in.floats(), *const v = in.floats();
  if (!in.ok()) return {};
  return adamw_update(context, config, n, g, p, m, v);
}

// …, n, g, p, codes, absmax, map [, codes, absmax, map]
Status run_coded_update(Context& context, Arguments& in, bool two_states) {
  const AdamWConfig config = read_config(in);
  const size_t n = in.size();
  const float* const g = in.floats();
  float* const p = in.floats();
  const size_t count = two_states ? 2 : 1;
  CodedState states[2];
  std::vector<CodeMap> maps(count);
  for (size_t i = 0; i < count; ++i) {
    uint8_t* const codes = in.bytes();
    float* const absmax = in.floats();
    const float* const values = in.floats();
    if (!in.ok()) return {};
    make_code_map(values, &maps[i]);
    states[i] = {&maps[i], codes, absmax};
  }
  if (two_states) return adamw_update_coded(context, config, n, g, p, states[0], states[1]);
  return lion_update_coded(context, {config.lr, config.beta1, config.beta2, config.weight_decay, config.grad_scale}, n, g, p, states[0]);
}

Status run_adamw_coded(Context& context, Arguments& in) { return run_coded_update(context, in, true); }
Status run_lion_coded(Context& context, Arguments& in) { return run_coded_update(context, in, false); }

// rows, columns, g, p, momentum, learningRate, weightDecay, beta, gradScale, ratio
Status run_muon(Context& context, Arguments& in) {
  const size_t rows = in.size(), columns = in.size();
  float *const g = in.floats(), *const p = in.floats(), *const momentum = in.floats();
  MuonConfig config{};
  config.lr = in.number();
  config.weight_decay = in.number();
  config.momentum = in.number();
  config.grad_scale = in.number32();
  config.ratio = static_cast<MuonRatio>(in.size());
  if (!in.ok()) return {};
  MuonScratch scratch;
  return muon_update(context, config, rows, columns, StoredFloats(g), StoredFloats(p), momentum, &scratch);
}

}  // namespace

void register_optimizers(Napi::Object kernels) {
  const auto set = [&](const char* name, auto function) { set_function(kernels, name, function); };
  set("gradNorm", call<run_grad_norm>);
  set("adamW", call<run_adamw>);
  set("adamWCoded", call<run_adamw_coded>);
  set("lionCoded", call<run_lion_coded>);
  set("muon", call<run_muon>);
}

}  // namespace lowrank::addon

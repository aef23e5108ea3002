#include "addon/module.h"

#include <napi.h>

#if !defined(_WIN32)
#include <sys/resource.h>
#endif

#include "addon/bridge.h"
#include "addon/files.h"
#include "addon/kernels.h"
#include "addon/model.h"
#include "addon/op_profile.h"
#include "addon/op_timer.h"
#include "addon/openblas.h"
#include "addon/peaks.h"
#include "core/cpu_level.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"

namespace lowrank::addon {
namespace {

// Made at load. Never destroyed: a worker's environment may end while another still computes.
struct Runtime {
  explicit Runtime(CpuLevel level) : pool(0), context{pool, kernels_for(level), ComputeType::kF32, &profile} {}
  ThreadPool pool;
  OpProfile profile;
  Context context;
  std::mutex mutex;
};

Runtime* runtime = nullptr;
std::mutex runtime_mutex;

size_t peak_memory() {
#if defined(_WIN32)
  return 0;
#else
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return static_cast<size_t>(usage.ru_maxrss);
#else
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
#endif
#endif
}

Napi::Value system_info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Object result = Napi::Object::New(env);
  result.Set("isa", level_name(addon_context().kernels.level));
  Napi::Array levels = Napi::Array::New(env);
  for (CpuLevel level : available_levels()) levels.Set(levels.Length(), level_name(level));
  result.Set("isaLevels", levels);
  result.Set("bf16", addon_context().kernels.gemm.bf16 != nullptr);
  result.Set("computeType", bf16_is_fast(addon_context().kernels.level) ? "bf16" : "f32");
  result.Set("threads", static_cast<double>(addon_context().pool.threads()));
  result.Set("peakMemory", static_cast<double>(peak_memory()));
  result.Set("compiler", __VERSION__);
  return result;
}

}  // namespace

Context& addon_context() { return runtime->context; }
std::mutex& addon_mutex() { return runtime->mutex; }

Napi::Object init(Napi::Env env, Napi::Object exports) {
  {
    const std::lock_guard lock(runtime_mutex);
    if (runtime == nullptr) {
      const Result<CpuLevel> level = chosen_level();
      if (!level.ok()) {
        throw_status(env, level.status());
        return exports;
      }
      runtime = new Runtime(level.value());
    }
  }
  exports.Set("systemInfo", Napi::Function::New(env, system_info));
  register_files(env, exports);
  register_kernels(env, exports);
  register_model(env, exports);
  register_peaks(env, exports);
  register_op_timer(env, exports);
  register_op_profile(env, exports);
  register_openblas(env, exports);
  return exports;
}

}  // namespace lowrank::addon

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return lowrank::addon::init(env, exports); }
NODE_API_MODULE(lowrank, init_module)

#include "addon/openblas.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include "addon/bridge.h"
#include "addon/module.h"
#include "addon/timing.h"
#include "core/buffer.h"

namespace lowrank::addon {
namespace {

// cblas.h: CblasRowMajor, CblasNoTrans, CblasTrans.
constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112;

struct Openblas {
  void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
                float beta, float* c, int ldc) = nullptr;
  void (*set_threads)(int) = nullptr;
};

// The library stays loaded: its threads cannot be taken back.
Openblas find_openblas() {
  Openblas found;
#if !defined(_WIN32)
  for (const char* name : {"libopenblas.so.0", "libopenblas.so", "libopenblas.dylib"}) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    found.sgemm = reinterpret_cast<decltype(found.sgemm)>(dlsym(library, "cblas_sgemm"));
    found.set_threads = reinterpret_cast<decltype(found.set_threads)>(dlsym(library, "openblas_set_num_threads"));
    break;
  }
#endif
  return found;
}

// Y[m,n] = X[m,k]·W[n,k]ᵀ; the best of several, in seconds.
Status time_gemm(const Openblas& blas, int m, int n, int k, double* best) {
  const std::lock_guard lock(addon_mutex());
  Buffer x, w, y;
  const size_t rows = static_cast<size_t>(m), columns = static_cast<size_t>(n), depth = static_cast<size_t>(k);
  LR_RETURN_IF_ERROR(x.allocate(rows * depth * sizeof(float), "operands of the comparison"));
  LR_RETURN_IF_ERROR(w.allocate(columns * depth * sizeof(float), "operands of the comparison"));
  LR_RETURN_IF_ERROR(y.allocate(rows * columns * sizeof(float), "operands of the comparison"));
  if (blas.set_threads != nullptr) blas.set_threads(static_cast<int>(addon_context().pool.threads()));
  *best = best_seconds([&] {
    blas.sgemm(kRowMajor, kNoTranspose, kTranspose, m, n, k, 1.0f, x.as<float>(), k, w.as<float>(), k, 0.0f, y.as<float>(), n);
  });
  return {};
}

Napi::Value time_openblas(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  size_t m = 0, n = 0, k = 0;
  if (!get_size(info[0], "m", &m) || !get_size(info[1], "n", &n) || !get_size(info[2], "k", &k)) return env.Undefined();
  static const Openblas blas = find_openblas();
  auto seconds = std::make_shared<double>(0);
  return run_async(
      env,
      [seconds, m, n, k]() -> Status {
        if (blas.sgemm == nullptr) return {};
        return time_gemm(blas, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), seconds.get());
      },
      [seconds](Napi::Env result_env) -> Napi::Value {
        return *seconds > 0 ? Napi::Value(Napi::Number::New(result_env, *seconds)) : result_env.Null();
      },
      Napi::Object::New(env));
}

}  // namespace

void register_openblas(Napi::Env env, Napi::Object exports) { exports.Set("timeOpenblas", Napi::Function::New(env, time_openblas)); }

}  // namespace lowrank::addon

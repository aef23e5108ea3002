#include "addon/peaks.h"

#include <algorithm>
#include <chrono>

#include "addon/bridge.h"
#include "addon/module.h"
#include "core/buffer.h"
#include "ops/cpu/kernels.h"

namespace lowrank::addon {
namespace {

constexpr size_t kFmaIterations = 4'000'000;             // some 20 ms
constexpr size_t kReadFloats = size_t{32} << 20;         // 128 MiB a thread: beyond any cache
constexpr int kRepeats = 7;

template <class F>
double best_seconds(const F& run) {
  double best = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

struct Peaks {
  double flops = 0;           // per second, all threads
  double bytes = 0;           // read per second from memory, all threads
};

Status measure(Peaks* peaks) {
  const std::lock_guard lock(addon_mutex());
  Context& context = addon_context();
  const size_t threads = context.pool.threads();
  const PeakKernels& kernels = context.kernels.peak;
  double flop = 0;
  const double fma_seconds = best_seconds([&] {
    context.pool.parallel(threads, [&](size_t, size_t worker) {
      const double done = kernels.multiply_add(kFmaIterations);
      if (worker == 0) flop = done;
    });
  });
  Buffer memory;
  LR_RETURN_IF_ERROR(memory.allocate(threads * kReadFloats * sizeof(float), "memory of the bandwidth measurement"));
  // Written first: pages that never were share one page of zeros, which the cache would hold.
  context.pool.parallel(threads, [&](size_t chunk, size_t) { std::fill_n(memory.as<float>() + chunk * kReadFloats, kReadFloats, 1.0f); });
  const double read_seconds = best_seconds([&] {
    context.pool.parallel(threads, [&](size_t chunk, size_t) {
      volatile float sink = kernels.read(memory.as<float>() + chunk * kReadFloats, kReadFloats);
      (void)sink;
    });
  });
  peaks->flops = flop * static_cast<double>(threads) / fma_seconds;
  peaks->bytes = static_cast<double>(memory.bytes()) / read_seconds;
  return {};
}

Napi::Value measure_peaks(const Napi::CallbackInfo& info) {
  auto peaks = std::make_shared<Peaks>();
  return run_async(
      info.Env(), [peaks] { return measure(peaks.get()); },
      [peaks](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("flopsPerSecond", peaks->flops);
        result.Set("bytesPerSecond", peaks->bytes);
        return result;
      },
      Napi::Object::New(info.Env()));
}

}  // namespace

void register_peaks(Napi::Env env, Napi::Object exports) { exports.Set("measurePeaks", Napi::Function::New(env, measure_peaks)); }

}  // namespace lowrank::addon

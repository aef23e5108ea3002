#include "addon/peaks.h"

#include <algorithm>

#include "addon/bridge.h"
#include "addon/module.h"
#include "addon/timing.h"
#include "core/buffer.h"
#include "ops/cpu/kernels.h"

namespace lowrank::addon {
namespace {

constexpr size_t kFmaIterations = 4'000'000;   // some 20 ms
constexpr size_t kStep = 64;                   // floats: what the streaming kernels go by
constexpr size_t kPieceBytes = 16 << 10;       // read, then written, then updated: an op's own order is as fine
constexpr size_t kChunksOfThread = 4;

// Flop per second of all threads, in registers.
double flops_of(double (*multiply_add)(size_t), ThreadPool& pool) {
  double flop = 0;
  const double seconds = best_seconds([&] {
    pool.parallel(pool.threads(), [&](size_t, size_t worker) {
      const double done = multiply_add(kFmaIterations);
      if (worker == 0) flop = done;
    });
  });
  return flop * static_cast<double>(pool.threads()) / seconds;
}

struct Peaks {
  double flops = 0, bf16_flops = 0;   // per second, all threads; bf16: 0 where the level has no instruction for it
};

Napi::Value measure_peaks(const Napi::CallbackInfo& info) {
  auto peaks = std::make_shared<Peaks>();
  return run_async(
      info.Env(),
      [peaks] {
        const std::lock_guard lock(addon_mutex());
        const PeakKernels& kernels = addon_context().kernels.peak;
        peaks->flops = flops_of(kernels.multiply_add, addon_context().pool);
        if (kernels.multiply_add_bf16 != nullptr) peaks->bf16_flops = flops_of(kernels.multiply_add_bf16, addon_context().pool);
        return Status();
      },
      [peaks](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("flopsPerSecond", peaks->flops);
        if (peaks->bf16_flops > 0) result.Set("bf16FlopsPerSecond", peaks->bf16_flops);
        return result;
      },
      Napi::Object::New(info.Env()));
}

// One array that is gone through once, cut in pieces on whole steps.
struct Stream {
  Buffer memory;
  size_t floats = 0;

  Status allocate(size_t bytes) {
    floats = (bytes / sizeof(float) + kStep - 1) / kStep * kStep;
    LR_RETURN_IF_ERROR(memory.reserve(std::max(floats, kStep) * sizeof(float), "memory of the bandwidth measurement"));
    // Written first: pages that never were share one page of zeros, which the cache would hold.
    std::fill_n(memory.as<float>(), floats, 1.0f);
    return {};
  }
  size_t bound(size_t piece, size_t pieces) const { return floats / kStep * piece / pieces * kStep; }
  float* at(size_t piece, size_t pieces) const { return memory.as<float>() + bound(piece, pieces); }
  size_t length(size_t piece, size_t pieces) const { return bound(piece + 1, pieces) - bound(piece, pieces); }
};

// Seconds that an op takes at least which reads, writes and updates in place so many bytes, all of them touched by the pass
// before: they come from whichever cache holds them, and stores that miss pay for reading the line first.
Status measure_traffic(size_t read_bytes, size_t written_bytes, size_t updated_bytes, double* seconds) {
  const std::lock_guard lock(addon_mutex());
  Context& context = addon_context();
  const PeakKernels& kernels = context.kernels.peak;
  Stream read, written, updated;
  LR_RETURN_IF_ERROR(read.allocate(read_bytes));
  LR_RETURN_IF_ERROR(written.allocate(written_bytes));
  LR_RETURN_IF_ERROR(updated.allocate(updated_bytes));
  const size_t chunks = context.pool.threads() * kChunksOfThread;
  const size_t pieces = (read_bytes + written_bytes + updated_bytes) / kPieceBytes / chunks + 1, all = chunks * pieces;
  *seconds = best_seconds([&] {
    context.pool.parallel(chunks, [&](size_t chunk, size_t) {
      for (size_t piece = chunk * pieces; piece < (chunk + 1) * pieces; ++piece) {
        volatile float sink = kernels.read(read.at(piece, all), read.length(piece, all));
        (void)sink;
        kernels.write(written.at(piece, all), written.length(piece, all));
        kernels.update(updated.at(piece, all), updated.length(piece, all));
      }
    });
  });
  return {};
}

Napi::Value time_traffic(const Napi::CallbackInfo& info) {
  size_t read = 0, written = 0, updated = 0;
  if (!get_size(info[0], "read", &read) || !get_size(info[1], "written", &written) || !get_size(info[2], "updated", &updated)) {
    return info.Env().Undefined();
  }
  return promise_seconds(info.Env(), [=](double* seconds) { return measure_traffic(read, written, updated, seconds); });
}

}  // namespace

void register_peaks(Napi::Env env, Napi::Object exports) {
  exports.Set("measurePeaks", Napi::Function::New(env, measure_peaks));
  exports.Set("timeTraffic", Napi::Function::New(env, time_traffic));
}

}  // namespace lowrank::addon

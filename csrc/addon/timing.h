// How the benchmark's bindings time things: by the best of several, since machines are shared.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>

#include "addon/bridge.h"

namespace lowrank::addon {

template <class F>
double seconds_of(const F& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The shortest of at least `repeats` runs after a first one, and of as many as `budget` seconds hold.
template <class F>
double best_seconds(const F& run, int repeats = 7, double budget = 0.05) {
  run();
  double best = 1e30, spent = 0;
  for (int i = 0; i < repeats || spent < budget; ++i) {
    const double seconds = seconds_of(run);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

// A promise of the seconds that `measure(&seconds)` finds, on another thread.
template <class F>
Napi::Promise promise_seconds(Napi::Env env, const F& measure) {
  auto seconds = std::make_shared<double>(0);
  return run_async(
      env, [=] { return measure(seconds.get()); },
      [seconds](Napi::Env result_env) -> Napi::Value { return Napi::Number::New(result_env, *seconds); }, Napi::Object::New(env));
}

}  // namespace lowrank::addon

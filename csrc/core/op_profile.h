// Where the time of a step goes, by kind of op: off unless the benchmark switches it on, and then
// two readings of a clock for each op.
#pragma once

#include <chrono>
#include <cstddef>

#include "core/context.h"

namespace lowrank {

enum class OpKind {
  kLoraForward,
  kLoraBackward,
  kAttentionForward,
  kAttentionBackward,
  kHead,
  kGemm,
  kNorm,
  kRope,
  kSwiglu,
  kDropout,
  kEmbedding,
  kOptimizer,
  kCount,
};

constexpr const char* op_kind_name(OpKind kind) {
  constexpr const char* kNames[] = {
      "lora_linear", "lora_linear backward", "attention", "attention backward",
      "head",        "gemm",                 "rms_norm",  "rope",
      "swiglu",      "dropout",              "embedding", "optimizer"};
  static_assert(sizeof kNames / sizeof *kNames == static_cast<size_t>(OpKind::kCount));
  return kNames[static_cast<size_t>(kind)];
}

struct OpProfile {
  bool on = false;
  bool inside = false;  // an op runs: those that it calls are part of it
  double seconds[static_cast<size_t>(OpKind::kCount)] = {};
};

// Stands at the head of an op. Ops of one context run one at a time, on one thread.
class OpTimer {
 public:
  OpTimer(const Context& context, OpKind kind) : kind_(kind) {
    if (context.profile == nullptr || !context.profile->on || context.profile->inside) return;
    profile_ = context.profile;
    profile_->inside = true;
    start_ = std::chrono::steady_clock::now();
  }
  ~OpTimer() {
    if (profile_ == nullptr) return;
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
    profile_->seconds[static_cast<size_t>(kind_)] += spent.count();
    profile_->inside = false;
  }
  OpTimer(const OpTimer&) = delete;
  OpTimer& operator=(const OpTimer&) = delete;

 private:
  OpKind kind_;
  OpProfile* profile_ = nullptr;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace lowrank

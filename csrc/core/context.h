// What every op is called with: the threads to run on and the kernels of the instruction-set level in use.
#pragma once

#include "core/thread_pool.h"

namespace lowrank {

struct Kernels;    // ops/cpu/kernels.h
struct OpProfile;  // core/op_profile.h

// What the operands of the large products and of attention are rounded to, and what activations between them are kept in. Sums
// are fp32 in both, and so are the residual stream, norms, softmax, LoRA's weights and gradients, loss and optimizer.
enum class ComputeType { kF32, kBf16 };

struct Context {
  ThreadPool& pool;
  const Kernels& kernels;
  ComputeType compute = ComputeType::kF32;   // kBf16 means fp32 where the level has no kernels for it
  OpProfile* profile = nullptr;              // gathers the time of each op where set and on
  bool decoding = false;                     // generation: a few rows at a time are the rule, so more of them are multiplied row-wise
};

}  // namespace lowrank

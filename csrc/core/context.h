// What every op is called with: the threads to run on and the kernels of the instruction-set level in use.
#pragma once

#include "core/thread_pool.h"

namespace lowrank {

struct Kernels;  // ops/cpu/kernels.h

struct Context {
  ThreadPool& pool;
  const Kernels& kernels;
};

}  // namespace lowrank

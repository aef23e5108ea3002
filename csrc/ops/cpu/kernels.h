// The table of single-threaded kernels of one instruction-set level. Each group is declared in its op's
// *_kernels.h and defined in *_kernels.cpp, which CMake compiles once per level with -DLR_ISA=<namespace>; only this table
// crosses from those units to the rest, so no instruction leaks below its level.
#pragma once

#include "core/context.h"
#include "core/cpu_level.h"
#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/elementwise_kernels.h"
#include "ops/cpu/gemm_kernels.h"
#include "ops/cpu/optimizer_kernels.h"
#include "ops/cpu/peak_kernels.h"

namespace lowrank {

struct Kernels {
  CpuLevel level;
  const GemmKernels& gemm;
  const AttentionKernels& attention;
  const ElementwiseKernels& elementwise;
  const OptimizerKernels& optimizer;
  const PeakKernels& peak;
};

// The kernels of a level that available_levels() lists.
const Kernels& kernels_for(CpuLevel level);

// The packed products' kernels for the context's compute type.
inline const BlockKernels& block_kernels(const Context& context) {
  const GemmKernels& gemm = context.kernels.gemm;
  return context.compute == ComputeType::kBf16 && gemm.bf16 != nullptr ? *gemm.bf16 : gemm.f32;
}

// What rows of activations between those products are kept in.
inline DType activation_type(const Context& context) {
  return block_kernels(context).k_step == 2 ? DType::kBF16 : DType::kF32;
}

}  // namespace lowrank

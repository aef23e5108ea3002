#include "ops/cpu/attention_kernels.h"

#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {

extern const AttentionKernels kAttentionKernels;
const AttentionKernels kAttentionKernels = {};

}  // namespace lowrank::LR_ISA

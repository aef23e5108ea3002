#include "ops/cpu/kernels.h"

// Every level's unit defines these in a namespace of its own.
#define LR_DECLARE_LEVEL(isa)                    \
  namespace lowrank::isa {                       \
  extern const GemmKernels kGemmKernels;         \
  extern const AttentionKernels kAttentionKernels; \
  extern const ElementwiseKernels kElementwiseKernels; \
  extern const OptimizerKernels kOptimizerKernels; \
  extern const PeakKernels kPeakKernels;         \
  }
#define LR_TABLE(level, isa) \
  {                                                                                 \
    level, isa::kGemmKernels, isa::kAttentionKernels, isa::kElementwiseKernels,     \
        isa::kOptimizerKernels, isa::kPeakKernels                                   \
  }

LR_DECLARE_LEVEL(generic)
#if defined(__x86_64__)
LR_DECLARE_LEVEL(avx2)
LR_DECLARE_LEVEL(avx512)
LR_DECLARE_LEVEL(avx512_bf16)
LR_DECLARE_LEVEL(amx)
#elif defined(__aarch64__)
LR_DECLARE_LEVEL(neon)
#endif

namespace lowrank {

const Kernels& kernels_for(CpuLevel level) {
  static const Kernels kGenericTable = LR_TABLE(CpuLevel::kGeneric, generic);
#if defined(__x86_64__)
  static const Kernels kAvx2Table = LR_TABLE(CpuLevel::kAvx2, avx2);
  static const Kernels kAvx512Table = LR_TABLE(CpuLevel::kAvx512, avx512);
  static const Kernels kAvx512Bf16Table = LR_TABLE(CpuLevel::kAvx512Bf16, avx512_bf16);
  static const Kernels kAmxTable = LR_TABLE(CpuLevel::kAmx, amx);
  switch (level) {
    case CpuLevel::kAvx2: return kAvx2Table;
    case CpuLevel::kAvx512: return kAvx512Table;
    case CpuLevel::kAvx512Bf16: return kAvx512Bf16Table;
    case CpuLevel::kAmx: return kAmxTable;
    default: return kGenericTable;
  }
#elif defined(__aarch64__)
  static const Kernels kNeonTable = LR_TABLE(CpuLevel::kNeon, neon);
  return level == CpuLevel::kNeon ? kNeonTable : kGenericTable;
#else
  (void)level;
  return kGenericTable;
#endif
}

}  // namespace lowrank

// 8-bit codes of a table of 256 values with a scale for each block, byte for byte as bitsandbytes 0.50 has them on a CPU.
// Dettmers et al. 2022 (8-bit optimizers), arXiv:2110.02861
//
// A block's values are divided by its largest magnitude (times its reciprocal, in fp32) and the nearest value of the table is looked up
// for each: not for the value itself but for the nearest of 65,536 that lie evenly from -1 to 1, which for values near zero may be
// several codes away. Halfway between two codes the lower one is taken. A block of zeros gets codes 0; NaN gets code 0 and is no
// magnitude.
#pragma once

#include "core/context.h"
#include "core/status.h"

namespace lowrank {

inline constexpr size_t kByteCodes = 256;

// out[n] and absmax[ceil(n / block)] of x[n]; code[256] ascends from -1 (or 0) to 1.
Status quantize_blockwise(Context&, const float* x, size_t n, size_t block, const float* code, uint8_t* out, float* absmax);

// out[i] = code[codes[i]] * absmax[i / block]
Status dequantize_blockwise(Context&, const uint8_t* codes, size_t n, size_t block, const float* code, const float* absmax, float* out);

}  // namespace lowrank

// Plain element types to fp32, from bytes at any alignment. Block types are ops/dequantize.h's.
#pragma once

#include <cstddef>

#include "core/dtype.h"

namespace lowrank {

// F32, F16, BF16, F64, F8_E4M3, F8_E5M2.
bool is_scalar_float(DType type);

// The scalar float of each type as fp32. F64 is rounded to nearest.
void scalars_to_f32(DType type, const unsigned char* data, size_t count, float* out);

}  // namespace lowrank

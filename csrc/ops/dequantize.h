// Any weight storage type to fp32, exactly as ggml's dequantize_row_* do (fp32 arithmetic, same order).
#pragma once

#include "core/context.h"
#include "ops/matrix.h"

namespace lowrank {

// out[rows, cols] = w, rows contiguous.
Status dequantize(Context&, const Matrix& w, float* out);

}  // namespace lowrank

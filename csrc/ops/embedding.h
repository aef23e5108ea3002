// x[t] = table[ids[t]], from any weight storage type to fp32, and its gradient.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "ops/matrix.h"
#include "ops/rows.h"

namespace lowrank {

// x: [T, table.cols]. kShapeMismatch names the first id outside [0, table.rows).
Status embedding_forward(Context&, const Matrix& table, const int32_t* ids, size_t tokens, float* x);

// dtable[ids[t]] += dx[t] in token order; dtable: [rows, cols], fp32, or bf16, to which the sum over a token's places is added and rounded
// once.
Status embedding_backward(Context&, const int32_t* ids, size_t tokens, const float* dx, size_t rows, size_t cols, Rows dtable);

}  // namespace lowrank

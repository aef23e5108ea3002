// Rows of fp32 as rows of bf16, rounded to nearest even.
#pragma once

#include "core/context.h"
#include "ops/rows.h"

namespace lowrank {

// to: [rows, columns] contiguous.
void round_rows(Context&, ConstRows from, size_t rows, size_t columns, uint16_t* to);

}  // namespace lowrank

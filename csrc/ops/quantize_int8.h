// Row-wise 8-bit weights as bitsandbytes 0.50 quantises them on a CPU (LLM.int8()), byte for byte. Dettmers et al. 2022,
// arXiv:2208.07339
//
// A row's values are multiplied by 127 times the reciprocal of its largest magnitude and rounded to nearest even; what is not a number
// then (a row of zeros, or with an infinity) becomes 0. bitsandbytes rounds weights to fp16 before. A weight is code * (absmax / 127),
// the quotient taken as a product in fp32: what bitsandbytes trains with. Its activations in 8 bits, and the columns of outliers that it
// has to keep out of these, have no part here: activations are fp32 or bf16.
//
// In a model the codes lie in a block type, DType::kInt8: of 64 weights their row's magnitude (fp32), then the 64 codes. So every block
// of a row repeats it, which takes 6 % more than to store it once, and rows are read as those of other block types.
#pragma once

#include <functional>

#include "core/context.h"
#include "core/status.h"
#include "ops/matrix.h"

namespace lowrank {

// codes[rows, columns] and absmax[rows] of x[rows, columns], which is not rounded to fp16.
void quantize_int8(Context&, const float* x, size_t rows, size_t columns, int8_t* codes, float* absmax);

// out[r, c] = codes[r, c] * absmax[r] / 127, both products rounded: bitsandbytes' int8_vectorwise_dequant.
void dequantize_int8(Context&, const int8_t* codes, const float* absmax, size_t rows, size_t columns, float* out);

// A weight of any type as kInt8, some rows at a time: out[rows, row_bytes(kInt8, columns)]. Values are rounded to `source` (kF32: as
// they are) and then to fp16; used(data, bytes) hears of rows that are not read any more. Refuses rows that are no multiple of the block.
Status quantize_int8_weight(Context&, const Matrix& weight, DType source, const std::function<void(const void*, size_t)>& used, void* out);

// The same of codes that are there already, and back.
Status store_int8(Context&, const int8_t* codes, const float* absmax, const Matrix& shape, void* out);
void load_int8(Context&, const Matrix& weight, int8_t* codes, float* absmax);

}  // namespace lowrank

// What a weight that is to be quantised holds: its values in fp32, rounded to the type that it would be quantised from.
#pragma once

#include <algorithm>
#include <functional>

#include "core/checked.h"
#include "core/context.h"
#include "core/half.h"
#include "ops/cpu/kernels.h"
#include "ops/matrix.h"

namespace lowrank {

inline void round_to(DType type, float* x, size_t n) {
  if (type == DType::kBF16) {
    for (size_t i = 0; i < n; ++i) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
  } else if (type == DType::kF16) {
    for (size_t i = 0; i < n; ++i) x[i] = f16_to_f32(f32_to_f16(x[i]));
  }
}

// Values [begin, begin + n) of a weight, its rows one after the other; `type`: kF32, or kBF16 or kF16 to round to it.
inline void read_values(Context& context, const Matrix& weight, size_t begin, size_t n, DType type, float* out) {
  for (size_t done = 0; done < n;) {
    const size_t row = (begin + done) / weight.cols, column = (begin + done) % weight.cols;
    const size_t take = std::min(n - done, weight.cols - column);
    context.kernels.gemm.dequantize(weight, row, 1, column, take, out + done, take);
    done += take;
  }
  round_to(type, out, n);
}

// f(begin, end) over a weight's blocks of so many values, some MiB at a time; then used(data, bytes) of the rows that have been read.
template <class F>
void for_weight_pieces(const Matrix& weight, size_t block, const std::function<void(const void*, size_t)>& used, const F& f) {
  constexpr size_t kPiece = size_t{1} << 20;  // weights
  const size_t weights = weight.rows * weight.cols, blocks = ceil_div(weights, block), step = std::max<size_t>(1, kPiece / block);
  for (size_t begin = 0, row = 0; begin < blocks; begin += step) {
    const size_t end = std::min(blocks, begin + step), whole = std::min(weights, end * block) / weight.cols;
    f(begin, end);
    if (used && whole > row) used(weight.row(row), (whole - row) * weight.stride);
    row = whole;
  }
}

}  // namespace lowrank

#include "ops/dequantize.h"

#include <algorithm>

#include "core/checked.h"
#include "ops/cpu/kernels.h"

namespace lowrank {
namespace {

constexpr size_t kChunkWeights = 16384;  // a few microseconds

}  // namespace

Status dequantize(Context& context, const Matrix& w, float* out) {
  const DTypeInfo& info = dtype_info(w.type);
  if (!info.is_weight) {
    return error(Code::kUnsupportedQuantization, "dequantize: type %s holds no weights", info.name);
  }
  if (w.cols % info.block_elements != 0) {
    return error(Code::kShapeMismatch,
                 "dequantize: rows of %zu weights are not a multiple of %s's block of %zu", w.cols,
                 info.name, info.block_elements);
  }
  if (w.rows == 0 || w.cols == 0) return {};
  const size_t rows = std::max<size_t>(1, kChunkWeights / w.cols);
  context.pool.parallel(ceil_div(w.rows, rows), [&](size_t chunk, size_t) {
    const size_t begin = chunk * rows;
    context.kernels.gemm.dequantize(w, begin, std::min(rows, w.rows - begin), 0, w.cols,
                                    out + begin * w.cols, w.cols);
  });
  return {};
}

}  // namespace lowrank

#include "ops/dropout.h"

#include <cmath>

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {

Status dropout_apply(Context& context, const float* x, size_t x_stride, size_t tokens,
                     size_t channels, float p, uint64_t seed, uint64_t module, float* y,
                     size_t y_stride, bool accumulate) {
  const OpTimer timer(context, OpKind::kDropout);
  if (!(p >= 0.0f && p < 1.0f)) {
    return error(Code::kInvalidOption, "dropout is %g, but must be at least 0 and below 1",
                 static_cast<double>(p));
  }
  const uint32_t threshold = static_cast<uint32_t>(std::lround(static_cast<double>(p) * 65536.0));
  const float scale = static_cast<float>(1.0 / (1.0 - static_cast<double>(p)));
  const bool contiguous = x_stride == channels && y_stride == channels;
  const auto& kernel = context.kernels.elementwise.dropout;
  for_row_chunks(context, tokens, channels, [&](size_t begin, size_t end) {
    if (contiguous) {  // rows that follow one another share their counters
      const size_t first = begin * channels;
      kernel(x + first, (end - begin) * channels, first, threshold, scale, seed, module, y + first,
             accumulate);
      return;
    }
    for (size_t token = begin; token < end; ++token) {
      kernel(x + token * x_stride, channels, token * channels, threshold, scale, seed, module,
             y + token * y_stride, accumulate);
    }
  });
  return {};
}

}  // namespace lowrank

#include "ops/dropout.h"

#include <cmath>

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {

Status dropout_apply(Context& context, ConstRows x, size_t tokens, size_t channels, float p,
                     uint64_t seed, uint64_t module, Rows y, bool accumulate) {
  const OpTimer timer(context, OpKind::kDropout);
  if (!(p >= 0.0f && p < 1.0f)) {
    return error(Code::kInvalidOption, "dropout is %g, but must be at least 0 and below 1",
                 static_cast<double>(p));
  }
  const uint32_t threshold = static_cast<uint32_t>(std::lround(static_cast<double>(p) * 65536.0));
  const float scale = static_cast<float>(1.0 / (1.0 - static_cast<double>(p)));
  const bool contiguous = x.stride == channels && y.stride == channels;
  const auto& kernel = context.kernels.elementwise.dropout;
  for_row_chunks(context, tokens, channels, [&](size_t begin, size_t end) {
    if (contiguous) {  // rows that follow one another share their counters
      const size_t first = begin * channels;
      kernel(x.at(begin, 0).data, x.bf16(), (end - begin) * channels, first, threshold, scale, seed,
             module, y.at(begin, 0).data, y.bf16(), accumulate);
      return;
    }
    for (size_t token = begin; token < end; ++token) {
      kernel(x.at(token, 0).data, x.bf16(), channels, token * channels, threshold, scale, seed,
             module, y.at(token, 0).data, y.bf16(), accumulate);
    }
  });
  return {};
}

}  // namespace lowrank

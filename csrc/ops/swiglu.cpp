#include "ops/swiglu.h"

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {

Status swiglu_forward(Context& context, const float* g, const float* u, size_t gu_stride,
                      size_t tokens, size_t ffn, float* h) {
  const OpTimer timer(context, OpKind::kSwiglu);
  for_row_chunks(context, tokens, ffn, [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; ++token) {
      context.kernels.elementwise.swiglu_forward(g + token * gu_stride, u + token * gu_stride, ffn,
                                                 h + token * ffn);
    }
  });
  return {};
}

Status swiglu_backward(Context& context, const float* g, const float* u, size_t gu_stride,
                       const float* dh, size_t tokens, size_t ffn, float* dg, float* du,
                       size_t dgu_stride) {
  const OpTimer timer(context, OpKind::kSwiglu);
  for_row_chunks(context, tokens, ffn, [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; ++token) {
      context.kernels.elementwise.swiglu_backward(g + token * gu_stride, u + token * gu_stride,
                                                  dh + token * ffn, ffn, dg + token * dgu_stride,
                                                  du + token * dgu_stride);
    }
  });
  return {};
}

}  // namespace lowrank

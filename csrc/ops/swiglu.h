// h = silu(g) * u,  silu(x) = x / (1 + exp(-x))                               Shazeer 2020, arXiv:2002.05202
// g, u: [T, F] with row stride gu_stride (two halves of one buffer); h, dh: [T, F] contiguous.
#pragma once

#include "core/context.h"

namespace lowrank {

Status swiglu_forward(Context&, const float* g, const float* u, size_t gu_stride, size_t tokens, size_t ffn, float* h);

// dg, du are written (=) with row stride dgu_stride and may alias g and u.
Status swiglu_backward(Context&, const float* g, const float* u, size_t gu_stride, const float* dh, size_t tokens,
                       size_t ffn, float* dg, float* du, size_t dgu_stride);

}  // namespace lowrank

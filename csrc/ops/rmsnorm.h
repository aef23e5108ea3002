// y[t,c] = x[t,c] * w[c] / rms(x[t]),  rms(x) = sqrt(mean(x²) + eps)          Zhang & Sennrich 2019, arXiv:1910.07467
// x: [T, C] contiguous fp32; w: [C] fp32; y: [T, C] fp32 (may alias x) or bf16; inv_rms (saved for the backward): [T].
#pragma once

#include "core/context.h"
#include "ops/rows.h"

namespace lowrank {

Status rmsnorm_forward(Context&, const float* x, const float* w, float eps, size_t tokens, size_t channels, Rows y,
                       float* inv_rms);

// dx (+)= by accumulate; dw (may be null) += Σ_t, in token order. dx may alias dy when not accumulating.
// `rounded` (may be null): [T, C], dx in bf16 too.
Status rmsnorm_backward(Context&, const float* x, const float* w, const float* inv_rms, const float* dy, size_t tokens,
                        size_t channels, float* dx, bool accumulate, float* dw, uint16_t* rounded = nullptr);

}  // namespace lowrank

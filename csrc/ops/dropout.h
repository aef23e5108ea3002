// Inverted dropout with a mask that is a function of (seed, module, element), so that the backward, a recompute and a
// resumed run see the same one.                                    Srivastava et al. 2014; Philox: core/philox.h
//   y[t,c] = keep(t,c) ? x[t,c] / (1 - p) : 0
// Element e = t * channels + c draws 16 bits u of philox4x32 at counter e / 8 (word (e % 8) / 2, low half first), stream
// `module`, key `seed`; it is kept where u >= round(p * 65536).
#pragma once

#include <cstdint>

#include "core/context.h"
#include "ops/rows.h"

namespace lowrank {

// x, y: [T, C], each fp32 or bf16; y may be x. p in [0, 1). accumulate: y +=.
Status dropout_apply(Context&, ConstRows x, size_t tokens, size_t channels, float p, uint64_t seed, uint64_t module, Rows y,
                     bool accumulate);

}  // namespace lowrank

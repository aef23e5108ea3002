// Updates with optimizer states of 8 bits.                                                  Dettmers et al. 2021, arXiv:2110.02861
// In blocks of 256 elements: each state is decoded (value of the code times the block's absmax), updated in fp32 as adamw.h or lion.h
// say, weight decay first, used, and stored anew: absmax is the block's largest magnitude, and each code the nearest (code_map.h).
// bitsandbytes decays AdamW's parameters after the update instead. A state of zero is the code of zero, so that a parameter whose
// gradient has always been zero does not move.
#pragma once

#include "core/context.h"
#include "ops/adamw.h"
#include "ops/lion.h"

namespace lowrank {

// g, p [n]; codes [n], absmax [ceil(n / 256)] of each state. The same bits for any number of threads. kNonFinite, and nothing
// changed, where a gradient is not finite.
Status adamw_update_coded(Context&, const AdamWConfig&, size_t n, const float* g, float* p, const CodedState& m, const CodedState& v);
Status lion_update_coded(Context&, const LionConfig&, size_t n, const float* g, float* p, const CodedState& m);

// `state` from element `begin` on, a multiple of 256.
inline CodedState from_element(const CodedState& state, size_t begin) {
  return {state.map, state.codes + begin, state.absmax + begin / kCodeBlock};
}

}  // namespace lowrank

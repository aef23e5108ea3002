// h = silu(g) * u,  silu(x) = x / (1 + exp(-x))                               Shazeer 2020, arXiv:2002.05202
// Rows of `ffn` elements, all of one type.
#pragma once

#include "core/context.h"
#include "ops/rows.h"

namespace lowrank {

Status swiglu_forward(Context&, ConstRows g, ConstRows u, size_t tokens, size_t ffn, Rows h);

// dg, du are written (=) and may alias g and u.
Status swiglu_backward(Context&, ConstRows g, ConstRows u, ConstRows dh, size_t tokens, size_t ffn, Rows dg, Rows du);

}  // namespace lowrank

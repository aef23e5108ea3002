// bitsandbytes' dynamic 8-bit maps (create_dynamic_map): seven decades, each with twice as many evenly spaced values as the one
// below it, and 0 and 1.                                                                    Dettmers 2015, arXiv:1511.04561
#pragma once

#include "ops/code_map.h"

namespace lowrank {

// The 256 values, ascending, bit for bit as torch computes them. Signed: for values of both signs, as a first moment has; else all codes
// are for values from 0 on.
void dynamic_map(bool is_signed, float* values);

// The same as a map that finds the nearest code. Made at first use.
const CodeMap& dynamic_code_map(bool is_signed);

}  // namespace lowrank

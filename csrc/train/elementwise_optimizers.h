// AdamW, Lion and SGD with momentum as a session's optimizers; the formulas stand in ops/adamw.h, lion.h and sgd.h.
#pragma once

#include "train/segmented_optimizer.h"

namespace lowrank {

std::unique_ptr<SegmentedOptimizer> make_adamw();
std::unique_ptr<SegmentedOptimizer> make_lion();
std::unique_ptr<SegmentedOptimizer> make_sgd();

// The states that each keeps of an element.
std::span<const ElementState> adamw_states();
std::span<const ElementState> lion_states();
std::span<const ElementState> sgd_states();

}  // namespace lowrank

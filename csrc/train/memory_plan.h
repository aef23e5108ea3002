// What a training, an evaluation or a generation holds in memory, by component, told from the layouts that they allocate. The model
// may be one for planning, which has no memory itself. Components: weights, adapters, gradients, optimizer, activations (what a
// forward keeps for its backward), workspace (what a block works in), head (the chunk of logits and the packed rows of the
// vocabulary), cache (keys and values). The process itself, its tokenizer and its data come on top.
#pragma once

#include <map>
#include <string>

#include "train/session.h"

namespace lowrank {

using MemoryComponents = std::map<std::string, size_t>;

MemoryComponents plan_training(Context&, const Model&, const SessionOptions&);

// Of a batch of `tokens`.
MemoryComponents plan_evaluation(Context&, const Model&, size_t tokens);

struct GenerationShape {
  size_t rows, capacity;  // of the cache
  size_t tokens;          // most that run at once
};
MemoryComponents plan_generation(Context&, const Model&, const GenerationShape&);

}  // namespace lowrank

// The next token from a row of logits, as Transformers' generate() draws it: its logits processors
// in its order,
//   repetition penalty → temperature → top-k → top-p → min-p → softmax → draw
// with its treatment of ties: every logit equal to the k-th is kept. Of equal logits at top-p's
// edge, which torch.sort leaves open, those of larger ids are kept.
// The draw is a function of (seed, stream, step).
//             Holtzman et al. 2019, arXiv:1904.09751; Nguyen et al. 2024, arXiv:2407.01082
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "ops/cpu/elementwise_kernels.h"

namespace lowrank {

struct SamplingConfig {
  double temperature = 1;         // 0: greedy, the first of the largest logits after the penalty
  size_t top_k = 0;               // 0: off
  double top_p = 1;               // in [0, 1]; 1: off
  double min_p = 0;               // in [0, 1]; 0: off
  double repetition_penalty = 1;  // above 0; 1: off
};

struct Candidate {
  int32_t id;
  float score;  // the logit after the penalty
  double probability;
};

// Memory that a caller keeps between rows.
struct SamplingScratch {
  std::vector<float> scores;
  std::vector<float> ranked;
  std::vector<Candidate> candidates;
  double log_sum;  // log Σ exp of the row's logits
};

// The tokens that may be drawn, in order of id, with probabilities that sum to 1; one where greedy.
// kInvalidOption for a value out of its range; kNonFinite where a logit is NaN or infinite, or all
// are -infinity.
Status sampling_candidates(const ElementwiseKernels&, const float* logits, size_t vocab,
                           const SamplingConfig&, std::span<const int32_t> context_ids,
                           SamplingScratch* scratch);

// Draws one of the candidates. `context_ids`: the tokens so far, which the penalty applies to; ids
// outside the vocabulary are passed over. *logprob: log-softmax of `logits` themselves at *id.
Status sample_row(const ElementwiseKernels&, const float* logits, size_t vocab,
                  const SamplingConfig&, std::span<const int32_t> context_ids, uint64_t seed,
                  uint64_t stream, uint64_t step, SamplingScratch* scratch, int32_t* id,
                  float* logprob);

}  // namespace lowrank

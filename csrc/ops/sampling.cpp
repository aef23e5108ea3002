#include "ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/philox.h"

namespace lowrank {
namespace {

Status check_config(const SamplingConfig& config) {
  const auto in_unit_range = [](double x) { return x >= 0 && x <= 1; };
  if (!(config.temperature >= 0) || std::isinf(config.temperature)) {
    return error(Code::kInvalidOption, "temperature is %g, but must be 0 or a positive number",
                 config.temperature);
  }
  if (!in_unit_range(config.top_p))
    return error(Code::kInvalidOption, "topP is %g, but must be from 0 to 1", config.top_p);
  if (!in_unit_range(config.min_p))
    return error(Code::kInvalidOption, "minP is %g, but must be from 0 to 1", config.min_p);
  if (!(config.repetition_penalty > 0) || std::isinf(config.repetition_penalty)) {
    return error(Code::kInvalidOption, "repetitionPenalty is %g, but must be a positive number",
                 config.repetition_penalty);
  }
  return {};
}

// Logits that are looked at together, in L1.
constexpr size_t kBlock = 2048;

Status non_finite(const float* logits, size_t vocab) {
  for (size_t id = 0; id < vocab; ++id) {
    if (std::isnan(logits[id]) || logits[id] == std::numeric_limits<float>::infinity()) {
      return error(Code::kNonFinite, "the logit of token %zu is %g", id,
                   static_cast<double>(logits[id]));
    }
  }
  return error(Code::kNonFinite, "none of %zu logits is above -infinity", vocab);
}

struct RowSummary {
  float largest;
  double log_sum;  // log Σ exp(logit)
};

// -infinity is a token that cannot be drawn; anything else that is not finite is an error.
Status summarise(const ElementwiseKernels& kernels, const float* logits, size_t vocab,
                 RowSummary* summary) {
  SoftmaxState state{0, std::numeric_limits<float>::lowest(), 1, 0};
  alignas(64) float block[kBlock];
  summary->largest = -std::numeric_limits<float>::infinity();
  for (size_t begin = 0; begin < vocab; begin += kBlock) {
    const size_t length = std::min(kBlock, vocab - begin);
    std::memcpy(block, logits + begin, length * sizeof(float));
    kernels.softmax_block(block, length, &state);
    summary->largest = std::max(summary->largest, state.largest);
  }
  if (std::isinf(summary->largest) || std::isnan(state.sum)) return non_finite(logits, vocab);
  summary->log_sum = static_cast<double>(state.shift) + std::log(state.sum);
  return {};
}

void penalise(const float* logits, size_t vocab, double penalty,
              std::span<const int32_t> context_ids, float* scores) {
  const float factor = static_cast<float>(penalty);
  for (const int32_t id : context_ids) {
    if (id < 0 || static_cast<size_t>(id) >= vocab) continue;
    const float score = logits[id];  // not scores[id]: a token that occurs twice is penalised once
    scores[id] = score < 0 ? score * factor : score / factor;
  }
}

// The k-th largest score, or -infinity where k is off or all are to be kept.
float top_k_threshold(std::span<const float> scores, size_t k, std::vector<float>* ranked) {
  if (k == 0 || k >= scores.size()) return -std::numeric_limits<float>::infinity();
  ranked->assign(scores.begin(), scores.end());
  const auto kth = ranked->begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(ranked->begin(), kth, ranked->end(), std::greater<>());
  return *kth;
}

// Transformers sorts upwards (stably) and drops tokens while the sum of probabilities so far is at
// most 1 - p, in fp32. Seen from above: tokens are kept while one minus the sum of the larger ones
// exceeds 1 - p. Only as many are sorted as that needs.
void keep_top_p(double p, std::vector<Candidate>* candidates) {
  const auto above = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.id > b.id;
  };
  const float dropped_mass = static_cast<float>(1.0 - p);
  double larger = 0;
  size_t kept = 0, sorted = 0;
  for (; kept < candidates->size(); ++kept) {
    if (kept == sorted) {
      const auto begin = candidates->begin() + static_cast<ptrdiff_t>(sorted);
      sorted = std::min(candidates->size(), std::max<size_t>(64, 4 * sorted));
      std::partial_sort(begin, candidates->begin() + static_cast<ptrdiff_t>(sorted),
                        candidates->end(), above);
    }
    if (kept > 0 && static_cast<float>(1.0 - larger) <= dropped_mass) break;
    larger += (*candidates)[kept].probability;
  }
  candidates->resize(kept);
}

// Makes the probabilities sum to one.
void normalise(std::vector<Candidate>* candidates) {
  double sum = 0;
  for (const Candidate& candidate : *candidates) sum += candidate.probability;
  for (Candidate& candidate : *candidates) candidate.probability /= sum;
}

// Uniform in [0, 1) with 53 bits.
double uniform(uint64_t seed, uint64_t stream, uint64_t step) {
  const auto words =
      philox4x32({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 seed);
  return static_cast<double>((uint64_t{words[1]} << 32 | words[0]) >> 11) * 0x1p-53;
}

}  // namespace

Status sampling_candidates(const ElementwiseKernels& kernels, const float* logits, size_t vocab,
                           const SamplingConfig& config, std::span<const int32_t> context_ids,
                           SamplingScratch* scratch) {
  LR_RETURN_IF_ERROR(check_config(config));
  RowSummary summary;
  LR_RETURN_IF_ERROR(summarise(kernels, logits, vocab, &summary));
  scratch->log_sum = summary.log_sum;
  std::span<const float> scores(logits, vocab);
  if (config.repetition_penalty != 1) {
    scratch->scores.assign(logits, logits + vocab);
    penalise(logits, vocab, config.repetition_penalty, context_ids, scratch->scores.data());
    scores = scratch->scores;
    LR_RETURN_IF_ERROR(summarise(kernels, scores.data(), vocab, &summary));
  }

  std::vector<Candidate>& candidates = scratch->candidates;
  candidates.clear();
  if (config.temperature == 0) {
    const auto first = std::find(scores.begin(), scores.end(), summary.largest);
    candidates.push_back({static_cast<int32_t>(first - scores.begin()), summary.largest, 1});
    return {};
  }
  // A positive temperature changes no order, so the k-th is found before it divides.
  const float threshold = top_k_threshold(scores, config.top_k, &scratch->ranked);
  for (size_t id = 0; id < vocab; ++id) {
    if (scores[id] < threshold || std::isinf(scores[id])) continue;
    const double below_largest = static_cast<double>(scores[id]) - static_cast<double>(summary.largest);
    candidates.push_back(
        {static_cast<int32_t>(id), scores[id], std::exp(below_largest / config.temperature)});
  }
  normalise(&candidates);
  if (config.top_p < 1) {
    keep_top_p(config.top_p, &candidates);
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  if (config.min_p > 0) {
    const auto most_likely = std::max_element(
        candidates.begin(), candidates.end(),
        [](const Candidate& a, const Candidate& b) { return a.probability < b.probability; });
    const double floor = config.min_p * most_likely->probability;
    std::erase_if(candidates,
                  [&](const Candidate& candidate) { return candidate.probability < floor; });
  }
  normalise(&candidates);
  return {};
}

Status sample_row(const ElementwiseKernels& kernels, const float* logits, size_t vocab,
                  const SamplingConfig& config, std::span<const int32_t> context_ids, uint64_t seed,
                  uint64_t stream, uint64_t step, SamplingScratch* scratch, int32_t* id,
                  float* logprob) {
  LR_RETURN_IF_ERROR(sampling_candidates(kernels, logits, vocab, config, context_ids, scratch));
  const std::vector<Candidate>& candidates = scratch->candidates;
  const double drawn = uniform(seed, stream, step);
  double below = 0;
  *id = candidates.back().id;  // where rounding leaves the sum below `drawn`
  for (const Candidate& candidate : candidates) {
    below += candidate.probability;
    if (drawn < below) {
      *id = candidate.id;
      break;
    }
  }
  *logprob = static_cast<float>(static_cast<double>(logits[*id]) - scratch->log_sum);
  return {};
}

}  // namespace lowrank

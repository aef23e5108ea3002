#include "model/generator.h"

#include "ops/cpu/kernels.h"

namespace lowrank {

Result<std::shared_ptr<Generator>> Generator::create(Context& context, std::shared_ptr<Model> model, size_t rows, size_t capacity) {
  if (rows == 0 || capacity == 0) {
    return error(Code::kInvalidOption, "a cache of %zu rows of %zu tokens; expected at least one of each", rows, capacity);
  }
  LR_RETURN_IF_ERROR(model->ready());
  return std::shared_ptr<Generator>(new Generator(context, std::move(model), rows, capacity));
}

Status Generator::decode(std::span<const int32_t> ids, std::span<const int32_t> starts, const SamplingConfig& sampling, uint64_t seed,
                         uint64_t step, DrawnTokens* drawn) {
  const size_t rows = cache_.rows(), vocab = model_->config().vocab;
  if (starts.size() != rows + 1) {
    return error(Code::kShapeMismatch, "%zu starts for %zu rows; expected one more than rows", starts.size(), rows);
  }
  std::vector<int32_t> positions, row_starts{0};
  std::vector<size_t> active, last_tokens;
  for (size_t row = 0; row < rows; ++row) {
    for (int32_t t = starts[row]; t < starts[row + 1]; ++t) {
      positions.push_back(static_cast<int32_t>(cache_.length(row)) + t - starts[row]);
    }
    if (starts[row + 1] <= starts[row]) continue;
    active.push_back(row);
    row_starts.push_back(starts[row + 1]);
    last_tokens.push_back(static_cast<size_t>(starts[row + 1]) - 1);
  }
  const Batch batch{ids, positions, row_starts};
  LR_RETURN_IF_ERROR(check_batch(model_->config(), batch));
  LR_RETURN_IF_ERROR(cache_.prepare());
  if (plan_.revision != model_->revision()) {
    plan_ = make_plan(*model_, false, [](const Parameter&) -> float* { return nullptr; });
  }
  LR_RETURN_IF_ERROR(decoder_.forward_cached(plan_, batch, active, &cache_, &workspace_));
  LR_RETURN_IF_ERROR(logits_.reserve(active.size() * vocab * sizeof(float), "logits"));
  LR_RETURN_IF_ERROR(decoder_.logits(plan_, last_tokens, &workspace_, logits_.as<float>()));

  for (const size_t row : active) {
    history_[row].insert(history_[row].end(), ids.begin() + starts[row], ids.begin() + starts[row + 1]);
    cache_.grow(row, static_cast<size_t>(starts[row + 1] - starts[row]));
  }
  return draw(active, sampling, seed, step, drawn);
}

// Row rows[i]'s token comes from the i-th row of logits.
Status Generator::draw(std::span<const size_t> rows, const SamplingConfig& sampling, uint64_t seed, uint64_t step, DrawnTokens* drawn) {
  const size_t vocab = model_->config().vocab;
  drawn->ids.assign(cache_.rows(), -1);
  drawn->logprobs.assign(cache_.rows(), 0.0f);
  sampling_scratch_.resize(context_.pool.threads());
  std::vector<Status> statuses(rows.size());
  context_.pool.parallel(rows.size(), [&](size_t i, size_t worker) {
    const size_t row = rows[i];
    statuses[i] = sample_row(context_.kernels.elementwise, logits_.as<float>() + i * vocab, vocab, sampling, history_[row], seed, row, step,
                             &sampling_scratch_[worker], &drawn->ids[row], &drawn->logprobs[row]);
  });
  for (Status& status : statuses) LR_RETURN_IF_ERROR(std::move(status));
  return {};
}

}  // namespace lowrank

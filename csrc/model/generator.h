// Generation: new tokens of some rows run through the model over a KV cache, and one next token is drawn for each.
#pragma once

#include <memory>
#include <vector>

#include "model/decoder.h"
#include "ops/sampling.h"

namespace lowrank {

struct DrawnTokens {
  std::vector<int32_t> ids;       // per row; -1 where the row had no new tokens
  std::vector<float> logprobs;    // log-softmax of the raw logits at that id
};

class Generator {
 public:
  static Result<std::shared_ptr<Generator>> create(Context&, std::shared_ptr<Model>, size_t rows, size_t capacity);

  // Row r's new tokens are ids[starts[r]] to ids[starts[r + 1]]. `step` numbers the draw: with the seed and the row it makes the draw's
  // random number. kShapeMismatch where a row would outgrow the cache.
  Status decode(std::span<const int32_t> ids, std::span<const int32_t> starts, const SamplingConfig&, uint64_t seed, uint64_t step,
                DrawnTokens*);

 private:
  Generator(Context& context, std::shared_ptr<Model> model, size_t rows, size_t capacity)
      : model_(std::move(model)),
        context_{.pool = context.pool, .kernels = context.kernels, .compute = model_->compute(), .decoding = true},
        decoder_(context_, model_->config()),
        cache_(model_->config(), rows, capacity),
        history_(rows) {}

  Status draw(std::span<const size_t> rows, const SamplingConfig&, uint64_t seed, uint64_t step, DrawnTokens*);

  std::shared_ptr<Model> model_;
  Context context_;
  Decoder decoder_;
  KvCache cache_;
  Workspace workspace_;
  ModelPlan plan_;
  Buffer logits_;
  std::vector<SamplingScratch> sampling_scratch_;  // of each worker
  std::vector<std::vector<int32_t>> history_;  // each row's tokens so far, for the repetition penalty
};

}  // namespace lowrank

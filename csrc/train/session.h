// One training run's native state: gradients, AdamW moments and the workspace of a model's trained parameters.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace lowrank {

struct SessionOptions {
  size_t max_tokens = 0;        // of a micro-batch; more are taken, at the cost of growing the workspace
  Retention keep = Mode::kTrain;
  std::vector<std::string> no_decay;   // parameters without weight decay
};

struct UpdateOptions {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  float max_grad_norm;          // 0: no clipping
};

struct UpdateResult {
  double grad_norm = 0;         // before clipping
  bool skipped = false;         // the norm was not finite: nothing was updated
};

class Session {
 public:
  // Takes the parameters that are trainable now, and the model's compute type. kInvalidOption where there are none.
  static Result<std::shared_ptr<Session>> create(Context&, std::shared_ptr<Model>, SessionOptions);

  // Adds grad_scale · d(Σ nll) to the gradients. (seed, step, micro) choose the dropout masks.
  Status accumulate(const Batch&, std::span<const int32_t> targets, float grad_scale, uint64_t seed, uint64_t step, uint64_t micro, Loss*);
  // Clips, updates and zeroes the gradients.
  Status update(const UpdateOptions&, UpdateResult*);
  void zero_gradients();

  struct State {
    const Parameter* parameter;
    float *gradient, *m, *v;
    bool decay;
  };
  // kInvalidOption where `name` is not trained.
  Result<const State*> find(const std::string& name) const;

  uint64_t optimizer_step() const { return optimizer_step_; }
  void set_optimizer_step(uint64_t step) { optimizer_step_ = step; }
  std::map<std::string, size_t> plan() const;

  // What a session would hold for these options, by component, before anything is allocated.
  static std::map<std::string, size_t> estimate(const Context&, const Model&, size_t max_tokens, Retention keep);

 private:
  Session(Context& context, std::shared_ptr<Model> model, SessionOptions options);
  float* gradient_of(const Parameter&) const;

  Context context_;
  std::shared_ptr<Model> model_;
  SessionOptions options_;
  Decoder decoder_;
  Workspace workspace_;
  ModelPlan plan_;
  Buffer gradients_, moments_;
  std::vector<State> states_;
  std::vector<const State*> state_by_id_;
  uint64_t optimizer_step_ = 0;
};

}  // namespace lowrank

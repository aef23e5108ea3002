// One training run's native state: gradients, optimizer and the workspace of a model's trained parameters.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "train/optimizer.h"

namespace lowrank {

struct SessionOptions {
  size_t max_tokens = 0;        // of a micro-batch; more are taken, at the cost of growing the workspace
  Retention keep = keep_all();
  std::vector<std::string> no_decay;   // parameters without weight decay
  uint64_t seed = 0;            // of the random rounding of bf16 parameters
  OptimizerOptions optimizer;
};

struct UpdateResult {
  double grad_norm = 0;         // before clipping
  bool skipped = false;         // the norm was not finite: nothing was updated
};

class Session {
 public:
  // Takes the parameters that are trainable now, adapters' or the model's own, and the model's compute type. kInvalidOption where there
  // are none.
  static Result<std::shared_ptr<Session>> create(Context&, std::shared_ptr<Model>, SessionOptions);

  // Adds grad_scale · d(Σ nll) to the gradients. (seed, step, micro) choose the dropout masks.
  Status accumulate(const Batch&, std::span<const int32_t> targets, float grad_scale, uint64_t seed, uint64_t step, uint64_t micro, Loss*);
  // Loss without gradients, dropout off, in the memory of the training: evaluating in between takes no more.
  Status evaluate(const Batch&, std::span<const int32_t> targets, Loss*);
  // Clips, updates and zeroes the gradients.
  Status update(const UpdateOptions&, UpdateResult*);
  void zero_gradients();

  // kInvalidOption where `name` is not trained.
  Result<const Trained*> find(const std::string& name) const;

  // The optimizer's states, named `${state}.${parameter}`.
  struct NamedState {
    std::string name;
    size_t parameter, state;  // Optimizer's indices
    StateTensor tensor;
  };
  const std::vector<NamedState>& optimizer_states() const { return optimizer_states_; }
  // kInvalidOption where there is none of that name.
  Result<const NamedState*> find_state(const std::string& name) const;
  void read_state(const NamedState& state, void* to) const { optimizer_->read_state(state.parameter, state.state, to); }
  void write_state(const NamedState& state, const void* from) { optimizer_->write_state(state.parameter, state.state, from); }

  // Bytes of the gradients of what is trained in the model now.
  static size_t gradient_bytes(const Model&);

  uint64_t optimizer_step() const { return optimizer_step_; }
  void set_optimizer_step(uint64_t step) { optimizer_step_ = step; }

 private:
  Session(Context& context, std::shared_ptr<Model> model, SessionOptions options);
  void* gradient_of(const Parameter&) const;
  // Whether what was trainable when this was made is so now, and lies in the same types.
  Status check_trained() const;
  void name_states();

  Context context_;
  std::shared_ptr<Model> model_;
  SessionOptions options_;
  Decoder decoder_;
  Workspace workspace_;
  ModelPlan plan_;
  Buffer gradients_;
  std::vector<Trained> trained_;
  std::vector<void*> gradient_by_id_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<NamedState> optimizer_states_;
  uint64_t optimizer_step_ = 0;
};

}  // namespace lowrank

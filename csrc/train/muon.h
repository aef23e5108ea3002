// Muon as a session's optimizer, of the matrices that are hidden layers' (Parameter::hidden); all else is AdamW's. ops/muon.h has the formulas.
#pragma once

#include "core/buffer.h"
#include "ops/muon.h"
#include "train/optimizer.h"
#include "train/segmented_optimizer.h"

namespace lowrank {

class Muon final : public Optimizer {
 public:
  Status initialize(const OptimizerOptions&, std::span<const Trained>);
  // Of states and of the memory that an update works in.
  static size_t bytes(std::span<const Parameter* const>);

  std::vector<StateTensor> states(size_t parameter) const override;
  void read_state(size_t parameter, size_t state, void* to) const override;
  void write_state(size_t parameter, size_t state, const void* from) override;
  Status update(Context&, const UpdateOptions&, double grad_scale, uint64_t step, uint64_t seed) override;

 private:
  // Where a parameter's state is.
  struct Place {
    float* momentum;  // null: AdamW's
    size_t other;     // AdamW's index of it
  };

  std::vector<Trained> trained_;
  std::vector<Place> places_;
  MuonRatio ratio_ = MuonRatio::kMatchRmsAdamW;
  std::unique_ptr<SegmentedOptimizer> adamw_;
  Buffer momentum_;
  MuonScratch scratch_;
};

}  // namespace lowrank

// Adafactor as a session's optimizer; ops/adafactor.h has the formulas. Of a matrix it keeps a number for each row and column.
#pragma once

#include "core/buffer.h"
#include "train/optimizer.h"

namespace lowrank {

class Adafactor final : public Optimizer {
 public:
  Status initialize(std::span<const Trained>);
  static size_t state_bytes(const Parameter&);

  std::vector<StateTensor> states(size_t parameter) const override;
  void read_state(size_t parameter, size_t state, void* to) const override;
  void write_state(size_t parameter, size_t state, const void* from) override;
  Status update(Context&, const UpdateOptions&, double grad_scale, uint64_t step, uint64_t seed) override;

 private:
  float* state(size_t parameter, size_t state) const;

  std::vector<Trained> trained_;
  std::vector<float*> values_;  // of each parameter: rows, then columns; or one of each element
  Buffer memory_;
};

}  // namespace lowrank

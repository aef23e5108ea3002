#include "ops/sgd.h"

#include "train/elementwise_optimizers.h"

namespace lowrank {
namespace {

class Sgd final : public SegmentedOptimizer {
 public:
  Sgd() : SegmentedOptimizer(sgd_states()) {}

 private:
  void begin_update(const UpdateOptions& options, double grad_scale, uint64_t) override {
    const auto scale = static_cast<float>(grad_scale);
    decaying_ = sgd_factors(options.learning_rate, options.momentum, options.weight_decay, scale);
    plain_ = sgd_factors(options.learning_rate, options.momentum, 0, scale);
  }
  void update_segment(const OptimizerKernels& kernels, const Segment& s) const override {
    kernels.sgd(s.decay ? decaying_ : plain_, s.n, s.gradient, s.parameter, s.values[0]);
  }

  SgdFactors decaying_{}, plain_{};
};

}  // namespace

std::span<const ElementState> sgd_states() {
  static const ElementState states[] = {{"momentum", nullptr, nullptr}};
  return states;
}

std::unique_ptr<SegmentedOptimizer> make_sgd() { return std::make_unique<Sgd>(); }

}  // namespace lowrank

#include "ops/lion.h"

#include "ops/dynamic_map.h"
#include "train/elementwise_optimizers.h"

namespace lowrank {
namespace {

class Lion final : public SegmentedOptimizer {
 public:
  Lion() : SegmentedOptimizer(lion_states()) {}

 private:
  void begin_update(const UpdateOptions& options, double grad_scale, uint64_t) override {
    LionConfig config{options.learning_rate, options.beta1, options.beta2, options.weight_decay, static_cast<float>(grad_scale)};
    decaying_ = lion_factors(config);
    config.weight_decay = 0;
    plain_ = lion_factors(config);
  }
  void update_segment(const OptimizerKernels& kernels, const Segment& s) const override {
    const LionFactors& factors = s.decay ? decaying_ : plain_;
    if (s.coded) {
      kernels.lion_coded(factors, s.n, s.gradient, s.parameter, s.codes[0]);
    } else {
      kernels.lion(factors, s.n, s.gradient, s.parameter, s.values[0]);
    }
  }

  LionFactors decaying_{}, plain_{};
};

}  // namespace

std::span<const ElementState> lion_states() {
  static const ElementState states[] = {{"m", "m_absmax", &dynamic_code_map(true)}};
  return states;
}

std::unique_ptr<SegmentedOptimizer> make_lion() { return std::make_unique<Lion>(); }

}  // namespace lowrank

#include "ops/adamw.h"

#include "ops/dynamic_map.h"
#include "train/elementwise_optimizers.h"

namespace lowrank {
namespace {

class AdamW final : public SegmentedOptimizer {
 public:
  AdamW() : SegmentedOptimizer(adamw_states()) {}

 private:
  void begin_update(const UpdateOptions& options, double grad_scale, uint64_t step) override {
    AdamWConfig config{options.learning_rate, options.beta1, options.beta2, options.epsilon, options.weight_decay, step,
                       static_cast<float>(grad_scale)};
    decaying_ = adamw_factors(config);
    config.weight_decay = 0;
    plain_ = adamw_factors(config);
  }
  void update_segment(const OptimizerKernels& kernels, const Segment& s) const override {
    const AdamWFactors& factors = s.decay ? decaying_ : plain_;
    if (s.coded) {
      kernels.adamw_coded(factors, s.n, s.gradient, s.parameter, s.codes[0], s.codes[1]);
    } else {
      kernels.adamw(factors, s.n, s.gradient, s.parameter, s.values[0], s.values[1]);
    }
  }

  AdamWFactors decaying_{}, plain_{};
};

}  // namespace

std::span<const ElementState> adamw_states() {
  static const ElementState states[] = {{"m", "m_absmax", &dynamic_code_map(true)}, {"v", "v_absmax", &dynamic_code_map(false)}};
  return states;
}

std::unique_ptr<SegmentedOptimizer> make_adamw() { return std::make_unique<AdamW>(); }

}  // namespace lowrank

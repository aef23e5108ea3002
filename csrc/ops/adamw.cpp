#include "ops/adamw.h"

#include <cmath>
#include <vector>

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {

AdamWFactors adamw_factors(const AdamWConfig& config) {
  const double step = static_cast<double>(config.step);
  return {
      .grad_scale = config.grad_scale,
      .decay = static_cast<float>(1.0 - config.lr * config.weight_decay),
      .one_minus_beta1 = static_cast<float>(1.0 - config.beta1),
      .beta2 = static_cast<float>(config.beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - config.beta2),
      .root_correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(config.beta2, step))),
      .eps = static_cast<float>(config.eps),
      .step_size = static_cast<float>(config.lr / (1.0 - std::pow(config.beta1, step))),
  };
}

Status adamw_update(Context& context, const AdamWConfig& config, size_t n, const float* g, float* p,
                    float* m, float* v) {
  const OpTimer timer(context, OpKind::kOptimizer);
  if (config.step == 0)
    return error(Code::kInvalidOption, "step is 0, but AdamW counts its updates from 1");
  const AdamWFactors factors = adamw_factors(config);
  for_row_chunks(context, n, 1, [&](size_t begin, size_t end) {
    context.kernels.optimizer.adamw(factors, end - begin, g + begin, p + begin, m + begin,
                                    v + begin);
  });
  return {};
}

Status grad_norm_squared(Context& context, std::span<const GradientSpan> gradients, double* sum) {
  const OpTimer timer(context, OpKind::kOptimizer);
  std::vector<GradientSpan> blocks;
  for (const GradientSpan& gradient : gradients) {
    const auto* data = static_cast<const unsigned char*>(gradient.data);
    for (size_t begin = 0; begin < gradient.n; begin += kChunkElements) {
      blocks.push_back({data + begin * dtype_info(gradient.type).block_bytes,
                        std::min(kChunkElements, gradient.n - begin), gradient.type});
    }
  }
  std::vector<double> sums(blocks.size());
  const ElementwiseKernels& kernels = context.kernels.elementwise;
  // Many tensors are smaller than a chunk (LoRA's are), so several blocks make one.
  constexpr size_t kBlocksPerChunk = 4;
  context.pool.parallel(ceil_div(blocks.size(), kBlocksPerChunk), [&](size_t chunk, size_t) {
    const size_t end = std::min(blocks.size(), (chunk + 1) * kBlocksPerChunk);
    for (size_t i = chunk * kBlocksPerChunk; i < end; ++i) {
      const GradientSpan& block = blocks[i];
      sums[i] = block.type == DType::kBF16
                    ? kernels.sum_of_squares_bf16(static_cast<const uint16_t*>(block.data), block.n)
                    : kernels.sum_of_squares(static_cast<const float*>(block.data), block.n);
    }
  });
  *sum = 0;
  for (double block_sum : sums) *sum += block_sum;
  return {};
}

}  // namespace lowrank

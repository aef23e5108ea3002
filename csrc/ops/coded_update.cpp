#include "ops/coded_update.h"

#include <cmath>

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {
namespace {

Status check_finite(Context& context, size_t n, const float* g) {
  double squares = 0;
  const GradientSpan gradient(g, n, DType::kF32);
  LR_RETURN_IF_ERROR(grad_norm_squared(context, {&gradient, 1}, &squares));
  return std::isfinite(squares) ? Status() : error(Code::kNonFinite, "the gradient has values that are not finite");
}

}  // namespace

Status adamw_update_coded(Context& context, const AdamWConfig& config, size_t n, const float* g, float* p, const CodedState& m,
                          const CodedState& v) {
  if (config.step == 0) return error(Code::kInvalidOption, "step is 0, but AdamW counts its updates from 1");
  LR_RETURN_IF_ERROR(check_finite(context, n, g));
  const OpTimer timer(context, OpKind::kOptimizer);
  const AdamWFactors factors = adamw_factors(config);
  static_assert(kChunkElements % kCodeBlock == 0);
  for_row_chunks(context, n, 1, [&](size_t begin, size_t end) {
    context.kernels.optimizer.adamw_coded(factors, end - begin, g + begin, p + begin, from_element(m, begin), from_element(v, begin));
  });
  return {};
}

Status lion_update_coded(Context& context, const LionConfig& config, size_t n, const float* g, float* p, const CodedState& m) {
  LR_RETURN_IF_ERROR(check_finite(context, n, g));
  const OpTimer timer(context, OpKind::kOptimizer);
  const LionFactors factors = lion_factors(config);
  for_row_chunks(context, n, 1, [&](size_t begin, size_t end) {
    context.kernels.optimizer.lion_coded(factors, end - begin, g + begin, p + begin, from_element(m, begin));
  });
  return {};
}

}  // namespace lowrank

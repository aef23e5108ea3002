#include "ops/rmsnorm.h"

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {
namespace {

// Channels of dw that one chunk sums over all tokens: a few cache lines of each row.
constexpr size_t kGradWeightChannels = 64;

}  // namespace

Status rmsnorm_forward(Context& context, const float* x, const float* w, float eps, size_t tokens,
                       size_t channels, Rows y, float* inv_rms) {
  const OpTimer timer(context, OpKind::kNorm);
  for_row_chunks(context, tokens, channels, [&](size_t begin, size_t end) {
    context.kernels.elementwise.rmsnorm_forward(x + begin * channels, w, eps, end - begin, channels,
                                                y.at(begin, 0).data, y.stride, y.bf16(),
                                                inv_rms + begin);
  });
  return {};
}

Status rmsnorm_backward(Context& context, const float* x, const float* w, const float* inv_rms,
                        const float* dy, size_t tokens, size_t channels, float* dx, bool accumulate,
                        float* dw, uint16_t* rounded) {
  const OpTimer timer(context, OpKind::kNorm);
  if (dw != nullptr && tokens > 0) {  // before dx, which may overwrite dy
    for_row_chunks(context, ceil_div(channels, kGradWeightChannels), tokens * kGradWeightChannels,
                   [&](size_t begin, size_t end) {
                     context.kernels.elementwise.rmsnorm_grad_weight(
                         x, inv_rms, dy, tokens, channels, begin * kGradWeightChannels,
                         std::min(channels, end * kGradWeightChannels), dw);
                   });
  }
  for_row_chunks(context, tokens, channels, [&](size_t begin, size_t end) {
    const size_t offset = begin * channels;
    context.kernels.elementwise.rmsnorm_backward(x + offset, w, inv_rms + begin, dy + offset,
                                                 end - begin, channels, dx + offset, accumulate,
                                                 rounded == nullptr ? nullptr : rounded + offset);
  });
  return {};
}

}  // namespace lowrank

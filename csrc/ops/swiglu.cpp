#include "ops/swiglu.h"

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {

Status swiglu_forward(Context& context, ConstRows g, ConstRows u, size_t tokens, size_t ffn,
                      Rows h) {
  const OpTimer timer(context, OpKind::kSwiglu);
  for_row_chunks(context, tokens, ffn, [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      context.kernels.elementwise.swiglu_forward(g.at(t, 0).data, u.at(t, 0).data, g.bf16(), ffn,
                                                 h.at(t, 0).data);
    }
  });
  return {};
}

Status swiglu_backward(Context& context, ConstRows g, ConstRows u, ConstRows dh, size_t tokens,
                       size_t ffn, Rows dg, Rows du) {
  const OpTimer timer(context, OpKind::kSwiglu);
  for_row_chunks(context, tokens, ffn, [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      context.kernels.elementwise.swiglu_backward(g.at(t, 0).data, u.at(t, 0).data,
                                                  dh.at(t, 0).data, g.bf16(), ffn,
                                                  dg.at(t, 0).data, du.at(t, 0).data);
    }
  });
  return {};
}

}  // namespace lowrank

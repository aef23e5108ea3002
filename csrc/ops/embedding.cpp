#include "ops/embedding.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {
namespace {

Status check_ids(const int32_t* ids, size_t tokens, size_t rows) {
  for (size_t token = 0; token < tokens; ++token) {
    if (ids[token] < 0 || static_cast<size_t>(ids[token]) >= rows) {
      return error(Code::kShapeMismatch, "token %zu has id %d, but the embedding has rows 0 to %zu",
                   token, ids[token], rows == 0 ? 0 : rows - 1);
    }
  }
  return {};
}

}  // namespace

Status embedding_forward(Context& context, const Matrix& table, const int32_t* ids, size_t tokens,
                         float* x) {
  const OpTimer timer(context, OpKind::kEmbedding);
  LR_RETURN_IF_ERROR(check_ids(ids, tokens, table.rows));
  const size_t block_elements = dtype_info(table.type).block_elements;
  if (table.cols % block_elements != 0) {
    return error(Code::kShapeMismatch,
                 "the embedding has rows of %zu elements, but %s comes in blocks of %zu",
                 table.cols, dtype_info(table.type).name, block_elements);
  }
  for_row_chunks(context, tokens, table.cols, [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; ++token) {
      context.kernels.gemm.dequantize(table, static_cast<size_t>(ids[token]), 1, 0, table.cols,
                                      x + token * table.cols, table.cols);
    }
  });
  return {};
}

// Each chunk owns a range of channels and walks the places of each token in order, so rows that occur often stay deterministic.
Status embedding_backward(Context& context, const int32_t* ids, size_t tokens, const float* dx,
                          size_t rows, size_t cols, Rows dtable) {
  const OpTimer timer(context, OpKind::kEmbedding);
  LR_RETURN_IF_ERROR(check_ids(ids, tokens, rows));
  constexpr size_t kChannels = 64;
  const ElementwiseKernels& kernels = context.kernels.elementwise;
  std::vector<size_t> places(tokens);
  std::iota(places.begin(), places.end(), size_t{0});
  if (dtable.bf16()) {
    std::stable_sort(places.begin(), places.end(), [&](size_t a, size_t b) { return ids[a] < ids[b]; });
  }
  context.pool.parallel(ceil_div(cols, kChannels), [&](size_t chunk, size_t) {
    const size_t first = chunk * kChannels, count = std::min(cols - first, kChannels);
    const auto gradient_at = [&](size_t place) { return dx + places[place] * cols + first; };
    for (size_t place = 0; place < tokens;) {
      const int32_t id = ids[places[place]];
      void* const row = dtable.at(static_cast<size_t>(id), first).data;
      if (!dtable.bf16()) {
        kernels.add(gradient_at(place++), count, static_cast<float*>(row));
        continue;
      }
      float sum[kChannels] = {};
      for (; place < tokens && ids[places[place]] == id; ++place) kernels.add(gradient_at(place), count, sum);
      kernels.add_bf16(sum, count, static_cast<uint16_t*>(row));
    }
  });
  return {};
}

}  // namespace lowrank

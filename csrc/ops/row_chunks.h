// Splitting row-wise work that is bound by memory over the pool: chunks of whole rows whose size
// depends on the row's length alone, so that results do not depend on the number of threads and
// small inputs do not fork.
#pragma once

#include <algorithm>

#include "core/checked.h"
#include "core/context.h"

namespace lowrank {

// About 10 µs of one core's memory bandwidth: ten times what a fork costs.
constexpr size_t kChunkElements = size_t{1} << 15;

// f(begin, end) over [0, rows) in chunks of about kChunkElements / row_elements rows.
template <class F>
void for_row_chunks(Context& context, size_t rows, size_t row_elements, const F& f) {
  const size_t chunk_rows = std::max<size_t>(1, kChunkElements / std::max<size_t>(1, row_elements));
  context.pool.parallel(ceil_div(rows, chunk_rows), [&](size_t chunk, size_t) {
    f(chunk * chunk_rows, std::min(rows, (chunk + 1) * chunk_rows));
  });
}

}  // namespace lowrank

#include "ops/round_rows.h"

#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"

namespace lowrank {

void round_rows(Context& context, ConstRows from, size_t rows, size_t columns, uint16_t* to) {
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      context.kernels.elementwise.to_bf16(static_cast<const float*>(from.at(row, 0).data), columns,
                                          to + row * columns);
    }
  });
}

}  // namespace lowrank

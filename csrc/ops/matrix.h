// A weight as it lies in memory: row-major rows of a storage type, never converted as a whole.
#pragma once

#include "core/dtype.h"

namespace lowrank {

struct Matrix {
  const void* data = nullptr;
  DType type = DType::kF32;
  size_t rows = 0, cols = 0;
  size_t stride = 0;  // bytes from one row to the next

  const unsigned char* row(size_t index) const {
    return static_cast<const unsigned char*>(data) + index * stride;
  }
};

inline Matrix matrix(const void* data, DType type, size_t rows, size_t cols) {
  return {data, type, rows, cols, row_bytes(type, cols)};
}

}  // namespace lowrank

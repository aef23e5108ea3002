// Rows of activations in fp32 or in bf16: what ops read and write between the large products. A bf16 value
// is rounded to nearest even where it is stored and widened where it is loaded; arithmetic stays fp32.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"

namespace lowrank {

// Row t begins at element t * stride. The type is kF32 or kBF16.
struct ConstRows {
  const void* data = nullptr;
  size_t stride = 0;
  DType type = DType::kF32;

  bool bf16() const { return type == DType::kBF16; }
  size_t element_bytes() const { return bf16() ? sizeof(uint16_t) : sizeof(float); }
  ConstRows at(size_t row, size_t column) const {
    return {static_cast<const unsigned char*>(data) + (row * stride + column) * element_bytes(),
            stride, type};
  }
};

struct Rows {
  void* data = nullptr;
  size_t stride = 0;
  DType type = DType::kF32;

  bool bf16() const { return type == DType::kBF16; }
  size_t element_bytes() const { return bf16() ? sizeof(uint16_t) : sizeof(float); }
  Rows at(size_t row, size_t column) const {
    return {static_cast<unsigned char*>(data) + (row * stride + column) * element_bytes(), stride,
            type};
  }
  operator ConstRows() const { return {data, stride, type}; }  // NOLINT(google-explicit-constructor)
};

}  // namespace lowrank

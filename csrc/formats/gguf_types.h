// GGUF's value types and ggml's tensor types, by their numbers in a file (ggml.h, gguf.h of
// ggml-org/ggml).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace lowrank {

enum class GgufValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};
inline constexpr uint32_t kGgufValueTypes = 13;

// Bytes of a scalar; 0 for strings and arrays, whose length lies in the file.
inline constexpr size_t kGgufScalarBytes[kGgufValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

struct GgmlType {
  uint32_t id;
  const char* name;
  size_t block_elements, block_bytes;
  DType dtype;
};

// Types with DType::kOpaque have a known size, so that the rest of the file can be used, but are
// not unpacked here.
inline constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", 1, 4, DType::kF32},
    {1, "F16", 1, 2, DType::kF16},
    {2, "Q4_0", 32, 18, DType::kQ4_0},
    {3, "Q4_1", 32, 20, DType::kQ4_1},
    {6, "Q5_0", 32, 22, DType::kQ5_0},
    {7, "Q5_1", 32, 24, DType::kQ5_1},
    {8, "Q8_0", 32, 34, DType::kQ8_0},
    {9, "Q8_1", 32, 40, DType::kOpaque},
    {10, "Q2_K", 256, 84, DType::kQ2_K},
    {11, "Q3_K", 256, 110, DType::kQ3_K},
    {12, "Q4_K", 256, 144, DType::kQ4_K},
    {13, "Q5_K", 256, 176, DType::kQ5_K},
    {14, "Q6_K", 256, 210, DType::kQ6_K},
    {15, "Q8_K", 256, 292, DType::kOpaque},
    {16, "IQ2_XXS", 256, 66, DType::kOpaque},
    {17, "IQ2_XS", 256, 74, DType::kOpaque},
    {18, "IQ3_XXS", 256, 98, DType::kOpaque},
    {19, "IQ1_S", 256, 50, DType::kOpaque},
    {20, "IQ4_NL", 32, 18, DType::kIQ4_NL},
    {21, "IQ3_S", 256, 110, DType::kOpaque},
    {22, "IQ2_S", 256, 82, DType::kOpaque},
    {23, "IQ4_XS", 256, 136, DType::kIQ4_XS},
    {24, "I8", 1, 1, DType::kI8},
    {25, "I16", 1, 2, DType::kI16},
    {26, "I32", 1, 4, DType::kI32},
    {27, "I64", 1, 8, DType::kI64},
    {28, "F64", 1, 8, DType::kF64},
    {29, "IQ1_M", 256, 56, DType::kOpaque},
    {30, "BF16", 1, 2, DType::kBF16},
    {34, "TQ1_0", 256, 54, DType::kOpaque},
    {35, "TQ2_0", 256, 66, DType::kOpaque},
    {39, "MXFP4", 32, 17, DType::kOpaque},
    {40, "NVFP4", 64, 36, DType::kOpaque},
    {41, "Q1_0", 128, 18, DType::kOpaque},
};

inline const GgmlType* find_ggml_type(uint32_t id) {
  for (const GgmlType& type : kGgmlTypes) {
    if (id == type.id) return &type;
  }
  return nullptr;
}

}  // namespace lowrank

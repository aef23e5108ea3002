// safetensors' element types, in the order of the reference implementation
// (huggingface/safetensors, tensor.rs): a writer sorts tensors by it, last first, so that each lies
// at a multiple of its own size.
#pragma once

#include <cstddef>
#include <string_view>

#include "core/dtype.h"

namespace lowrank {

struct SafetensorsType {
  const char* name;
  size_t bits;
  DType dtype;
};

inline constexpr SafetensorsType kSafetensorsTypes[] = {
    {"BOOL", 8, DType::kBool},
    {"F4", 4, DType::kOpaque},
    {"F6_E2M3", 6, DType::kOpaque},
    {"F6_E3M2", 6, DType::kOpaque},
    {"U8", 8, DType::kU8},
    {"I8", 8, DType::kI8},
    {"F8_E5M2", 8, DType::kF8E5M2},
    {"F8_E4M3", 8, DType::kF8E4M3},
    {"F8_E8M0", 8, DType::kOpaque},
    {"F8_E4M3FNUZ", 8, DType::kOpaque},
    {"F8_E5M2FNUZ", 8, DType::kOpaque},
    {"I16", 16, DType::kI16},
    {"U16", 16, DType::kU16},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"U32", 32, DType::kU32},
    {"F32", 32, DType::kF32},
    {"C64", 64, DType::kOpaque},
    {"F64", 64, DType::kF64},
    {"I64", 64, DType::kI64},
    {"U64", 64, DType::kU64},
};

// The longest header that the format allows, in bytes.
inline constexpr size_t kMaxSafetensorsHeader = 100'000'000;

inline const SafetensorsType* find_safetensors_type(std::string_view name) {
  for (const SafetensorsType& type : kSafetensorsTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

}  // namespace lowrank

// Storage types of tensors: plain scalars, GGUF's block types (rows of fixed-size blocks) and three of our own.
// Block layouts follow ggml's ggml-common.h; see ops/dequantize.h for what each holds. NF4, FP4 and INT8 hold what
// bitsandbytes' weights do; see ops/quantize_4bit.h and ops/quantize_int8.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowrank {

enum class DType : uint8_t {
  kF32, kF16, kBF16, kF64, kI8, kI16, kI32, kI64, kU8, kU16, kU32, kU64, kBool, kF8E4M3, kF8E5M2,
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIQ4_NL, kIQ4_XS,
  kNF4, kFP4, kInt8,
  kOpaque,  // a type that files may hold and that nothing here computes with; sizes come from the file's reader
  kCount,
};

struct DTypeInfo {
  const char* name;       // safetensors' name for scalars, ggml's or bitsandbytes' for block types
  size_t block_elements;  // elements a block holds; 1 for scalars
  size_t block_bytes;
  bool is_weight;         // the GEMM can read it
};

inline constexpr DTypeInfo kDTypes[static_cast<size_t>(DType::kCount)] = {
    {"F32", 1, 4, true},      {"F16", 1, 2, true},      {"BF16", 1, 2, true},
    {"F64", 1, 8, false},     {"I8", 1, 1, false},      {"I16", 1, 2, false},
    {"I32", 1, 4, false},     {"I64", 1, 8, false},     {"U8", 1, 1, false},
    {"U16", 1, 2, false},     {"U32", 1, 4, false},     {"U64", 1, 8, false},
    {"BOOL", 1, 1, false},    {"F8_E4M3", 1, 1, false}, {"F8_E5M2", 1, 1, false},
    {"Q4_0", 32, 18, true},   {"Q4_1", 32, 20, true},   {"Q5_0", 32, 22, true},
    {"Q5_1", 32, 24, true},   {"Q8_0", 32, 34, true},   {"Q2_K", 256, 84, true},
    {"Q3_K", 256, 110, true}, {"Q4_K", 256, 144, true}, {"Q5_K", 256, 176, true},
    {"Q6_K", 256, 210, true}, {"IQ4_NL", 32, 18, true}, {"IQ4_XS", 256, 136, true},
    {"NF4", 64, 36, true},    {"FP4", 64, 36, true},    {"INT8", 64, 68, true},
    {"opaque", 1, 0, false},
};

constexpr const DTypeInfo& dtype_info(DType type) { return kDTypes[static_cast<size_t>(type)]; }

// Bytes of a row of `columns` elements; `columns` must be a multiple of the block size.
constexpr size_t row_bytes(DType type, size_t columns) {
  return columns / dtype_info(type).block_elements * dtype_info(type).block_bytes;
}

}  // namespace lowrank

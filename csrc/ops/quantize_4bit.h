// NF4 and FP4 as bitsandbytes 0.50 quantises them on a CPU, byte for byte. Dettmers et al. 2023 (QLoRA), arXiv:2305.14314
//
// A tensor is one row of values cut into blocks of `block` (the last may be shorter). Values are scaled by the reciprocal of their
// block's largest magnitude, of the last, shorter one divided by it, and the nearest code is taken, halfway the lower one of the two
// values. Two codes a byte, the first in the high nibble; after an odd number of values the last low nibble is the code of zero.
// Magnitudes are stored as they are, of the shorter block at least 1e-38. NaN makes its whole block NaN, code 15 (FP4: 3).
//
// Double quantisation: magnitudes minus their mean, as 8-bit codes of the dynamic map in blocks of 256.
//
// In a model the codes lie in block types, DType::kNF4 and kFP4: of 64 weights the magnitude (fp32), then 32 bytes of codes. Blocks
// that are longer in bitsandbytes repeat theirs.
#pragma once

#include <functional>
#include <vector>

#include "core/context.h"
#include "core/status.h"
#include "ops/matrix.h"

namespace lowrank {

inline constexpr size_t kSmallestBlock4Bit = 32, kLargestBlock4Bit = 4096;
inline constexpr size_t kNestedBlock = 256;  // magnitudes that share one

inline bool is_4bit(DType type) { return type == DType::kNF4 || type == DType::kFP4; }
// The sixteen values of kNF4 or kFP4.
const float* codes_4bit(DType type);

// packed[ceil(n / 2)] and absmax[ceil(n / block)] of x[n]; `block` is a power of two in [32, 4096].
Status quantize_4bit(Context&, const float* x, size_t n, size_t block, DType type, uint8_t* packed, float* absmax);

// out[i] = codes[nibble i] * absmax[i / block]
Status dequantize_4bit(Context&, const uint8_t* packed, size_t n, size_t block, const float* codes, const float* absmax, float* out);

// The mean that double quantisation takes away.
float mean_absmax(const float* absmax, size_t n);

// Magnitudes after double quantisation.
struct NestedAbsmax {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;  // of each `block` codes
  std::vector<float> map;     // what the 256 codes stand for
  size_t block = kNestedBlock;
  float offset = 0;
};
Status nest_absmax(Context&, const float* absmax, size_t n, NestedAbsmax* out);
// absmax[codes.size()]: code * nested magnitude + offset, each rounded.
Status unnest_absmax(Context&, const NestedAbsmax&, float* absmax);

// Rows of bitsandbytes' codes as a block type: out[rows, row_bytes(type, columns)]. `absmax` is not nested any more. Refuses block
// sizes below 64 and rows that do not end with a block of 64.
Status store_4bit(Context&, const uint8_t* packed, const float* absmax, size_t block, const Matrix& shape, void* out);
// And back: packed[weights / 2], absmax[ceil(weights / block)] of a weight that was stored with blocks of this size.
void load_4bit(Context&, const Matrix& weight, size_t block, uint8_t* packed, float* absmax);

struct QuantizeOptions {
  DType type = DType::kNF4;
  size_t block = 64;
  bool nested = false;            // double quantisation
  DType source = DType::kF32;     // kBF16, kF16: weights are rounded to it first
  std::function<void(const void* data, size_t bytes)> used;  // may be empty; hears of rows of the weight that are not read any more
};

// A weight of any type as a block type, piece by piece: out[rows, row_bytes(type, columns)]. Besides `out` it takes memory for the
// magnitudes and a piece for each thread. With double quantisation `nested` receives what `out` has the magnitudes of.
Status quantize_weight(Context&, const Matrix& weight, const QuantizeOptions&, void* out, NestedAbsmax* nested);

}  // namespace lowrank

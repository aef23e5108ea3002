#include "ops/quantize_4bit.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/buffer.h"
#include "core/codes_4bit.h"
#include "core/denormals.h"
#include "ops/dynamic_map.h"
#include "ops/quantize_blockwise.h"
#include "ops/row_chunks.h"
#include "ops/weight_values.h"

namespace lowrank {
namespace {

constexpr size_t kStored = dtype_info(DType::kNF4).block_elements, kStoredBytes = dtype_info(DType::kNF4).block_bytes;
constexpr float kLeastAbsmax = 1e-38f;

// Codes in the order of their values; of FP4's two zeros torch.argsort puts code 0 first.
constexpr uint8_t kNf4Order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr uint8_t kFp4Order[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};

// Finds the nearest code by the middles between neighbouring values.
struct Nearest {
  explicit Nearest(DType type) : order(type == DType::kNF4 ? kNf4Order : kFp4Order) {
    const float* const codes = codes_4bit(type);
    for (size_t i = 0; i < 15; ++i) middles[i] = (codes[order[i]] + codes[order[i + 1]]) / 2;
  }
  uint8_t of(float value) const {
    int rank = 0;
    for (float middle : middles) rank += !(middle >= value);  // NaN is above them all
    return order[rank];
  }
  const uint8_t* order;
  std::array<float, 15> middles;
};

// max(x, least), NaN if x is.
float at_least(float x, float least) { return x < least ? least : x; }

float largest_magnitude(const float* x, size_t n) {
  float largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (magnitude > largest || std::isnan(magnitude)) largest = magnitude;
  }
  return largest;
}

float limited(float x) { return x < -1 ? -1 : x > 1 ? 1 : x; }

// The block's magnitude; scaled[n] is what to look up.
float scale_block(const float* x, size_t n, size_t block, float* scaled) {
  const float absmax = largest_magnitude(x, n), divisor = at_least(absmax, kLeastAbsmax);
  if (n < block) {
    for (size_t i = 0; i < n; ++i) scaled[i] = limited(x[i] / divisor);
    return divisor;
  }
  const float inverse = 1.0f / divisor;
  for (size_t i = 0; i < n; ++i) scaled[i] = limited(x[i] * inverse);
  return absmax;
}

float quantize_block(const Nearest& nearest, const float* x, size_t n, size_t block, uint8_t* packed) {
  float scaled[kLargestBlock4Bit];
  const float absmax = scale_block(x, n, block, scaled);
  if (n % 2 != 0) scaled[n] = 0;
  for (size_t i = 0; i < n; i += 2)
    packed[i / 2] = static_cast<uint8_t>(nearest.of(scaled[i]) << 4 | nearest.of(scaled[i + 1]));
  return absmax;
}

Status check(const char* op, DType type, size_t block) {
  if (!is_4bit(type)) return error(Code::kUnsupportedQuantization, "%s: type %s; expected NF4 or FP4", op, dtype_info(type).name);
  if (std::has_single_bit(block) && block >= kSmallestBlock4Bit && block <= kLargestBlock4Bit) return {};
  return error(Code::kInvalidOption, "%s: the block size is %zu; expected a power of two from %zu to %zu", op, block, kSmallestBlock4Bit,
               kLargestBlock4Bit);
}

Status check_stored(const char* op, DType type, size_t block, size_t columns) {
  LR_RETURN_IF_ERROR(check(op, type, block));
  if (block < kStored) {
    return error(Code::kUnsupportedQuantization, "%s: blocks of %zu weights; a model's hold %zu or more", op, block, kStored);
  }
  if (columns % kStored == 0) return {};
  return error(Code::kUnsupportedQuantization, "%s: rows of %zu weights are not a multiple of %s's block of %zu", op, columns,
               dtype_info(type).name, kStored);
}

// Where the magnitude of a row's blocks lies, and their codes.
unsigned char* stored_block(void* out, size_t index) { return static_cast<unsigned char*>(out) + index * kStoredBytes; }

// The magnitudes of weights stored as blocks of kStored.
void store_absmax(Context& context, const float* absmax, size_t block, size_t weights, void* out) {
  for_row_chunks(context, weights / kStored, kStored, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) std::memcpy(stored_block(out, i), absmax + i * kStored / block, sizeof(float));
  });
}

void store_codes(const uint8_t* packed, size_t blocks, size_t first, void* out) {
  for (size_t i = 0; i < blocks; ++i)
    std::memcpy(stored_block(out, first + i) + sizeof(float), packed + i * (kStored / 2), kStored / 2);
}

}  // namespace

const float* codes_4bit(DType type) { return type == DType::kNF4 ? kNf4Codes : kFp4Codes; }

Status quantize_4bit(Context& context, const float* x, size_t n, size_t block, DType type, uint8_t* packed, float* absmax) {
  LR_RETURN_IF_ERROR(check("quantize_4bit", type, block));
  const Nearest nearest(type);
  for_row_chunks(context, ceil_div(n, block), block, [&](size_t begin, size_t end) {
    const KeepDenormals keep;
    for (size_t i = begin; i < end; ++i) {
      const size_t first = i * block;
      absmax[i] = quantize_block(nearest, x + first, std::min(block, n - first), block, packed + first / 2);
    }
  });
  return {};
}

Status dequantize_4bit(Context& context, const uint8_t* packed, size_t n, size_t block, const float* codes, const float* absmax,
                       float* out) {
  LR_RETURN_IF_ERROR(check("dequantize_4bit", DType::kNF4, block));
  for_row_chunks(context, ceil_div(n, block), block, [&](size_t begin, size_t end) {
    const KeepDenormals keep;
    for (size_t i = begin * block; i < std::min(n, end * block); ++i)
      out[i] = codes[i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15] * absmax[i / block];
  });
  return {};
}

float mean_absmax(const float* absmax, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += absmax[i];
  return static_cast<float>(sum / static_cast<double>(n));
}

Status nest_absmax(Context& context, const float* absmax, size_t n, NestedAbsmax* out) {
  if (n == 0) return {};
  out->codes.resize(n);
  out->absmax.resize(ceil_div(n, kNestedBlock));
  out->map.resize(kByteCodes);
  out->block = kNestedBlock;
  out->offset = mean_absmax(absmax, n);
  dynamic_map(true, out->map.data());
  std::vector<float> shifted(absmax, absmax + n);
  for (float& value : shifted) value -= out->offset;
  return quantize_blockwise(context, shifted.data(), n, kNestedBlock, out->map.data(), out->codes.data(), out->absmax.data());
}

Status unnest_absmax(Context& context, const NestedAbsmax& nested, float* absmax) {
  const size_t n = nested.codes.size();
  LR_RETURN_IF_ERROR(dequantize_blockwise(context, nested.codes.data(), n, nested.block, nested.map.data(), nested.absmax.data(), absmax));
  for (size_t i = 0; i < n; ++i) absmax[i] += nested.offset;
  return {};
}

Status store_4bit(Context& context, const uint8_t* packed, const float* absmax, size_t block, const Matrix& shape, void* out) {
  LR_RETURN_IF_ERROR(check_stored("store_4bit", shape.type, block, shape.cols));
  const size_t weights = shape.rows * shape.cols;
  for_row_chunks(context, weights / kStored, kStored, [&](size_t begin, size_t end) {
    store_codes(packed + begin * (kStored / 2), end - begin, begin, out);
  });
  store_absmax(context, absmax, block, weights, out);
  return {};
}

void load_4bit(Context& context, const Matrix& weight, size_t block, uint8_t* packed, float* absmax) {
  const size_t blocks = weight.rows * weight.cols / kStored;
  const auto* const stored = static_cast<const unsigned char*>(weight.data);
  for_row_chunks(context, blocks, kStored, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const unsigned char* const from = stored + i * kStoredBytes;
      std::memcpy(packed + i * (kStored / 2), from + sizeof(float), kStored / 2);
      if (i * kStored % block == 0) std::memcpy(absmax + i * kStored / block, from, sizeof(float));
    }
  });
}

Status quantize_weight(Context& context, const Matrix& weight, const QuantizeOptions& options, void* out, NestedAbsmax* nested) {
  LR_RETURN_IF_ERROR(check_stored("quantize_weight", options.type, options.block, weight.cols));
  const size_t weights = weight.rows * weight.cols, blocks = ceil_div(weights, options.block);
  if (weights == 0) return {};
  const Nearest nearest(options.type);
  Buffer magnitudes;
  LR_RETURN_IF_ERROR(magnitudes.allocate(blocks * sizeof(float), "magnitudes of a weight"));
  float* const absmax = magnitudes.as<float>();
  for_weight_pieces(weight, options.block, options.used, [&](size_t first_block, size_t last_block) {
    for_row_chunks(context, last_block - first_block, options.block, [&](size_t begin, size_t end) {
      const KeepDenormals keep;
      float values[kLargestBlock4Bit];
      uint8_t packed[kLargestBlock4Bit / 2];
      for (size_t i = first_block + begin; i < first_block + end; ++i) {
        const size_t first = i * options.block, n = std::min(options.block, weights - first);
        read_values(context, weight, first, n, options.source, values);
        absmax[i] = quantize_block(nearest, values, n, options.block, packed);
        store_codes(packed, n / kStored, first / kStored, out);
      }
    });
  });
  if (options.nested) {
    LR_RETURN_IF_ERROR(nest_absmax(context, absmax, blocks, nested));
    LR_RETURN_IF_ERROR(unnest_absmax(context, *nested, absmax));
  }
  store_absmax(context, absmax, options.block, weights, out);
  return {};
}

}  // namespace lowrank

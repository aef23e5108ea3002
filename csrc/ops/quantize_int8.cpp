#include "ops/quantize_int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/denormals.h"
#include "ops/row_chunks.h"
#include "ops/weight_values.h"

namespace lowrank {
namespace {

constexpr size_t kStored = dtype_info(DType::kInt8).block_elements, kStoredBytes = dtype_info(DType::kInt8).block_bytes;
constexpr size_t kPiece = 4096;  // values of a row that are widened at a time
static_assert(kPiece % kStored == 0);

// NaN where one is there, as torch.max has it.
float larger_magnitude(float largest, const float* x, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (magnitude > largest || std::isnan(magnitude)) largest = magnitude;
  }
  return largest;
}

float scale_of(float absmax) { return 1.0f / absmax * 127.0f; }

int8_t code_of(float value, float scale) {
  constexpr float kRounder = 0x1.8p23f;  // added to a small number it leaves no bits for a fraction
  const float scaled = value * scale;
  if (!(std::fabs(scaled) < 1024)) return 0;
  return static_cast<int8_t>(static_cast<int>(scaled + kRounder - kRounder));
}

Status check_row(size_t columns) {
  if (columns % kStored == 0) return {};
  return error(Code::kUnsupportedQuantization, "rows of %zu weights are not a multiple of INT8's block of %zu", columns, kStored);
}

unsigned char* stored_row(void* out, size_t row, size_t columns) {
  return static_cast<unsigned char*>(out) + row * (columns / kStored) * kStoredBytes;
}

// f(piece's first column, its columns, its values) over a row of a weight.
template <class F>
void for_pieces(Context& context, const Matrix& weight, size_t row, DType source, const F& f) {
  float values[kPiece];
  for (size_t begin = 0; begin < weight.cols; begin += kPiece) {
    const size_t n = std::min(kPiece, weight.cols - begin);
    read_values(context, weight, row * weight.cols + begin, n, source, values);
    round_to(DType::kF16, values, n);
    f(begin, n, values);
  }
}

void quantize_row(Context& context, const Matrix& weight, size_t row, DType source, unsigned char* out) {
  float absmax = 0;
  for_pieces(context, weight, row, source, [&](size_t, size_t n, const float* values) { absmax = larger_magnitude(absmax, values, n); });
  const float scale = scale_of(absmax);
  for_pieces(context, weight, row, source, [&](size_t begin, size_t n, const float* values) {
    for (size_t i = 0; i < n; i += kStored) {
      unsigned char* const block = out + (begin + i) / kStored * kStoredBytes;
      std::memcpy(block, &absmax, sizeof absmax);
      for (size_t j = 0; j < kStored; ++j) block[sizeof absmax + j] = static_cast<unsigned char>(code_of(values[i + j], scale));
    }
  });
}

}  // namespace

void quantize_int8(Context& context, const float* x, size_t rows, size_t columns, int8_t* codes, float* absmax) {
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    const KeepDenormals keep;
    for (size_t row = begin; row < end; ++row) {
      const float* const values = x + row * columns;
      absmax[row] = larger_magnitude(0, values, columns);
      const float scale = scale_of(absmax[row]);
      for (size_t i = 0; i < columns; ++i) codes[row * columns + i] = code_of(values[i], scale);
    }
  });
}

void dequantize_int8(Context& context, const int8_t* codes, const float* absmax, size_t rows, size_t columns, float* out) {
  constexpr float kPart = 7.874015718698502e-3f;
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    const KeepDenormals keep;
    for (size_t row = begin; row < end; ++row) {
      for (size_t i = row * columns; i < (row + 1) * columns; ++i) out[i] = static_cast<float>(codes[i]) * absmax[row] * kPart;
    }
  });
}

Status quantize_int8_weight(Context& context, const Matrix& weight, DType source, const std::function<void(const void*, size_t)>& used,
                            void* out) {
  LR_RETURN_IF_ERROR(check_row(weight.cols));
  if (weight.cols == 0) return {};
  for_weight_pieces(weight, weight.cols, used, [&](size_t first, size_t last) {
    for_row_chunks(context, last - first, weight.cols, [&](size_t begin, size_t end) {
      const KeepDenormals keep;
      for (size_t row = first + begin; row < first + end; ++row) quantize_row(context, weight, row, source, stored_row(out, row, weight.cols));
    });
  });
  return {};
}

Status store_int8(Context& context, const int8_t* codes, const float* absmax, const Matrix& shape, void* out) {
  LR_RETURN_IF_ERROR(check_row(shape.cols));
  const size_t blocks = shape.cols / kStored;
  for_row_chunks(context, shape.rows, shape.cols, [&](size_t begin, size_t end) {
    for (size_t i = begin * blocks; i < end * blocks; ++i) {
      unsigned char* const block = static_cast<unsigned char*>(out) + i * kStoredBytes;
      std::memcpy(block, absmax + i / blocks, sizeof(float));
      std::memcpy(block + sizeof(float), codes + i * kStored, kStored);
    }
  });
  return {};
}

void load_int8(Context& context, const Matrix& weight, int8_t* codes, float* absmax) {
  for_row_chunks(context, weight.rows, weight.cols, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) {
      const unsigned char* block = weight.row(row);
      if (weight.cols > 0) std::memcpy(absmax + row, block, sizeof(float));
      for (size_t c = 0; c < weight.cols; c += kStored, block += kStoredBytes)
        std::memcpy(codes + row * weight.cols + c, block + sizeof(float), kStored);
    }
  });
}

}  // namespace lowrank

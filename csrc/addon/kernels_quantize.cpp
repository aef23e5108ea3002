// Quantisation over typed arrays.
#include <algorithm>

#include "addon/kernel_call.h"
#include "ops/dynamic_map.h"
#include "ops/quantize_4bit.h"
#include "ops/quantize_blockwise.h"
#include "ops/quantize_int8.h"

namespace lowrank::addon {
namespace {

// x, n, blockSize, quantType, packed, absmax
Status run_quantize_4bit(Context& context, Arguments& in) {
  const float* const x = in.floats();
  const size_t n = in.size(), block = in.size();
  const std::string name = in.text();
  uint8_t* const packed = in.bytes();
  float* const absmax = in.floats();
  if (!in.ok()) return {};
  const Result<DType> type = weight_type(name);
  if (!type.ok()) return type.status();
  return quantize_4bit(context, x, n, block, type.value(), packed, absmax);
}

// codes, n, blockSize, code[16 or 256], absmax, out
using Dequantize = Status (*)(Context&, const uint8_t* codes, size_t n, size_t block, const float* code, const float* absmax, float* out);
template <Dequantize dequantize>
Status run_dequantize_codes(Context& context, Arguments& in) {
  const uint8_t* const codes = in.bytes();
  const size_t n = in.size(), block = in.size();
  const float *const code = in.floats(), *const absmax = in.floats();
  float* const out = in.floats();
  if (!in.ok()) return {};
  return dequantize(context, codes, n, block, code, absmax, out);
}

// quantType, out[16]
Status run_codes_4bit(Context&, Arguments& in) {
  const std::string name = in.text();
  float* const out = in.floats();
  if (!in.ok()) return {};
  const Result<DType> type = weight_type(name);
  if (!type.ok()) return type.status();
  std::copy_n(codes_4bit(type.value()), 16, out);
  return {};
}

// absmax, n, result: [mean]
Status run_mean_absmax(Context&, Arguments& in) {
  const float* const absmax = in.floats();
  const size_t n = in.size();
  float* const result = in.floats();
  if (!in.ok()) return {};
  *result = mean_absmax(absmax, n);
  return {};
}

// x, n, blockSize, code[256], out, absmax
Status run_quantize_blockwise(Context& context, Arguments& in) {
  const float* const x = in.floats();
  const size_t n = in.size(), block = in.size();
  const float* const code = in.floats();
  uint8_t* const out = in.bytes();
  float* const absmax = in.floats();
  if (!in.ok()) return {};
  return quantize_blockwise(context, x, n, block, code, out, absmax);
}

// x, rows, columns, codes, absmax
Status run_quantize_int8(Context& context, Arguments& in) {
  const float* const x = in.floats();
  const size_t rows = in.size(), columns = in.size();
  uint8_t* const codes = in.bytes();
  float* const absmax = in.floats();
  if (!in.ok()) return {};
  quantize_int8(context, x, rows, columns, reinterpret_cast<int8_t*>(codes), absmax);
  return {};
}

// codes, absmax, rows, columns, out
Status run_dequantize_int8(Context& context, Arguments& in) {
  const uint8_t* const codes = in.bytes();
  const float* const absmax = in.floats();
  const size_t rows = in.size(), columns = in.size();
  float* const out = in.floats();
  if (!in.ok()) return {};
  dequantize_int8(context, reinterpret_cast<const int8_t*>(codes), absmax, rows, columns, out);
  return {};
}

// signed, out[256]
Status run_dynamic_map(Context&, Arguments& in) {
  const bool is_signed = in.flag();
  float* const out = in.floats();
  if (!in.ok()) return {};
  dynamic_map(is_signed, out);
  return {};
}

}  // namespace

void register_quantization(Napi::Object kernels) {
  const auto set = [&](const char* name, auto function) { set_function(kernels, name, function); };
  set("quantize4bit", call<run_quantize_4bit>);
  set("dequantize4bit", call<run_dequantize_codes<dequantize_4bit>>);
  set("codes4bit", call<run_codes_4bit>);
  set("meanAbsmax", call<run_mean_absmax>);
  set("quantizeBlockwise", call<run_quantize_blockwise>);
  set("dequantizeBlockwise", call<run_dequantize_codes<dequantize_blockwise>>);
  set("int8VectorwiseQuant", call<run_quantize_int8>);
  set("int8VectorwiseDequant", call<run_dequantize_int8>);
  set("dynamicMap", call<run_dynamic_map>);
}

}  // namespace lowrank::addon

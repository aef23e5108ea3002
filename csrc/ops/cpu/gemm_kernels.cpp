// The GEMM kernels of one instruction-set level: this file is compiled once per level, with
// -DLR_ISA=<level>.
#include "ops/cpu/gemm_kernels.h"

#if defined(__AMX_BF16__)
#include "ops/cpu/gemm_amx.h"
#elif defined(__AVX512BF16__)
#include "ops/cpu/gemm_bf16.h"
#endif
#include "ops/cpu/gemm_dot.h"
#if defined(__AVX512BF16__)
#include "ops/cpu/gemm_dot_pairs.h"
#endif
#include "ops/cpu/gemm_micro.h"
#include "ops/cpu/gemm_pack.h"

namespace lowrank::LR_ISA {
namespace {

template <DType kType>
struct Typed {
  static void pack(const Matrix& b, bool transposed, size_t k_begin, size_t k, size_t n_begin,
                   size_t n, float* panels, size_t block_k, size_t at) {
    if (transposed) {
      pack_transposed<kType, kNr>(b, k_begin, k, n_begin, n, panels, block_k, at);
    } else {
      pack_straight<kType, kNr>(b, k_begin, k, n_begin, n, panels, block_k, at);
    }
  }
#if defined(__AVX512BF16__)
  static void pack_pairs(const Matrix& b, bool transposed, size_t k_begin, size_t k, size_t n_begin,
                         size_t n, float* panels, size_t block_depth, size_t at) {
    if (transposed) {
      pack_pairs_transposed<kType, kPairNr>(b, k_begin, k, n_begin, n, panels, block_depth, at);
    } else {
      pack_pairs_straight<kType, kPairNr>(b, k_begin, k, n_begin, n, panels, block_depth, at);
    }
  }
#endif
  static void unpack(const uint8_t* row, size_t c, size_t n, float* out) {
    unpack_range<kType>(row, c, n, out);
  }
  static void dot(const DotArgs& args, size_t rows, size_t m, float* scratch) {
    dot_typed<FloatDots, kType>(args, rows, m, scratch);
  }
#if defined(__AVX512BF16__)
  static void dot_pairs(const DotArgs& args, size_t rows, size_t m, float* scratch) {
    dot_typed<PairDots, kType>(args, rows, m, scratch);
  }
#endif
};

// The code for one storage type.
struct TypeCode {
  decltype(&Typed<DType::kF32>::pack) pack;
  decltype(&Typed<DType::kF32>::unpack) unpack;
  decltype(&Typed<DType::kF32>::dot) dot;
#if defined(__AVX512BF16__)
  decltype(&Typed<DType::kF32>::pack_pairs) pack_pairs;
  decltype(&Typed<DType::kF32>::dot) dot_pairs;
#endif
};

template <DType kType>
constexpr TypeCode kCode = {
    .pack = Typed<kType>::pack,
    .unpack = Typed<kType>::unpack,
    .dot = Typed<kType>::dot,
#if defined(__AVX512BF16__)
    .pack_pairs = Typed<kType>::pack_pairs,
    .dot_pairs = Typed<kType>::dot_pairs,
#endif
};

// Only weight types come here: gemm() and dequantize() refuse the others.
const TypeCode& code_of(DType type) {
  switch (type) {
    case DType::kF16:
      return kCode<DType::kF16>;
    case DType::kBF16:
      return kCode<DType::kBF16>;
    case DType::kQ4_0:
      return kCode<DType::kQ4_0>;
    case DType::kQ4_1:
      return kCode<DType::kQ4_1>;
    case DType::kQ5_0:
      return kCode<DType::kQ5_0>;
    case DType::kQ5_1:
      return kCode<DType::kQ5_1>;
    case DType::kQ8_0:
      return kCode<DType::kQ8_0>;
    case DType::kQ2_K:
      return kCode<DType::kQ2_K>;
    case DType::kQ3_K:
      return kCode<DType::kQ3_K>;
    case DType::kQ4_K:
      return kCode<DType::kQ4_K>;
    case DType::kQ5_K:
      return kCode<DType::kQ5_K>;
    case DType::kQ6_K:
      return kCode<DType::kQ6_K>;
    case DType::kIQ4_NL:
      return kCode<DType::kIQ4_NL>;
    case DType::kIQ4_XS:
      return kCode<DType::kIQ4_XS>;
    case DType::kNF4:
      return kCode<DType::kNF4>;
    case DType::kFP4:
      return kCode<DType::kFP4>;
    case DType::kInt8:
      return kCode<DType::kInt8>;
    default:
      return kCode<DType::kF32>;
  }
}

void pack(const Matrix& b, bool transposed, size_t k_begin, size_t k, size_t n_begin, size_t n,
          float* panels, size_t block_k, size_t at) {
  code_of(b.type).pack(b, transposed, k_begin, k, n_begin, n, panels, block_k, at);
}

#if defined(__AVX512BF16__)
void pack_pairs(const Matrix& b, bool transposed, size_t k_begin, size_t k, size_t n_begin,
                size_t n, float* panels, size_t block_depth, size_t at) {
  code_of(b.type).pack_pairs(b, transposed, k_begin, k, n_begin, n, panels, block_depth, at);
  const size_t pairs = (k + 1) / 2, padded = (k + kPairUnit - 1) / kPairUnit * (kPairUnit / 2);
  clear_pairs<kPairNr>(n, panels, block_depth, at + pairs, at + padded);
}

constexpr BlockKernels kPairKernels = {.mr = kPairMr,
                                       .nr = kPairNr,
                                       .max_k = kPairMaxK,
                                       .k_step = 2,
                                       .k_unit = kPairUnit,
                                       .pack_rows = kPairPackRows,
                                       .pack = pack_pairs,
                                       .block = pair_block,
                                       .round = round_and_sum};
constexpr const BlockKernels* kBf16Kernels = &kPairKernels;
#else
constexpr const BlockKernels* kBf16Kernels = nullptr;
#endif

void dequantize(const Matrix& w, size_t row_begin, size_t rows, size_t col_begin, size_t cols,
                float* out, size_t out_stride) {
  const auto unpack = code_of(w.type).unpack;
  const uint8_t* row = static_cast<const uint8_t*>(w.data) + row_begin * w.stride;
  for (size_t r = 0; r < rows; ++r)
    unpack(row + r * w.stride, col_begin, cols, out + r * out_stride);
}

void dot(const Matrix& w, size_t row_begin, size_t rows, const float* a, size_t lda, size_t m,
         float* c, size_t ldc, const float* bias, bool accumulate, float* scratch) {
  const uint8_t* first = static_cast<const uint8_t*>(w.data) + row_begin * w.stride;
  code_of(w.type).dot({first, w.stride, w.cols, a, lda, c, ldc, bias, accumulate}, rows, m, scratch);
}

#if defined(__AVX512BF16__)
void dot_pairs(const Matrix& w, size_t row_begin, size_t rows, const float* a, size_t lda, size_t m,
               float* c, size_t ldc, const float* bias, bool accumulate, float* scratch) {
  const uint8_t* first = static_cast<const uint8_t*>(w.data) + row_begin * w.stride;
  code_of(w.type).dot_pairs({first, w.stride, w.cols, a, lda, c, ldc, bias, accumulate}, rows, m,
                            scratch);
}
constexpr decltype(&dot_pairs) kDotPairs = dot_pairs;
#else
constexpr decltype(&dot) kDotPairs = nullptr;
#endif

}  // namespace

extern const GemmKernels kGemmKernels;
const GemmKernels kGemmKernels = {
    .width = V::kWidth,
    .f32 = {.mr = kMr,
            .nr = kNr,
            .max_k = kMaxBlockK,
            .k_step = 1,
            .k_unit = 1,
            .pack_rows = kPackRows,
            .pack = pack,
            .block = block,
            .round = nullptr},
    .bf16 = kBf16Kernels,
    .direct = direct,
    .dequantize = dequantize,
    .dot = dot,
    .dot_pairs = kDotPairs};

}  // namespace lowrank::LR_ISA

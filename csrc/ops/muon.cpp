// Bound by the products: 2·s²·(2·l + s) flops in each of five rounds, where s is the short side and l the long one.
#include "ops/muon.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/op_profile.h"
#include "ops/adamw.h"  // grad_norm_squared
#include "ops/cpu/kernels.h"
#include "ops/gemm.h"
#include "ops/row_chunks.h"

namespace lowrank {
namespace {

constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
constexpr int kRounds = 5;
constexpr double kSmallestNorm = 1e-7;

double ratio_of(MuonRatio ratio, size_t rows, size_t columns) {
  const double r = static_cast<double>(rows), c = static_cast<double>(columns);
  switch (ratio) {
    case MuonRatio::kOriginal: return std::sqrt(std::max(1.0, r / c));
    case MuonRatio::kMatchRmsAdamW: return 0.2 * std::sqrt(std::max(r, c));
    case MuonRatio::kSpectralUnclamped: return std::sqrt(r / c);
  }
  return 1.0;
}

// y = x_factor · x + y_factor · y
void blend(Context& context, float x_factor, const float* x, size_t rows, size_t columns, float y_factor, float* y) {
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    context.kernels.elementwise.blend(x_factor, x + begin * columns, (end - begin) * columns, y_factor, y + begin * columns);
  });
}

// The momentum takes the gradient in, and x becomes what is to be orthogonalised.
void take_gradient(Context& context, const MuonConfig& config, size_t rows, size_t columns, const StoredFloats& g, float* momentum, float* x) {
  const auto kept = static_cast<float>(config.momentum);
  const auto taken = static_cast<float>((1 - config.momentum) * static_cast<double>(config.grad_scale));
  const auto& kernels = context.kernels.elementwise;
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    std::vector<float> scratch(columns);
    for (size_t at = begin * columns; at < end * columns; at += columns) {
      const float* const gradient = g.read(at, columns, scratch.data());
      kernels.blend(taken, gradient, columns, kept, momentum + at);
      std::memcpy(x + at, momentum + at, columns * sizeof(float));
      kernels.blend(taken, gradient, columns, kept, x + at);
    }
  });
}

Status normalise(Context& context, size_t rows, size_t columns, float* x) {
  double squares = 0;
  const GradientSpan all(x, rows * columns, DType::kF32);
  LR_RETURN_IF_ERROR(grad_norm_squared(context, {&all, 1}, &squares));
  const auto factor = static_cast<float>(1 / std::max(std::sqrt(squares), kSmallestNorm));
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    context.kernels.elementwise.scale(factor, (end - begin) * columns, x + begin * columns);
  });
  return {};
}

// *x = a·x + (b·A + c·A²)·x, in the memory of `product`, which takes its place.
Status newton_schulz(Context& context, size_t rows, size_t columns, MuonScratch* scratch) {
  const bool tall = rows > columns;
  const size_t side = std::min(rows, columns);
  float *const x = scratch->x.as<float>(), *const product = scratch->product.as<float>();
  float *const gram = scratch->gram.as<float>(), *const polynomial = scratch->polynomial.as<float>();
  const Matrix x_matrix = matrix(x, DType::kF32, rows, columns), gram_matrix = matrix(gram, DType::kF32, side, side);
  if (tall) {
    std::memset(gram, 0, side * side * sizeof(float));
    LR_RETURN_IF_ERROR(gemm_tn(context, side, side, rows, {x, columns}, {x, columns}, {gram, side}));
  } else {
    LR_RETURN_IF_ERROR(gemm(context, side, {x, columns, 1, x_matrix, true, columns}, gram, side, side, false));
  }
  LR_RETURN_IF_ERROR(gemm(context, side, {gram, side, 1, gram_matrix, false, side}, polynomial, side, side, false));
  blend(context, kB, gram, side, side, kC, polynomial);
  const GemmTerm term = tall ? GemmTerm{x, columns, 1, matrix(polynomial, DType::kF32, side, side), false, side}
                             : GemmTerm{polynomial, side, 1, x_matrix, false, side};
  LR_RETURN_IF_ERROR(gemm(context, rows, term, product, columns, columns, false));
  blend(context, kA, x, rows, columns, 1, product);
  std::swap(scratch->x, scratch->product);
  return {};
}

void move(Context& context, const MuonConfig& config, size_t rows, size_t columns, const float* x, const StoredFloats& p) {
  const auto decay = static_cast<float>(1 - config.lr * config.weight_decay);
  const auto rate = static_cast<float>(config.lr * ratio_of(config.ratio, rows, columns));
  for_row_chunks(context, rows, columns, [&](size_t begin, size_t end) {
    std::vector<float> scratch(columns);
    for (size_t at = begin * columns; at < end * columns; at += columns) {
      float* const values = p.read(at, columns, scratch.data());
      context.kernels.elementwise.blend(-rate, x + at, columns, decay, values);
      p.write(at, columns, values);
    }
  });
}

}  // namespace

Status MuonScratch::reserve(size_t elements, size_t side) {
  for (Buffer* matrix : {&x, &product}) LR_RETURN_IF_ERROR(matrix->reserve(elements * sizeof(float), "Muon's update"));
  for (Buffer* square : {&gram, &polynomial}) LR_RETURN_IF_ERROR(square->reserve(side * side * sizeof(float), "Muon's products"));
  return {};
}

size_t MuonScratch::bytes(size_t elements, size_t side) { return 2 * (elements + side * side) * sizeof(float); }

Status muon_update(Context& context, const MuonConfig& config, size_t rows, size_t columns, const StoredFloats& g, const StoredFloats& p,
                   float* momentum, MuonScratch* scratch) {
  const OpTimer timer(context, OpKind::kOptimizer);
  LR_RETURN_IF_ERROR(scratch->reserve(rows * columns, std::min(rows, columns)));
  take_gradient(context, config, rows, columns, g, momentum, scratch->x.as<float>());
  LR_RETURN_IF_ERROR(normalise(context, rows, columns, scratch->x.as<float>()));
  for (int round = 0; round < kRounds; ++round) LR_RETURN_IF_ERROR(newton_schulz(context, rows, columns, scratch));
  move(context, config, rows, columns, scratch->x.as<float>(), p);
  return {};
}

}  // namespace lowrank

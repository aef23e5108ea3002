// Muon against a double-precision reference, over odd shapes, every level and compute type, in fp32 and bf16; the same bits for any number
// of threads; and what comes out of Newton-Schulz's iteration is as orthogonal as it is meant to be.
#include <algorithm>

#include "ops/muon.h"
#include "test/reference.h"

namespace lowrank::test {
namespace {

struct Shape {
  size_t rows, columns;
};
constexpr Shape kShapes[] = {{1, 1}, {1, 40}, {40, 1}, {7, 3}, {17, 33}, {64, 64}, {131, 57}, {16, 577}, {577, 16}};

Doubles transposed(const Doubles& x, Shape shape) {
  Doubles result(x.size());
  for (size_t i = 0; i < shape.rows; ++i) {
    for (size_t j = 0; j < shape.columns; ++j) result[j * shape.rows + i] = x[i * shape.columns + j];
  }
  return result;
}

// a [m, k] times b [k, n]
Doubles product(const Doubles& a, const Doubles& b, size_t m, size_t k, size_t n) {
  Doubles c(m * n);
  for (size_t i = 0; i < m; ++i) {
    for (size_t s = 0; s < k; ++s) {
      for (size_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + s] * b[s * n + j];
    }
  }
  return c;
}

Doubles orthogonalised(Doubles x, Shape shape) {
  double squares = 0;
  for (double value : x) squares += value * value;
  for (double& value : x) value /= std::fmax(std::sqrt(squares), 1e-7);
  const size_t m = shape.rows, n = shape.columns;
  for (int round = 0; round < 5; ++round) {
    const Doubles gram = product(x, transposed(x, shape), m, n, m);
    Doubles polynomial = product(gram, gram, m, m, m);
    for (size_t i = 0; i < gram.size(); ++i) polynomial[i] = -4.7750 * gram[i] + 2.0315 * polynomial[i];
    const Doubles moved = product(polynomial, x, m, m, n);
    for (size_t i = 0; i < x.size(); ++i) x[i] = 3.4445 * x[i] + moved[i];
  }
  return x;
}

double ratio_of(MuonRatio ratio, Shape shape) {
  const auto rows = static_cast<double>(shape.rows), columns = static_cast<double>(shape.columns);
  if (ratio == MuonRatio::kOriginal) return std::sqrt(std::fmax(1, rows / columns));
  return ratio == MuonRatio::kSpectralUnclamped ? std::sqrt(rows / columns) : 0.2 * std::sqrt(std::fmax(rows, columns));
}

double largest_of(const Doubles& values) {
  double largest = 0;
  for (double value : values) largest = std::fmax(largest, std::fabs(value));
  return largest;
}

void test_steps(Context& context, const char* level, Random& random) {
  // Each of five rounds can multiply an error by 3.4445: of the roundings to 2^-9 that bf16 adds in each, a tenth of the largest value remains.
  const bool bf16 = context.compute == ComputeType::kBf16 && context.kernels.gemm.bf16 != nullptr;
  const double tolerance = bf16 ? 0.12 : 1e-4;
  for (const Shape shape : kShapes) {
    for (const MuonRatio ratio : {MuonRatio::kOriginal, MuonRatio::kMatchRmsAdamW, MuonRatio::kSpectralUnclamped}) {
      const size_t n = shape.rows * shape.columns;
      Floats p = random.normals(n), momentum(n);
      Doubles want(p.begin(), p.end()), want_momentum(n);
      const double size = largest_of(want);
      const MuonConfig config{0.02, 0.1, 0.95, ratio, 0.5f};
      MuonScratch scratch;
      const std::string what = std::string(level) + (bf16 ? " bf16 muon " : " muon ") + std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
      double largest = 0;
      for (int step = 0; step < 2; ++step) {
        Floats g = random.normals(n);
        expect_ok(muon_update(context, config, shape.rows, shape.columns, StoredFloats(g.data()), StoredFloats(p.data()), momentum.data(), &scratch),
                  what.c_str());
        Doubles x(n);
        for (size_t i = 0; i < n; ++i) {
          const double gradient = 0.5 * static_cast<double>(g[i]);
          want_momentum[i] = 0.95 * want_momentum[i] + 0.05 * gradient;
          x[i] = 0.95 * want_momentum[i] + 0.05 * gradient;
        }
        x = orthogonalised(x, shape);
        const double rate = 0.02 * ratio_of(ratio, shape);
        largest += rate * largest_of(x);
        for (size_t i = 0; i < n; ++i) want[i] = want[i] * (1 - 0.02 * 0.1) - rate * x[i];
      }
      expect_all_near(momentum.data(), want_momentum, 1e-6, (what + " momentum").c_str(), 1e-7);
      expect_all_near(p.data(), want, Doubles(n, tolerance * largest + 3e-7 * size), what.c_str());
    }
  }
}

// Of a matrix with singular values of one size, what comes out has them between 0.7 and 1.2 (0.65 and 1.25 in bf16): so has X·Xᵀ its trace.
void test_orthogonal(Context& context, const char* level, Random& random) {
  const Shape shape{24, 400};
  const size_t n = shape.rows * shape.columns;
  Floats g = random.normals(n), p(n), momentum(n);
  MuonScratch scratch;
  expect_ok(muon_update(context, {1, 0, 0.95, MuonRatio::kOriginal, 1}, shape.rows, shape.columns, StoredFloats(g.data()), StoredFloats(p.data()),
                        momentum.data(), &scratch), level);
  for (size_t i = 0; i < shape.rows; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (size_t c = 0; c < shape.columns; ++c) sum += static_cast<double>(p[i * shape.columns + c]) * static_cast<double>(p[j * shape.columns + c]);
      if (i == j) expect(sum > 0.65 * 0.65 && sum < 1.25 * 1.25, "%s: row %zu has the square %g", level, i, sum);
      else expect(std::fabs(sum) < 0.35, "%s: rows %zu and %zu have the product %g", level, i, j, sum);
    }
  }
}

void test_storage_and_threads(Context& context, const char* level, Random& random) {
  const Shape shape{131, 517};
  const size_t n = shape.rows * shape.columns;
  const Floats start = floats_of(halves_of(random.normals(n))), g = floats_of(halves_of(random.normals(n)));
  const MuonConfig config{0.02, 0.1, 0.95, MuonRatio::kMatchRmsAdamW, 1};
  std::vector<uint16_t> first;
  Floats exact = start;
  for (size_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Context with_threads{.pool = pool, .kernels = context.kernels, .compute = context.compute};
    MuonScratch scratch;
    Floats momentum(n), gradient = g, p = start;
    std::vector<uint16_t> halves = halves_of(start), gradient_halves = halves_of(g);
    expect_ok(muon_update(with_threads, config, shape.rows, shape.columns, StoredFloats(gradient.data()), StoredFloats(p.data()), momentum.data(),
                          &scratch), level);
    if (threads == 1) exact = p;
    expect(p == exact, "%s: muon gives other bits with %zu threads", level, threads);
    momentum.assign(n, 0);
    const StoredFloats stored(context.kernels, DType::kBF16, halves.data(), 11, 3);
    expect_ok(muon_update(with_threads, config, shape.rows, shape.columns, StoredFloats(context.kernels, DType::kBF16, gradient_halves.data()), stored,
                          momentum.data(), &scratch), level);
    std::vector<uint16_t> want(n);
    context.kernels.optimizer.round_randomly(exact.data(), n, 11, 3, 0, want.data());
    expect(halves == want, "%s: muon in bf16 is not that of fp32, rounded (%zu threads)", level, threads);
  }
}

void test_zero(Context& context, const char* level) {
  Floats g(6), p = {1, 2, 3, 4, 5, 6}, momentum(6);
  const Floats start = p;
  MuonScratch scratch;
  expect_ok(muon_update(context, {0.1, 0, 0.95, MuonRatio::kOriginal, 1}, 2, 3, StoredFloats(g.data()), StoredFloats(p.data()), momentum.data(),
                        &scratch), level);
  expect(p == start, "%s: muon moved a matrix without a gradient", level);
}

}  // namespace

void test_all() {
  Random random(test_seed() + 11);
  for_each_level(2, [&](Context& context, const char* level) {
    for (ComputeType compute : {ComputeType::kF32, ComputeType::kBf16}) {
      Context computing{.pool = context.pool, .kernels = context.kernels, .compute = compute};
      test_steps(computing, level, random);
      test_orthogonal(computing, level, random);
      test_storage_and_threads(computing, level, random);
      test_zero(computing, level);
    }
  });
}

}  // namespace lowrank::test

int main() {
  lowrank::test::test_all();
  return lowrank::test::finish();
}

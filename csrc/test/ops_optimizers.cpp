// The code maps and the optimizers but 32-bit AdamW (ops_elementwise.cpp) against double-precision references, at every level: odd
// sizes, blocks of zeros, huge and tiny states, and the same bits for any number of threads.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "ops/adafactor.h"
#include "ops/coded_update.h"
#include "ops/dynamic_map.h"
#include "ops/sgd.h"
#include "test/reference.h"

namespace lowrank::test {
namespace {

constexpr size_t kSizes[] = {0, 1, 3, 255, 256, 257, 1009, 70001};

Doubles to_doubles(const Floats& values) { return Doubles(values.begin(), values.end()); }

// ── maps ──

// The nearest by looking at all; the first of equally near ones.
size_t nearest(const float* values, double x) {
  size_t best = 0;
  for (size_t i = 1; i < CodeMap::kCodes; ++i) {
    if (std::fabs(values[i] - x) < std::fabs(values[best] - x)) best = i;
  }
  return best;
}

size_t code_of(const CodeMap& map, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  size_t code = map.first[bits >> 16];
  for (int step = 0; step < map.steps; ++step) code += static_cast<double>(x) > map.midpoints[code];
  return code;
}

void test_map(const CodeMap& map, Random& random, const char* what) {
  expect(std::is_sorted(map.values, map.values + CodeMap::kCodes), "%s: not ascending", what);
  Floats tried = {0.0f, -0.0f, 1.0f, -1.0f, 1e-38f, 1e-45f, -1e-45f, 3e-7f, 2.0f, -2.0f};
  for (size_t i = 0; i + 1 < CodeMap::kCodes; ++i) {
    const auto midpoint = static_cast<float>(map.midpoints[i]);
    tried.insert(tried.end(), {map.values[i], midpoint, std::nextafter(midpoint, 2.0f), std::nextafter(midpoint, -2.0f)});
  }
  for (int i = 0; i < 20000; ++i) {
    const auto magnitude = static_cast<float>(std::pow(10.0, -9 * random.uniform()));
    tried.push_back(random.coin() ? magnitude : -magnitude);
  }
  for (const float x : tried) {
    const size_t got = code_of(map, x), want = nearest(map.values, static_cast<double>(x));
    if (!expect(map.values[got] == map.values[want], "%s of %.9g: code %zu instead of %zu", what, static_cast<double>(x), got, want)) return;
  }
  expect(map.values[code_of(map, 0.0f)] == 0, "%s: zero is not the code of zero", what);
}

std::unique_ptr<CodeMap> any_map(Random& random) {
  Floats values = random.normals(CodeMap::kCodes);
  values[3] = values[7] = 0;
  std::sort(values.begin(), values.end());
  auto map = std::make_unique<CodeMap>();
  make_code_map(values.data(), map.get());
  return map;
}

void test_maps(Random& random) {
  test_map(dynamic_code_map(true), random, "signed map");
  test_map(dynamic_code_map(false), random, "unsigned map");
  expect(dynamic_code_map(true).steps == 1 && dynamic_code_map(false).steps == 1, "a dynamic map takes %d and %d steps", dynamic_code_map(true).steps,
         dynamic_code_map(false).steps);
  test_map(*any_map(random), random, "any map");
}

// ── states of 8 bits ──

struct Coded {
  const CodeMap& map;
  std::vector<uint8_t> codes;
  Floats absmax;

  Coded(const CodeMap& of, size_t n) : map(of), codes(n), absmax((n + kCodeBlock - 1) / kCodeBlock) {}
  CodedState view() { return {&map, codes.data(), absmax.data()}; }
  double value(size_t i) const { return static_cast<double>(map.values[codes[i]]) * static_cast<double>(absmax[i / kCodeBlock]); }
};

// What is stored of `want`, element by element: the block's largest magnitude, and the nearest codes (either of two that rounding
// cannot tell apart: `want` is a sum of terms of magnitude `terms` in fp32, where denormals are zeros).
void expect_stored(const Coded& got, const Doubles& want, const Doubles& terms, const char* what) {
  constexpr double kRounding = 3e-7;
  const double smallest = 2 * static_cast<double>(std::numeric_limits<float>::min());
  for (size_t begin = 0; begin < want.size(); begin += kCodeBlock) {
    const size_t end = std::min(want.size(), begin + kCodeBlock);
    double absmax = 0, largest_error = 0;
    for (size_t i = begin; i < end; ++i) {
      absmax = std::fmax(absmax, std::fabs(want[i]));
      largest_error = std::fmax(largest_error, kRounding * terms[i] + smallest);
    }
    if (!expect_near(static_cast<double>(got.absmax[begin / kCodeBlock]), absmax, largest_error, what, begin)) return;
    if (absmax <= largest_error) continue;
    for (size_t i = begin; i < end; ++i) {
      const double x = absmax > 0 ? want[i] / absmax : 0;
      const double distance = std::fabs(static_cast<double>(got.map.values[got.codes[i]]) - x);
      const double error = (kRounding * terms[i] + smallest + std::fabs(x) * largest_error) / absmax;
      const double least = std::fabs(static_cast<double>(got.map.values[nearest(got.map.values, x)]) - x);
      if (!expect(distance <= least + 2 * error, "%s [%zu]: %.9g is stored as %.9g", what, i, x,
                  static_cast<double>(got.map.values[got.codes[i]]))) return;
    }
  }
}

// Gradients of very different sizes, block by block; every seventh element never has one.
Floats gradients(size_t n, Random& random) {
  Floats g = random.normals(n);
  for (size_t i = 0; i < n; ++i) {
    const size_t block = i / kCodeBlock % 4;
    g[i] = i % 7 == 0 ? 0.0f : g[i] * (block == 0 ? 1.0f : block == 1 ? 1e12f : block == 2 ? 1e-17f : 0.0f);
  }
  return g;
}

void test_adamw_coded(Context& context, Random& random) {
  for (const size_t n : kSizes) {
    Coded m(dynamic_code_map(true), n), v(dynamic_code_map(false), n);
    Floats p = random.normals(n);
    const Floats start = p;
    AdamWConfig config{.lr = 3e-3, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = n % 2 ? 0.1 : 0.0, .step = 0, .grad_scale = 0.5f};
    for (config.step = 1; config.step <= 8; ++config.step) {
      const Floats g = gradients(n, random);
      Doubles want_m(n), want_v(n), want_p = to_doubles(p), tolerance(n), terms(n);
      for (size_t i = 0; i < n; ++i) {
        const double gradient = static_cast<double>(config.grad_scale) * static_cast<double>(g[i]);
        want_m[i] = config.beta1 * m.value(i) + (1 - config.beta1) * gradient;
        want_v[i] = config.beta2 * v.value(i) + (1 - config.beta2) * gradient * gradient;
        terms[i] = std::fabs(m.value(i)) + std::fabs(gradient);
        const double t = static_cast<double>(config.step);
        want_p[i] *= 1 - config.lr * config.weight_decay;
        const double update = config.lr * (want_m[i] / (1 - std::pow(config.beta1, t))) /
                              (std::sqrt(want_v[i] / (1 - std::pow(config.beta2, t))) + config.eps);
        want_p[i] -= update;
        const double scale = config.lr * terms[i] / (std::sqrt(want_v[i]) + config.eps);
        tolerance[i] = 1e-6 * (std::fabs(want_p[i]) + std::fabs(update) + scale) + 1e-12;
      }
      expect_ok(adamw_update_coded(context, config, n, g.data(), p.data(), m.view(), v.view()), "coded adamw");
      expect_all_near(p.data(), want_p, tolerance, "coded adamw p");
      expect_stored(m, want_m, terms, "coded adamw m");
      expect_stored(v, want_v, want_v, "coded adamw v");
    }
    for (size_t i = 0; i < n && config.weight_decay == 0; i += 7) {
      expect(p[i] == start[i] && m.value(i) == 0 && v.value(i) == 0, "coded adamw moved [%zu], which never had a gradient", i);
    }
  }
}

void test_lion(Context& context, Random& random, bool coded) {
  for (const size_t n : kSizes) {
    Coded m(dynamic_code_map(true), n);
    Floats wide(n), p = random.normals(n);
    const Floats start = p;
    const LionConfig config{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.98, .weight_decay = n % 2 ? 0.1 : 0.0, .grad_scale = 0.25f};
    for (int step = 0; step < 8; ++step) {
      const Floats g = gradients(n, random);
      Doubles want_m(n), want_p = to_doubles(p), tolerance(n), terms(n);
      for (size_t i = 0; i < n; ++i) {
        const double gradient = static_cast<double>(config.grad_scale) * static_cast<double>(g[i]);
        const double before = coded ? m.value(i) : static_cast<double>(wide[i]);
        const double direction = config.beta1 * before + (1 - config.beta1) * gradient;
        want_m[i] = config.beta2 * before + (1 - config.beta2) * gradient;
        want_p[i] = want_p[i] * (1 - config.lr * config.weight_decay) - config.lr * (direction > 0 ? 1 : direction < 0 ? -1 : 0);
        terms[i] = std::fabs(before) + std::fabs(gradient);
        const bool near_zero = std::fabs(direction) < 1e-6 * terms[i];
        tolerance[i] = 3e-7 * (std::fabs(want_p[i]) + config.lr) + (near_zero ? 2 * config.lr : 0);
      }
      if (coded) {
        expect_ok(lion_update_coded(context, config, n, g.data(), p.data(), m.view()), "coded lion");
        expect_stored(m, want_m, terms, "coded lion m");
      } else {
        context.kernels.optimizer.lion(lion_factors(config), n, g.data(), p.data(), wide.data());
        for (double& term : terms) term = 1e-6 * term + 1e-37;
        expect_all_near(wide.data(), want_m, terms, "lion m");
      }
      expect_all_near(p.data(), want_p, tolerance, coded ? "coded lion p" : "lion p");
    }
    for (size_t i = 0; i < n && config.weight_decay == 0; i += 7) expect(p[i] == start[i], "lion moved [%zu], which never had a gradient", i);
  }
}

// Values next to midpoints, where rounding could tip them, and others; the first is the block's largest.
Floats values_near(const CodeMap& map, float absmax, size_t n, Random& random) {
  Floats x(n);
  for (float& value : x) {
    const float middle = static_cast<float>(map.midpoints[random.below(CodeMap::kCodes - 1)] * static_cast<double>(absmax));
    switch (random.below(6)) {
      case 0: value = middle; break;
      case 1: value = std::nextafter(middle, absmax); break;
      case 2: value = std::nextafter(middle, -absmax); break;
      case 3: value = 0; break;
      case 4: value = absmax * random.normal() * 1e-4f; break;
      default: value = absmax * (2 * static_cast<float>(random.uniform()) - 1);
    }
    value = std::fabs(value) < std::numeric_limits<float>::min() ? 0 : std::clamp(value, -absmax, absmax);  // the pool flushes denormals
  }
  x[0] = random.coin() ? absmax : -absmax;
  return x;
}

// A momentum of beta2 = 0 is the gradient, so that what is stored is known exactly: products of a midpoint and a magnitude are exact in double.
void test_codes_are_nearest(Context& context, const CodeMap& map, Random& random, const char* what) {
  for (int round = 0; round < 400; ++round) {
    const size_t n = 1 + random.below(kCodeBlock);
    const auto absmax = static_cast<float>(std::pow(10.0, 60 * random.uniform() - 30));
    const Floats g = values_near(map, absmax, n, random);
    Floats p(n);
    Coded m(map, n);
    for (uint8_t& code : m.codes) code = static_cast<uint8_t>(random.below(256));  // of a block of zeros
    expect_ok(lion_update_coded(context, {.lr = 1, .beta1 = 0.9, .beta2 = 0, .weight_decay = 0, .grad_scale = 1}, n, g.data(), p.data(), m.view()), what);
    expect(m.absmax[0] == absmax, "%s: a block's magnitude is %.9g instead of %.9g", what, static_cast<double>(m.absmax[0]), static_cast<double>(absmax));
    for (size_t i = 0; i < n; ++i) {
      size_t want = 0;
      while (static_cast<double>(g[i]) > map.midpoints[want] * static_cast<double>(absmax)) ++want;
      if (!expect(m.codes[i] == want, "%s: %.9g of %.9g has the code %d instead of %zu", what, static_cast<double>(g[i]), static_cast<double>(absmax),
                  m.codes[i], want)) return;
    }
  }
}

void test_sgd(Context& context, Random& random) {
  for (const size_t n : kSizes) {
    Floats p = random.normals(n), m(n);
    Doubles want_p = to_doubles(p), want_m(n);
    for (int step = 0; step < 10; ++step) {
      const Floats g = random.normals(n);
      for (size_t i = 0; i < n; ++i) {
        want_m[i] = 0.9 * want_m[i] + 0.5 * static_cast<double>(g[i]) + 0.01 * want_p[i];
        want_p[i] -= 1e-2 * want_m[i];
      }
      context.kernels.optimizer.sgd(sgd_factors(1e-2, 0.9, 0.01, 0.5f), n, g.data(), p.data(), m.data());
    }
    expect_all_near(p.data(), want_p, 1e-6, "sgd p");
    expect_all_near(m.data(), want_m, 1e-6, "sgd m");
  }
}

void test_refusals(Context& context) {
  Coded m(dynamic_code_map(true), 2), v(dynamic_code_map(false), 2);
  Floats p = {1, 2}, g = {1, std::numeric_limits<float>::quiet_NaN()};
  AdamWConfig config{.lr = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0, .step = 1, .grad_scale = 1};
  expect_code(adamw_update_coded(context, config, 2, g.data(), p.data(), m.view(), v.view()), Code::kNonFinite, "coded adamw of NaN");
  expect_code(lion_update_coded(context, {1, 0.9, 0.99, 0, 1}, 2, g.data(), p.data(), m.view()), Code::kNonFinite, "coded lion of NaN");
  config.step = 0;
  expect_code(adamw_update_coded(context, config, 1, g.data(), p.data(), m.view(), v.view()), Code::kInvalidOption, "coded adamw at step 0");
  expect(p[0] == 1 && p[1] == 2 && m.absmax[0] == 0, "a refused update changed something");
}

// ── adafactor ──

void test_adafactor(Random& random) {
  for (const auto& [rows, columns] : {std::pair<size_t, size_t>{0, 3}, {1, 1}, {3, 17}, {64, 5}, {131, 257}}) {
    const size_t n = rows * columns;
    Floats p = random.normals(n), r(rows), c(columns), vector_p = p, squares(n);
    Doubles want = to_doubles(p), want_vector = want, want_r(rows), want_c(columns), want_squares(n);
    for (uint64_t step = 1; step <= 6; ++step) {
      Floats g = random.normals(n, 0.1f);
      const AdafactorConfig config{.lr = 1e-2, .weight_decay = 0.05, .step = step, .grad_scale = 0.5f};
      const double beta2 = 1 - std::pow(static_cast<double>(step), -0.8);
      const auto squared = [&](size_t i) { return 0.25 * static_cast<double>(g[i]) * static_cast<double>(g[i]) + 1e-30; };
      for (double& value : want_r) value *= beta2;
      for (double& value : want_c) value *= beta2;
      double mean = 0;
      for (size_t i = 0; i < n; ++i) {
        want_r[i / columns] += (1 - beta2) * squared(i) / static_cast<double>(columns);
        want_c[i % columns] += (1 - beta2) * squared(i) / static_cast<double>(rows);
        want_squares[i] = beta2 * want_squares[i] + (1 - beta2) * squared(i);
      }
      for (double value : want_r) mean += value / static_cast<double>(rows);
      const auto apply = [&](Doubles& to, const auto& denominator) {
        double sum = 0;
        Doubles update(n);
        for (size_t i = 0; i < n; ++i) {
          update[i] = 0.5 * static_cast<double>(g[i]) / std::sqrt(denominator(i));
          sum += update[i] * update[i];
        }
        const double clip = std::fmax(1.0, std::sqrt(sum / static_cast<double>(n)));
        for (size_t i = 0; i < n; ++i) to[i] = to[i] * (1 - 1e-2 * 0.05) - 1e-2 * update[i] / clip;
      };
      apply(want, [&](size_t i) { return want_r[i / columns] / mean * want_c[i % columns]; });
      apply(want_vector, [&](size_t i) { return want_squares[i]; });
      adafactor_update_matrix(config, rows, columns, StoredFloats(g.data()), StoredFloats(p.data()), r.data(), c.data());
      adafactor_update_vector(config, n, StoredFloats(g.data()), StoredFloats(vector_p.data()), squares.data());
    }
    expect_all_near(p.data(), want, 1e-6, "adafactor matrix");
    expect_all_near(r.data(), want_r, 1e-6, "adafactor rows");
    expect_all_near(c.data(), want_c, 1e-6, "adafactor columns");
    expect_all_near(vector_p.data(), want_vector, 1e-6, "adafactor vector");
  }
}

void test_threads(CpuLevel level, Random& random) {
  const size_t n = 70001;
  const Floats start = random.normals(n), g = random.normals(n);
  std::vector<uint8_t> codes;
  Floats values;
  for (size_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Context context{pool, kernels_for(level)};
    Coded m(dynamic_code_map(true), n), v(dynamic_code_map(false), n);
    Floats p = start;
    AdamWConfig config{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .step = 0, .grad_scale = 1};
    for (config.step = 1; config.step <= 3; ++config.step) {
      expect_ok(adamw_update_coded(context, config, n, g.data(), p.data(), m.view(), v.view()), "threads");
    }
    if (threads == 1) {
      codes = v.codes;
      values = p;
    }
    expect(v.codes == codes && std::memcmp(p.data(), values.data(), n * sizeof(float)) == 0, "%s: other bits with %zu threads",
           level_name(level), threads);
  }
}

}  // namespace
}  // namespace lowrank::test

int main() {
  using namespace lowrank::test;
  Random random(test_seed());
  test_maps(random);
  test_adafactor(random);
  for_each_level(2, [&](lowrank::Context& context, const char*) {
    test_adamw_coded(context, random);
    test_lion(context, random, false);
    test_lion(context, random, true);
    test_sgd(context, random);
    test_codes_are_nearest(context, lowrank::dynamic_code_map(true), random, "signed map");
    test_codes_are_nearest(context, lowrank::dynamic_code_map(false), random, "unsigned map");
    test_codes_are_nearest(context, *any_map(random), random, "any map");
    test_refusals(context);
    test_threads(context.kernels.level, random);
  });
  return finish();
}

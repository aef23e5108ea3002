// RMSNorm, SwiGLU, dropout, embedding, AdamW and the gradient norm against double-precision
// references, at every level, with odd sizes, strides, the aliasing that the headers promise, and
// the same bits for any number of threads.
#include <cstring>
#include <functional>
#include <limits>

#include "core/half.h"
#include "core/philox.h"
#include "ops/adamw.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/rmsnorm.h"
#include "ops/swiglu.h"
#include "test/reference.h"

namespace lowrank::test {
namespace {

struct Shape {
  size_t rows, columns;
};
// The last two fork: more than one chunk of 2^15 elements.
constexpr Shape kShapes[] = {{0, 5},   {1, 1},    {1, 3},     {3, 17},   {2, 64},
                             {5, 127}, {17, 576}, {131, 577}, {3, 40009}};

// Rounding of the fp32 sums and of exp: a few units in the last place of the largest term.
constexpr double kTolerance = 2e-6;

// Central difference of a scalar function along one input.
double slope(const std::function<double(const Doubles&)>& f, Doubles at, size_t index,
             double step = 1e-5) {
  const double center = at[index];
  at[index] = center + step;
  const double above = f(at);
  at[index] = center - step;
  return (above - f(at)) / (2 * step);
}

Doubles to_doubles(const Floats& values) { return Doubles(values.begin(), values.end()); }

bool expect_same_bits(const Floats& got, const Floats& want, const char* what) {
  return expect(got.size() == want.size() &&
                    (got.empty() || std::memcmp(got.data(), want.data(), got.size() * 4) == 0),
                "%s: other bits", what);
}

// ── RMSNorm ──

constexpr double kEps = 1e-5;

double inverse_rms(const double* x, size_t channels) {
  double squares = 0;
  for (size_t c = 0; c < channels; ++c) squares += x[c] * x[c];
  return 1 / std::sqrt(squares / static_cast<double>(channels) + kEps);
}

// Σ_c dy[c] · y[c] of one row as a function of x.
double rmsnorm_objective(const Doubles& x, const Floats& w, const float* dy) {
  const double inverse = inverse_rms(x.data(), x.size());
  double sum = 0;
  for (size_t c = 0; c < x.size(); ++c)
    sum += static_cast<double>(dy[c]) * x[c] * inverse * static_cast<double>(w[c]);
  return sum;
}

void test_rmsnorm(Context& context, Random& random) {
  for (const auto [tokens, channels] : kShapes) {
    const Floats x = random.normals(tokens * channels, 3), w = random.normals(channels),
                 dy = random.normals(tokens * channels);
    Floats y(tokens * channels), inv_rms(tokens), dw = random.normals(channels);
    const float eps = static_cast<float>(kEps);
    expect_ok(rmsnorm_forward(context, x.data(), w.data(), eps, tokens, channels, {y.data(), channels},
                              inv_rms.data()),
              "rmsnorm");

    Doubles want_y, want_dx, dx_tolerance, want_dw = to_doubles(dw);
    const Doubles xd = to_doubles(x);
    for (size_t t = 0; t < tokens; ++t) {
      const double* row = &xd[t * channels];
      const double inverse = inverse_rms(row, channels);
      double dot = 0;
      for (size_t c = 0; c < channels; ++c) {
        const double gradient = static_cast<double>(dy[t * channels + c]);
        want_y.push_back(row[c] * inverse * static_cast<double>(w[c]));
        want_dw[c] += gradient * row[c] * inverse;
        dot += gradient * static_cast<double>(w[c]) * row[c];
      }
      for (size_t c = 0; c < channels; ++c) {
        const double straight =
            inverse * static_cast<double>(w[c]) * static_cast<double>(dy[t * channels + c]);
        const double along_x =
            row[c] * inverse * inverse * inverse / static_cast<double>(channels) * dot;
        want_dx.push_back(straight - along_x);
        dx_tolerance.push_back(
            kTolerance * (1e-1 + std::fabs(straight) + std::fabs(along_x)));  // they may cancel
      }
    }
    expect_all_near(y.data(), want_y, kTolerance, "rmsnorm y");

    Floats dx(tokens * channels);
    expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy.data(), tokens,
                               channels, dx.data(), false, dw.data()),
              "rmsnorm backward");
    expect_all_near(dx.data(), want_dx, dx_tolerance, "rmsnorm dx");
    expect_all_near(dw.data(), want_dw, kTolerance, "rmsnorm dw");

    // The reference itself against finite differences, where that is cheap.
    if (tokens > 0 && channels < 200) {
      for (size_t c = 0; c < channels; c += 1 + channels / 5) {
        const double difference =
            slope([&](const Doubles& at) { return rmsnorm_objective(at, w, dy.data()); },
                  Doubles(xd.begin(), xd.begin() + static_cast<ptrdiff_t>(channels)), c);
        expect_near(dx[c], difference, 1e-5 * (1 + std::fabs(difference)),
                    "rmsnorm dx by differences", c);
      }
    }

    // dx += on top of a residual's gradient; y over x; dx over dy, with dw still of the true dy.
    const Floats residual = random.normals(tokens * channels);
    Floats summed = residual;
    expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy.data(), tokens,
                               channels, summed.data(), true, nullptr),
              "rmsnorm backward +=");
    for (size_t i = 0; i < summed.size(); ++i) {
      if (!expect(summed[i] == residual[i] + dx[i], "rmsnorm dx += differs at %zu", i)) break;
    }
    Floats in_place = x, inv_again(tokens), dy_in_place = dy, dw_again(channels),
           dw_apart(channels);
    expect_ok(rmsnorm_forward(context, in_place.data(), w.data(), eps, tokens, channels,
                              {in_place.data(), channels}, inv_again.data()),
              "rmsnorm in place");
    expect_same_bits(in_place, y, "rmsnorm y over x");
    expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy.data(), tokens,
                               channels, dx.data(), false, dw_apart.data()),
              "rmsnorm backward");
    expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy_in_place.data(),
                               tokens, channels, dy_in_place.data(), false, dw_again.data()),
              "rmsnorm backward in place");
    expect_same_bits(dy_in_place, dx, "rmsnorm dx over dy");
    expect_same_bits(dw_again, dw_apart, "rmsnorm dw with dx over dy");
  }
}

// ── SwiGLU ──

double silu(double x) { return x / (1 + std::exp(-x)); }

void test_swiglu(Context& context, Random& random) {
  for (const auto [tokens, ffn] : kShapes) {
    const size_t stride = 2 * ffn + 3;  // gate and up side by side, and a gap
    Floats gu = random.normals(tokens * stride, 4);
    const Floats dh = random.normals(tokens * ffn);
    if (tokens > 0) gu[0] = -200, gu[ffn] = 2;  // exp(200) leaves fp32
    Floats h(tokens * ffn), dgu(tokens * stride, 7.0f);
    expect_ok(swiglu_forward(context, {gu.data(), stride}, {gu.data() + ffn, stride}, tokens, ffn,
                             {h.data(), ffn}),
              "swiglu");
    expect_ok(swiglu_backward(context, {gu.data(), stride}, {gu.data() + ffn, stride},
                              {dh.data(), ffn}, tokens, ffn, {dgu.data(), stride},
                              {dgu.data() + ffn, stride}),
              "swiglu backward");
    Doubles want_h, want_dgu(tokens * stride, 7.0);
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t c = 0; c < ffn; ++c) {
        const double g = static_cast<double>(gu[t * stride + c]),
                     u = static_cast<double>(gu[t * stride + ffn + c]);
        const double gradient = static_cast<double>(dh[t * ffn + c]),
                     sigma = 1 / (1 + std::exp(-g));
        want_h.push_back(silu(g) * u);
        want_dgu[t * stride + c] = gradient * u * sigma * (1 + g * (1 - sigma));
        want_dgu[t * stride + ffn + c] = gradient * silu(g);
      }
    }
    expect_all_near(h.data(), want_h, kTolerance, "swiglu h");
    expect_all_near(dgu.data(), want_dgu, kTolerance, "swiglu dg, du, and the gap untouched");

    for (size_t c = 1; tokens > 0 && c < ffn; c += 1 + ffn / 5) {
      const double u = static_cast<double>(gu[ffn + c]), gradient = static_cast<double>(dh[c]);
      const double difference = slope([&](const Doubles& at) { return silu(at[0]) * u * gradient; },
                                      {static_cast<double>(gu[c])}, 0);
      expect_near(dgu[c], difference, 1e-5 * (1 + std::fabs(difference)),
                  "swiglu dg by differences", c);
    }

    Floats in_place = gu;
    expect_ok(swiglu_backward(context, {in_place.data(), stride}, {in_place.data() + ffn, stride},
                              {dh.data(), ffn}, tokens, ffn, {in_place.data(), stride},
                              {in_place.data() + ffn, stride}),
              "swiglu backward in place");
    for (size_t t = 0; t < tokens; ++t) {
      if (!expect(std::memcmp(&in_place[t * stride], &dgu[t * stride], 2 * ffn * 4) == 0,
                  "swiglu in place: other bits"))
        break;
    }
  }
  const float nan = std::numeric_limits<float>::quiet_NaN(), one = 1;
  float h;
  expect_ok(swiglu_forward(context, {&nan, 1}, {&one, 1}, 1, 1, {&h, 1}), "swiglu of NaN");
  expect(std::isnan(h), "swiglu of NaN is %g", static_cast<double>(h));
}

// ── Dropout ──

// dropout.h's definition through core/philox.h, one element at a time.
bool kept(uint64_t element, float p, uint64_t seed, uint64_t module) {
  const uint64_t counter = element / 8;
  const auto words =
      philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                  static_cast<uint32_t>(module), static_cast<uint32_t>(module >> 32)},
                 seed);
  const uint32_t word = words[element % 8 / 2];
  const uint32_t bits = element % 2 == 0 ? word & 0xffff : word >> 16;
  return bits >= std::lround(static_cast<double>(p) * 65536);
}

void test_dropout(Context& context, Random& random) {
  for (const auto [tokens, channels] : kShapes) {
    for (const float p : {0.0f, 0.1f, 0.5f, 0.999999f}) {
      const uint64_t seed = random.next(), module = random.next();
      const size_t x_stride = channels + random.below(3), y_stride = channels + random.below(3);
      const Floats x = random.normals(tokens * x_stride),
                   before = random.normals(tokens * y_stride);
      Floats y = before, sum = before;
      expect_ok(dropout_apply(context, {x.data(), x_stride}, tokens, channels, p, seed, module,
                              {y.data(), y_stride}, false),
                "dropout");
      expect_ok(dropout_apply(context, {x.data(), x_stride}, tokens, channels, p, seed, module,
                              {sum.data(), y_stride}, true),
                "dropout +=");
      const float scale = static_cast<float>(1 / (1 - static_cast<double>(p)));
      Floats want = before, want_sum = before;
      for (size_t t = 0; t < tokens; ++t) {
        for (size_t c = 0; c < channels; ++c) {
          const float value =
              kept(t * channels + c, p, seed, module) ? x[t * x_stride + c] * scale : 0.0f;
          want[t * y_stride + c] = value;
          want_sum[t * y_stride + c] += value;
        }
      }
      for (size_t i = 0; i < y.size(); ++i) {
        if (!expect(y[i] == want[i] && sum[i] == want_sum[i], "dropout p=%g differs at %zu",
                    static_cast<double>(p), i))
          break;
      }
      Floats in_place = x;
      expect_ok(dropout_apply(context, {in_place.data(), x_stride}, tokens, channels, p, seed, module,
                              {in_place.data(), x_stride}, false),
                "dropout in place");
      for (size_t t = 0; t < tokens; ++t) {
        if (!expect(std::memcmp(&in_place[t * x_stride], &y[t * y_stride], channels * 4) == 0,
                    "dropout in place: other bits"))
          break;
      }
    }
  }
  float x = 1;
  for (const float p : {-0.1f, 1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    expect_code(dropout_apply(context, {&x, 1}, 1, 1, p, 0, 0, {&x, 1}, false), Code::kInvalidOption,
                "dropout outside [0, 1)");
  }
}

// ── Embedding ──

void test_embedding(Context& context, Random& random) {
  for (const auto [tokens, channels] : kShapes) {
    const size_t rows = 1 + random.below(50);
    const Floats table = random.normals(rows * channels), dx = random.normals(tokens * channels);
    const std::vector<uint16_t> table_bf16 = halves_of(table);
    std::vector<int32_t> ids;
    for (size_t t = 0; t < tokens; ++t) ids.push_back(static_cast<int32_t>(random.below(rows)));

    Floats x(tokens * channels), x_bf16(tokens * channels),
        dtable = random.normals(rows * channels), want = dtable;
    expect_ok(embedding_forward(context, matrix(table.data(), DType::kF32, rows, channels),
                                ids.data(), tokens, x.data()),
              "embedding");
    expect_ok(embedding_forward(context, matrix(table_bf16.data(), DType::kBF16, rows, channels),
                                ids.data(), tokens, x_bf16.data()),
              "embedding bf16");
    expect_ok(
        embedding_backward(context, ids.data(), tokens, dx.data(), rows, channels, {dtable.data(), channels}),
        "embedding backward");
    bool same = true;
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t c = 0; c < channels; ++c) {
        const size_t source = static_cast<size_t>(ids[t]) * channels + c;
        same = same && x[t * channels + c] == table[source] &&
               x_bf16[t * channels + c] == bf16_to_f32(table_bf16[source]);
        want[source] += dx[t * channels + c];
      }
    }
    expect(same, "embedding differs from its table (%zu x %zu)", tokens, channels);
    expect_same_bits(dtable, want, "embedding gradient in token order");

    Floats sums(rows * channels);
    for (size_t i = 0; i < dx.size(); ++i) sums[static_cast<size_t>(ids[i / channels]) * channels + i % channels] += dx[i];
    std::vector<uint16_t> halves = table_bf16, want_halves = table_bf16;
    for (size_t i = 0; i < halves.size(); ++i) want_halves[i] = f32_to_bf16(bf16_to_f32(halves[i]) + sums[i]);
    expect_ok(embedding_backward(context, ids.data(), tokens, dx.data(), rows, channels, {halves.data(), channels, DType::kBF16}),
              "embedding backward in bf16");
    expect(halves == want_halves, "embedding gradient in bf16 (%zu x %zu)", tokens, channels);
  }

  const Floats table(12);
  Floats x(6), dtable(12);
  const int32_t ids[] = {0, 3, 5};
  for (const int32_t bad :
       {4, -1, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
    const int32_t with_bad[] = {ids[0], ids[1], bad};
    const Status status =
        embedding_forward(context, matrix(table.data(), DType::kF32, 4, 3), with_bad, 3, x.data());
    expect_code(status, Code::kShapeMismatch, "embedding of an id outside");
    expect(status.message().find("token 2 has id " + std::to_string(bad)) != std::string::npos,
           "embedding says: %s", status.message().c_str());
    expect_code(embedding_backward(context, with_bad, 3, x.data(), 4, 3, {dtable.data(), 3}),
                Code::kShapeMismatch, "embedding gradient of an id outside");
  }
}

// ── AdamW ──

void test_adamw(Context& context, Random& random) {
  for (const size_t n :
       {size_t{0}, size_t{1}, size_t{3}, size_t{17}, size_t{1009}, size_t{70001}}) {
    AdamWConfig config{.lr = 3e-3,
                       .beta1 = 0.9,
                       .beta2 = 0.999,
                       .eps = 1e-8,
                       .weight_decay = 0.1,
                       .step = 0,
                       .grad_scale = 0.5f};
    Floats p = random.normals(n), m(n), v(n);
    Doubles want_p = to_doubles(p), want_m(n), want_v(n);
    for (config.step = 1; config.step <= 20; ++config.step) {
      Floats g = random.normals(n);
      if (n > 0) g[0] = 0;  // never had a gradient: only decay may move it
      expect_ok(adamw_update(context, config, n, g.data(), p.data(), m.data(), v.data()), "adamw");
      const double step = static_cast<double>(config.step);
      for (size_t i = 0; i < n; ++i) {
        const double gradient = static_cast<double>(g[i]) * static_cast<double>(config.grad_scale);
        want_m[i] = config.beta1 * want_m[i] + (1 - config.beta1) * gradient;
        want_v[i] = config.beta2 * want_v[i] + (1 - config.beta2) * gradient * gradient;
        const double m_hat = want_m[i] / (1 - std::pow(config.beta1, step)),
                     v_hat = want_v[i] / (1 - std::pow(config.beta2, step));
        want_p[i] -=
            config.lr * (m_hat / (std::sqrt(v_hat) + config.eps) + config.weight_decay * want_p[i]);
      }
    }
    expect_all_near(p.data(), want_p, 1e-6, "adamw p");
    expect_all_near(m.data(), want_m, 1e-6, "adamw m");
    expect_all_near(v.data(), want_v, 1e-6, "adamw v");
  }
  float g = 0, p = 1.25f, m = 0, v = 0;
  AdamWConfig config{.lr = 1,
                     .beta1 = 0.9,
                     .beta2 = 0.999,
                     .eps = 1e-8,
                     .weight_decay = 0,
                     .step = 1,
                     .grad_scale = 1};
  expect_ok(adamw_update(context, config, 1, &g, &p, &m, &v), "adamw without gradient");
  expect(p == 1.25f, "adamw moved a parameter that has no gradient");
  config.step = 0;
  expect_code(adamw_update(context, config, 1, &g, &p, &m, &v), Code::kInvalidOption,
              "adamw at step 0");
}

void test_grad_norm(Context& context, Random& random) {
  for (const auto [count, size] : kShapes) {
    std::vector<Floats> gradients;
    for (size_t i = 0; i < count; ++i)
      gradients.push_back(random.normals(random.below(size + 1), 1e-3f));
    gradients.emplace_back(1, 1e25f);  // its square is no fp32
    double want = 0, sum = -1;
    std::vector<GradientSpan> spans;
    std::vector<std::vector<uint16_t>> halves;
    for (Floats& gradient : gradients) {
      halves.push_back(halves_of(gradient));
      const bool bf16 = random.coin();
      if (bf16) gradient = floats_of(halves.back());
      for (float value : gradient) want += static_cast<double>(value) * static_cast<double>(value);
      spans.push_back(bf16 ? GradientSpan(halves.back().data(), gradient.size(), DType::kBF16)
                           : GradientSpan(std::span<const float>(gradient)));
    }
    expect_ok(grad_norm_squared(context, spans, &sum), "gradient norm");
    expect_near(sum, want, 1e-12 * want, "gradient norm", 0);
  }
  double sum = -1;
  expect_ok(grad_norm_squared(context, {}, &sum), "gradient norm of nothing");
  expect(sum == 0, "gradient norm of nothing is %g", sum);
  const Floats bad{1, std::numeric_limits<float>::infinity(), 2};
  const GradientSpan spans[] = {std::span<const float>(bad)};
  expect_ok(grad_norm_squared(context, spans, &sum), "gradient norm of infinity");
  expect(std::isinf(sum), "gradient norm of infinity is %g", sum);
}

// ── Bits against the number of threads ──

// Everything that forks, into one vector.
Floats run_all(Context& context) {
  Random random(test_seed());
  const size_t tokens = 331, channels = 577;
  const Floats x = random.normals(tokens * channels), w = random.normals(channels),
               dy = random.normals(tokens * channels);
  Floats out(tokens * channels), inv_rms(tokens), dw(channels), p = x, m = w, v(tokens * channels),
                                                                result;
  m.resize(p.size());
  const auto keep = [&](const Floats& values) {
    result.insert(result.end(), values.begin(), values.end());
  };
  std::vector<int32_t> ids;
  for (size_t t = 0; t < tokens; ++t) ids.push_back(static_cast<int32_t>(random.below(7)));

  expect_ok(rmsnorm_forward(context, x.data(), w.data(), 1e-5f, tokens, channels, {out.data(), channels},
                            inv_rms.data()),
            "rmsnorm");
  keep(out), keep(inv_rms);
  expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy.data(), tokens,
                             channels, out.data(), false, dw.data()),
            "rmsnorm backward");
  keep(out), keep(dw);
  expect_ok(swiglu_forward(context, {x.data(), channels}, {dy.data(), channels}, tokens, channels,
                           {out.data(), channels}),
            "swiglu");
  keep(out);
  expect_ok(dropout_apply(context, {x.data(), channels}, tokens, channels, 0.3f, 1, 2,
                          {out.data(), channels}, false),
            "dropout");
  keep(out);
  Floats dtable(7 * channels);
  expect_ok(embedding_backward(context, ids.data(), tokens, dy.data(), 7, channels, {dtable.data(), channels}),
            "embedding backward");
  keep(dtable);
  const AdamWConfig config{.lr = 1e-2,
                           .beta1 = 0.9,
                           .beta2 = 0.99,
                           .eps = 1e-8,
                           .weight_decay = 0.01,
                           .step = 3,
                           .grad_scale = 1};
  expect_ok(adamw_update(context, config, p.size(), dy.data(), p.data(), m.data(), v.data()),
            "adamw");
  keep(p), keep(m), keep(v);
  double sum;
  const GradientSpan spans[] = {std::span<const float>(x), std::span<const float>(dy), std::span<const float>(w)};
  expect_ok(grad_norm_squared(context, spans, &sum), "gradient norm");
  Floats halves(2);
  std::memcpy(halves.data(), &sum, sizeof sum);
  keep(halves);
  return result;
}

void test_threads() {
  std::vector<Floats> alone;
  for_each_level(1, [&](Context& context, const char*) { alone.push_back(run_all(context)); });
  for (const size_t threads : {2, 3, 7}) {
    size_t level = 0;
    for_each_level(threads, [&](Context& context, const char* name) {
      expect_same_bits(
          run_all(context), alone[level++],
          (std::string(name) + " with " + std::to_string(threads) + " threads").c_str());
    });
  }
}

}  // namespace
}  // namespace lowrank::test

int main() {
  using namespace lowrank::test;
  for_each_level(2, [](lowrank::Context& context, const char*) {
    Random random(test_seed());
    test_rmsnorm(context, random);
    test_swiglu(context, random);
    test_dropout(context, random);
    test_embedding(context, random);
    test_adamw(context, random);
    test_grad_norm(context, random);
  });
  test_threads();
  return finish();
}

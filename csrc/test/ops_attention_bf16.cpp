// Attention with bf16 operands. Inputs hold bf16 values whichever type stores them, so the reference in double precision sees what the
// kernels see, and tolerances count only what is rounded on the way: probabilities, gradients of scores, stored results. Where a query
// sees one key everything is exact, and compared bit for bit with host twins of VDPBF16PS
// and TDPBF16PS.
#include <cstring>

#include "core/half.h"
#include "test/attention_cases.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

constexpr double kRounding = 0x1p-8;       // of a value to bf16, relative
constexpr double kExponential = 8e-5;      // of exp2_to_round
constexpr double kNoise = 5e-6;            // of fp32 sums, relative to a tensor's largest value

float rounded(float value) { return bf16_to_f32(f32_to_bf16(value)); }

// A tensor of either type.
struct Tensor {
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  size_t stride = 0;
  bool bf16 = false;

  Tensor(const std::vector<float>& values, size_t row_stride, bool as_bf16)
      : floats(values), halves(halves_of(values)), stride(row_stride), bf16(as_bf16) {}
  Rows rows() {
    return bf16 ? Rows{halves.data(), stride, DType::kBF16} : Rows{floats.data(), stride, DType::kF32};
  }
  std::vector<float> values() const { return bf16 ? floats_of(halves) : floats; }
};

// Which tensors are stored as bf16.
struct Types {
  bool q, k, v, o, d_o, dq, dk, dv;
};
constexpr Types kAllBf16 = {true, true, true, true, true, true, true, true};
constexpr Types kActivationsBf16 = {true, true, true, true, true, false, false, false};
constexpr Types kAllF32 = {};

Types random_types(Random& random) {
  const auto coin = [&] { return random.coin(); };
  return {coin(), coin(), coin(), coin(), coin(), coin(), coin(), coin()};
}

void round_inputs(Case& c) {
  for (std::vector<float>* tensor : {&c.q, &c.k, &c.v, &c.d_o}) {
    for (float& value : *tensor) value = rounded(value);
  }
}

struct Outputs {
  std::vector<float> o, lse, dq, dk, dv;
};

Outputs run(Context& context, const Case& c, const Types& types) {
  Tensor q(c.q, c.q_stride, types.q), k(c.k, c.kv_stride, types.k), v(c.v, c.kv_stride, types.v), d_o(c.d_o, c.q_stride, types.d_o);
  const std::vector<float> queries(c.q.size(), kUntouched), keys(c.k.size(), kUntouched);
  Tensor o(queries, c.q_stride, types.o), dq(queries, c.q_stride, types.dq);
  Tensor dk(keys, c.kv_stride, types.dk), dv(keys, c.kv_stride, types.dv);
  std::vector<float> lse(c.q_rows * c.shape.heads, kUntouched);
  expect_ok(attention_forward(context, c.shape, c.sequences, q.rows(), k.rows(), v.rows(), o.rows(), lse.data()), c.name.c_str());
  const bool sums = types.dq || types.dk || types.dv;
  std::vector<char> scratch(attention_backward_scratch(c.shape, c.q_rows, c.kv_rows, sums ? DType::kBF16 : DType::kF32));
  expect_ok(attention_backward(context, c.shape, c.sequences, q.rows(), k.rows(), v.rows(), o.rows(), lse.data(), d_o.rows(),
                               dq.rows(), dk.rows(), dv.rows(), scratch.data()),
            c.name.c_str());
  return {o.values(), lse, dq.values(), dk.values(), dv.values()};
}

// How far each element may lie from the reference: every term of a sum off by as much as its rounded factors.
Expected tolerances(const Case& c, const Expected& want, const Types& types) {
  Expected bound;
  bound.o.assign(want.o.size(), 0);
  bound.dq = bound.o;
  bound.dk.assign(want.dk.size(), 0);
  bound.dv = bound.dk;
  bound.lse.assign(want.lse.size(), kRounding + kExponential + 1e-5);
  const std::vector<double> q = widened(c.q), k = widened(c.k);
  const size_t dim = c.shape.head_dim, group = c.shape.heads / c.shape.kv_heads;
  const double off = kRounding + kExponential, scale = std::fabs(c.shape.scale);
  for (const AttentionSequence& s : c.sequences) {
    for (size_t i = 0; i < s.q_len; ++i) {
      for (size_t h = 0; h < c.shape.heads; ++h) {
        const size_t row = (s.q_begin + i) * c.q_stride + h * dim;
        const auto key_row = [&](size_t j) { return (s.kv_begin + j) * c.kv_stride + h / group * dim; };
        double lse;
        const std::vector<double> p = probabilities(c, s, q, k, i, h, &lse);
        double delta = 0, delta_off = 0;
        for (size_t d = 0; d < dim; ++d) {
          for (size_t j = 0; j < s.kv_len; ++j) bound.o[row + d] += 2 * off * p[j] * std::fabs(c.v[key_row(j) + d] - want.o[row + d]);
          if (types.o) bound.o[row + d] += kRounding * std::fabs(want.o[row + d]);
          delta += want.o[row + d] * c.d_o[row + d];
          delta_off += bound.o[row + d] * std::fabs(c.d_o[row + d]);
        }
        for (size_t j = 0; j < s.kv_len; ++j) {
          double dp = 0;
          for (size_t d = 0; d < dim; ++d) dp += c.d_o[row + d] * c.v[key_row(j) + d];
          // P again, off by its exponential and by lse; then rounded, as is dS.
          const double p_off = (2 * off + kExponential) * p[j];
          const double ds_off = scale * (p_off * std::fabs(dp - delta) + p[j] * delta_off) + kRounding * scale * p[j] * std::fabs(dp - delta);
          for (size_t d = 0; d < dim; ++d) {
            bound.dq[row + d] += ds_off * std::fabs(k[key_row(j) + d]);
            bound.dk[key_row(j) + d] += ds_off * std::fabs(q[row + d]);
            bound.dv[key_row(j) + d] += (p_off + kRounding * p[j]) * std::fabs(c.d_o[row + d]);
          }
        }
      }
    }
  }
  const auto add_stored = [](std::vector<double>& off_by, const std::vector<double>& value, bool bf16) {
    for (size_t i = 0; bf16 && i < value.size(); ++i) off_by[i] += kRounding * (std::fabs(value[i]) + off_by[i]);
  };
  add_stored(bound.dq, want.dq, types.dq);
  add_stored(bound.dk, want.dk, types.dk);
  add_stored(bound.dv, want.dv, types.dv);
  return bound;
}

// Each element within its tolerance, and the errors of many rows together within a third of it: rounding is as often up as down.
void expect_tensor(const Case& c, const std::string& what, const std::vector<float>& got, const std::vector<double>& want,
                   const std::vector<double>& tolerance) {
  double largest = 1, errors = 0, bounds = 0;
  for (double value : want) {
    if (value != kUntouched) largest = std::max(largest, std::fabs(value));
  }
  for (size_t i = 0; i < want.size(); ++i) {
    if (want[i] == kUntouched) {
      if (!expect(got[i] == rounded(kUntouched), "%s [%zu]: %g where nothing should be", what.c_str(), i, got[i])) return;
      continue;
    }
    const double bound = tolerance[i] + kNoise * largest;
    if (!expect_near(got[i], want[i], bound, what.c_str(), i)) return;
    errors += (got[i] - want[i]) * (got[i] - want[i]);
    bounds += bound * bound;
  }
  const bool many = c.q_rows * c.shape.heads >= 200;
  expect(!many || errors <= bounds / 9, "%s: errors of %.3g, of which %.3g are expected", what.c_str(), std::sqrt(errors), std::sqrt(bounds) / 3);
}

void compare(Case& c, const Types& types) {
  round_inputs(c);
  Expected want = reference(c, widened(c.q), widened(c.k), widened(c.v));
  const Expected bound = tolerances(c, want, types);
  keep_untouched(c, want);
  for_each_level(2, [&](Context& context, const char* level) {
    if (context.kernels.attention.bf16 == nullptr) return;
    Context computing{context.pool, context.kernels, ComputeType::kBf16};
    const Outputs got = run(computing, c, types);
    const std::string what = std::string(level) + " " + c.name + " ";
    expect_tensor(c, what + "o", got.o, want.o, bound.o);
    expect_tensor(c, what + "lse", got.lse, want.lse, bound.lse);
    expect_tensor(c, what + "dq", got.dq, want.dq, bound.dq);
    expect_tensor(c, what + "dk", got.dk, want.dk, bound.dk);
    expect_tensor(c, what + "dv", got.dv, want.dv, bound.dv);
  });
}

void test_shapes(Random& random) {
  const std::vector<std::vector<Lengths>> packs = {{{1, 1}}, {{2, 2}}, {{3, 3}, {17, 17}}, {{64, 64}, {1, 1}, {31, 31}}, {{255, 255}},
                                                   {{257, 257}}, {{0, 0}, {5, 5}, {0, 7}}, {{1, 333}}, {{7, 200}}, {{130, 391}, {3, 3}}};
  const size_t dims[] = {32, 64, 80, 96, 128, 1, 2, 3, 13, 31, 65};
  const std::pair<size_t, size_t> groups[] = {{1, 1}, {3, 3}, {9, 3}, {5, 1}};
  size_t n = 0;
  for (const std::vector<Lengths>& lengths : packs) {
    for (const auto& [heads, kv_heads] : groups) {
      Case c = make_case(random, heads, kv_heads, dims[n++ % std::size(dims)], 0, lengths, random.below(5));
      compare(c, n % 3 == 0 ? kActivationsBf16 : kAllBf16);
    }
  }
  for (size_t dim : {160, 192, 256}) {
    Case c = make_case(random, 2, 1, dim, 0, {{70, 150}}, 0);
    compare(c, kAllBf16);
  }
  Case longer = make_case(random, 2, 1, 16, 0, {{1100, 1100}}, 0);
  compare(longer, kAllBf16);
}

void test_windows(Random& random) {
  for (size_t window : {1, 2, 7, 64, 129, 300, 1000}) {
    Case c = make_case(random, 4, 2, 24, window, {{200, 200}, {1, 300}, {3, 301}, {140, 700}, {1, 1}}, 2);
    compare(c, random.coin() ? kAllBf16 : random_types(random));
  }
}

void test_random(Random& random) {
  for (size_t n = 0; n < 40; ++n) {
    Case c = random_case(random);
    if (n % 5 == 0) c.shape.scale = -c.shape.scale;
    compare(c, random_types(random));
  }
}

// fp32 inputs of any value, as generation hands them over: rounded to bf16 inside, which moves scores of a few units by some 1e-2.
void test_unrounded(Random& random) {
  Case c = make_case(random, 6, 2, 64, 0, {{150, 150}, {40, 300}}, 0);
  const Expected want = reference(c, widened(c.q), widened(c.k), widened(c.v));
  for_each_level(2, [&](Context& context, const char* level) {
    if (context.kernels.attention.bf16 == nullptr) return;
    Context computing{context.pool, context.kernels, ComputeType::kBf16};
    const Outputs got = run(computing, c, kAllF32);
    const auto compare_tensor = [&](const char* tensor, const std::vector<float>& values, std::vector<double> expected, size_t stride,
                                    size_t width, bool queries) {
      keep_untouched(c, expected.size() / stride, stride, width, queries, expected);
      double errors = 0, total = 0;
      for (size_t i = 0; i < expected.size(); ++i) {
        errors += (values[i] - expected[i]) * (values[i] - expected[i]);
        total += expected[i] == kUntouched ? 0 : expected[i] * expected[i];
      }
      expect(errors <= 1e-2 * 1e-2 * total, "%s %s: relative error of %.3g", level, tensor, std::sqrt(errors / total));
    };
    const size_t q_width = c.shape.heads * c.shape.head_dim, kv_width = c.shape.kv_heads * c.shape.head_dim;
    compare_tensor("o", got.o, want.o, c.q_stride, q_width, true);
    compare_tensor("dq", got.dq, want.dq, c.q_stride, q_width, true);
    compare_tensor("dk", got.dk, want.dk, c.kv_stride, kv_width, false);
    compare_tensor("dv", got.dv, want.dv, c.kv_stride, kv_width, false);
  });
}

// acc = fma(even, even', fma(odd, odd', acc)), as VDPBF16PS does; or, as TDPBF16PS does, of every 32 d the even and the odd ones are summed
// apart.
float twin_of_score(const float* q, const float* k, size_t dim, bool tiles) {
  float sum = 0;
  for (size_t begin = 0; begin < dim; begin += 32) {
    float even = 0, odd = 0;
    for (size_t d = begin; d < std::min(dim, begin + 32); d += 2) {
      float& lower = tiles ? even : sum;
      float& upper = tiles ? odd : sum;
      if (d + 1 < dim) upper = std::fma(q[d + 1], k[d + 1], upper);
      lower = std::fma(q[d], k[d], lower);
    }
    if (tiles) sum += even + odd;
  }
  return sum;
}

// With a window of one, o is v, lse is the score, dq and dk are zero and dv is d_o, all exactly.
void test_twin(Random& random) {
  for (size_t dim : {1, 7, 32, 64, 80, 96, 129, 256}) {
    Case c = make_case(random, 4, 2, dim, 1, {{70, 70}, {2, 300}}, 3);
    round_inputs(c);
    for_each_level(2, [&](Context& context, const char* level) {
      if (context.kernels.attention.bf16 == nullptr) return;
      Context computing{context.pool, context.kernels, ComputeType::kBf16};
      const Outputs got = run(computing, c, kActivationsBf16);
      const bool tiles = context.kernels.level == CpuLevel::kAmx;
      const float factor = c.shape.scale * 1.44269504088896341f, ln2 = 0.693147180559945309f;
      for (const AttentionSequence& s : c.sequences) {
        for (size_t i = 0; i < s.q_len; ++i) {
          const size_t key = s.kv_begin + s.kv_len - s.q_len + i;
          for (size_t h = 0; h < 4; ++h) {
            const size_t row = (s.q_begin + i) * c.q_stride + h * dim, key_row = key * c.kv_stride + h / 2 * dim;
            const float want = twin_of_score(&c.q[row], &c.k[key_row], dim, tiles) * factor * ln2;
            const float lse = got.lse[(s.q_begin + i) * 4 + h];
            expect(lse == want, "%s dim %zu: lse %.9g instead of %.9g", level, dim, lse, want);
            for (size_t d = 0; d < dim; ++d) {
              expect(got.o[row + d] == c.v[key_row + d], "%s dim %zu: o %.9g instead of %.9g", level, dim, got.o[row + d],
                     c.v[key_row + d]);
              expect(got.dq[row + d] == 0 && got.dk[key_row + d] == 0, "%s dim %zu: gradients through one key", level, dim);
              const float sum = c.d_o[row + d] + (h % 2 == 0 ? c.d_o[row + dim + d] : c.d_o[row - dim + d]);
              expect(got.dv[key_row + d] == sum, "%s dim %zu: dv %.9g instead of %.9g", level, dim, got.dv[key_row + d], sum);
            }
          }
        }
      }
    });
  }
}

void test_threads(Random& random) {
  const Case c = make_case(random, 6, 2, 40, 0, {{400, 400}, {1, 700}, {33, 290}, {600, 600}}, 0);
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  };
  for (const Types& types : {kAllBf16, kAllF32}) {
    std::vector<Outputs> single;
    for (size_t threads : {1, 2, 3, 7}) {
      size_t index = 0;
      for_each_level(threads, [&](Context& context, const char* level) {
        if (context.kernels.attention.bf16 == nullptr) return;
        Context computing{context.pool, context.kernels, ComputeType::kBf16};
        const Outputs got = run(computing, c, types);
        if (threads == 1) {
          single.push_back(got);
          return;
        }
        const Outputs& want = single[index++];
        expect(same(got.o, want.o) && same(got.lse, want.lse) && same(got.dq, want.dq) && same(got.dk, want.dk) && same(got.dv, want.dv),
               "%s: other bits with %zu threads than with one", level, threads);
      });
    }
  }
}

// Scores of hundreds that rise and fall along the keys, so that references are raised late; and a NaN that must not be lost, nor spread to
// other rows.
void test_extremes(Random& random) {
  Case c = make_case(random, 2, 1, 16, 0, {{150, 150}, {20, 390}}, 0);
  for (float& value : c.q) value *= 60;
  for (size_t row = 0; row < c.kv_rows; ++row) {
    const float growth = static_cast<float>(1 + row % 97) / 40;
    for (size_t d = 0; d < c.kv_stride; ++d) c.k[row * c.kv_stride + d] *= growth;
  }
  compare(c, kAllBf16);
  for_each_level(1, [&](Context& context, const char* level) {
    if (context.kernels.attention.bf16 == nullptr) return;
    Context computing{context.pool, context.kernels, ComputeType::kBf16};
    Case poisoned = c;
    poisoned.q[70 * c.q_stride] = NAN;
    const Outputs got = run(computing, poisoned, kAllBf16);
    expect(std::isnan(got.o[70 * c.q_stride]) && std::isnan(got.lse[70 * 2]), "%s: NaN in q is lost", level);
    expect(!std::isnan(got.o[69 * c.q_stride]) && !std::isnan(got.o[71 * c.q_stride]), "%s: NaN in q spreads", level);
    expect(std::isnan(got.dk[0]), "%s: NaN in q does not reach dk", level);
  });
}

// bf16 rows need bf16 kernels and a context that computes in bf16; where a level has none, asking for bf16 changes nothing.
void test_levels(Random& random) {
  Case c = make_case(random, 2, 1, 16, 0, {{20, 20}}, 0);
  for_each_level(1, [&](Context& context, const char* level) {
    Context computing{context.pool, context.kernels, ComputeType::kBf16};
    Tensor bf16(c.q, c.q_stride, true), f32(c.q, c.q_stride, false);
    std::vector<char> scratch(attention_backward_scratch(c.shape, c.q_rows, c.kv_rows, DType::kBF16));
    std::vector<float> lse(c.q_rows * 2);
    for (Context* asked : {&context, &computing}) {
      if (asked == &computing && context.kernels.attention.bf16 != nullptr) continue;
      expect_code(attention_forward(*asked, c.shape, c.sequences, f32.rows(), f32.rows(), bf16.rows(), f32.rows(), lse.data()),
                  Code::kInvalidOption, level);
      expect_code(attention_backward(*asked, c.shape, c.sequences, f32.rows(), f32.rows(), f32.rows(), f32.rows(), lse.data(), f32.rows(),
                                     f32.rows(), bf16.rows(), f32.rows(), scratch.data()),
                  Code::kInvalidOption, level);
    }
    const bool same = run(context, c, kAllF32).o == run(computing, c, kAllF32).o;
    expect(same == (context.kernels.attention.bf16 == nullptr), "%s: bf16 where it should not be, or not where it should", level);
  });
}

}  // namespace

int main() {
  Random random(test_seed());
  test_shapes(random);
  test_windows(random);
  test_random(random);
  test_unrounded(random);
  test_twin(random);
  test_threads(random);
  test_extremes(random);
  test_levels(random);
  return finish();
}

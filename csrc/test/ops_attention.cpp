// Attention against a double-precision reference that follows the formula, finite differences of that reference, and itself with other
// numbers of threads.
#include "ops/attention.h"

#include <algorithm>
#include <cstring>

#include "test/attention_cases.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

struct Outputs {
  std::vector<float> o, lse, dq, dk, dv;
};

Outputs run(Context& context, const Case& c) {
  Outputs out;
  out.o.assign(c.q.size(), kUntouched);
  out.dq = out.o;
  out.dk.assign(c.k.size(), kUntouched);
  out.dv = out.dk;
  out.lse.assign(c.q_rows * c.shape.heads, kUntouched);
  expect_ok(attention_forward(context, c.shape, c.sequences, {c.q.data(), c.q_stride}, {c.k.data(), c.kv_stride},
                              {c.v.data(), c.kv_stride}, {out.o.data(), c.q_stride}, out.lse.data()),
            c.name.c_str());
  std::vector<char> scratch(attention_backward_scratch(c.shape, c.q_rows));
  expect_ok(attention_backward(context, c.shape, c.sequences, {c.q.data(), c.q_stride}, {c.k.data(), c.kv_stride},
                               {c.v.data(), c.kv_stride}, {out.o.data(), c.q_stride}, out.lse.data(), {c.d_o.data(), c.q_stride},
                               {out.dq.data(), c.q_stride}, {out.dk.data(), c.kv_stride}, {out.dv.data(), c.kv_stride},
                               scratch.data()),
            c.name.c_str());
  return out;
}

// Each tensor within `relative` of its largest magnitude: fp32 products of up to 1500 terms and a base-2 exponential.
void expect_tensor(const Case& c, const char* level, const char* tensor, const std::vector<float>& got, const std::vector<double>& want,
                   double relative) {
  double largest = 1;  // as the inputs: with one key, dq and dk are zero but for rounding
  for (double value : want) {
    if (value != kUntouched) largest = std::max(largest, std::fabs(value));
  }
  const std::string what = std::string(level) + " " + c.name + " " + tensor;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!expect_near(got[i], want[i], want[i] == kUntouched ? 0 : relative * largest, what.c_str(), i)) return;
  }
}

void compare(Case& c) {
  Expected want = reference(c, widened(c.q), widened(c.k), widened(c.v));
  keep_untouched(c, want);
  for_each_level(2, [&](Context& context, const char* level) {
    const Outputs got = run(context, c);
    expect_tensor(c, level, "o", got.o, want.o, 5e-6);
    expect_tensor(c, level, "lse", got.lse, want.lse, 2e-6);
    expect_tensor(c, level, "dq", got.dq, want.dq, 5e-6);
    expect_tensor(c, level, "dk", got.dk, want.dk, 5e-6);
    expect_tensor(c, level, "dv", got.dv, want.dv, 5e-6);
  });
}

void test_shapes(Random& random) {
  const std::vector<std::vector<Lengths>> packs = {
      {{1, 1}}, {{2, 2}}, {{17, 17}}, {{129, 129}}, {{64, 64}, {1, 1}, {31, 31}}, {{300, 300}},
      {{0, 0}, {5, 5}, {0, 7}}, {{1, 333}}, {{1, 1}, {1, 257}, {1, 65}}, {{7, 200}}, {{130, 391}, {3, 3}}};
  const size_t dims[] = {1, 2, 3, 8, 13, 16, 31, 48, 64, 65, 80, 96, 128};
  const std::pair<size_t, size_t> groups[] = {{1, 1}, {2, 1}, {3, 3}, {9, 3}, {5, 1}, {8, 2}};
  size_t n = 0;
  for (const std::vector<Lengths>& lengths : packs) {
    for (const auto& [heads, kv_heads] : groups) {
      const size_t dim = dims[n++ % std::size(dims)];
      Case c = make_case(random, heads, kv_heads, dim, 0, lengths, random.below(5));
      compare(c);
    }
  }
  for (size_t dim : dims) {
    Case c = make_case(random, 2, 1, dim, 0, {{33, 40}}, 1);
    compare(c);
  }
  Case wide = make_case(random, 2, 1, 256, 0, {{70, 150}}, 0);
  compare(wide);
  Case prime = make_case(random, 1, 1, 251, 0, {{150, 150}}, 3);
  compare(prime);
}

void test_windows(Random& random) {
  for (size_t window : {1, 2, 7, 64, 127, 128, 129, 1000}) {
    Case c = make_case(random, 4, 2, 24, window, {{200, 200}, {1, 300}, {3, 301}, {140, 500}, {1, 1}}, 2);
    compare(c);
  }
}

void test_random(Random& random) {
  for (size_t n = 0; n < 40; ++n) {
    Case c = random_case(random);
    compare(c);
  }
}

// Σ o · d_o of the reference, with one input moved: what a gradient is by definition.
void test_finite_differences(Random& random) {
  Case c = make_case(random, 4, 2, 5, 6, {{9, 9}, {4, 11}}, 0);
  const auto loss = [&](const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v) {
    const Expected e = reference(c, q, k, v);
    double sum = 0;
    for (size_t i = 0; i < e.o.size(); ++i) sum += e.o[i] * c.d_o[i];
    return sum;
  };
  const std::vector<double> inputs[] = {widened(c.q), widened(c.k), widened(c.v)};
  for_each_level(1, [&](Context& context, const char* level) {
    const Outputs got = run(context, c);
    const std::vector<float>* gradients[] = {&got.dq, &got.dk, &got.dv};
    for (size_t n = 0; n < 60; ++n) {
      const size_t which = n % 3, i = random.below(inputs[which].size());
      if ((*gradients[which])[i] == kUntouched) continue;
      double losses[2];
      for (int side = 0; side < 2; ++side) {
        std::vector<double> moved[] = {inputs[0], inputs[1], inputs[2]};
        moved[which][i] += side == 0 ? 1e-5 : -1e-5;
        losses[side] = loss(moved[0], moved[1], moved[2]);
      }
      expect_near((*gradients[which])[i], (losses[0] - losses[1]) / 2e-5, 2e-5, level, i);
    }
  });
}

void test_threads(Random& random) {
  const Case c = make_case(random, 6, 2, 40, 0, {{400, 400}, {1, 700}, {33, 290}, {129, 129}}, 0);
  Outputs first;
  for (size_t threads : {1, 2, 3, 7}) {
    size_t level_index = 0;
    static std::vector<Outputs> single;
    for_each_level(threads, [&](Context& context, const char* level) {
      const Outputs got = run(context, c);
      if (threads == 1) {
        single.push_back(got);
        return;
      }
      const Outputs& want = single[level_index++];
      const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
      };
      expect(same(got.o, want.o) && same(got.lse, want.lse) && same(got.dq, want.dq) && same(got.dk, want.dk) && same(got.dv, want.dv),
             "%s: other bits with %zu threads than with one", level, threads);
    });
  }
}

// Scores far beyond exp's range, and a NaN that must not be lost.
void test_extremes(Random& random) {
  Case c = make_case(random, 2, 1, 16, 0, {{150, 150}, {1, 90}}, 0);
  for (float& value : c.q) value *= 60;
  Expected want = reference(c, widened(c.q), widened(c.k), widened(c.v));
  keep_untouched(c, c.q_rows, c.q_stride, 32, true, want.o);
  for_each_level(1, [&](Context& context, const char* level) {
    // Scores of about 500 carry 3e-5 of rounding, which is the error of a probability.
    expect_tensor(c, level, "o with scores of hundreds", run(context, c).o, want.o, 3e-4);
    Case poisoned = c;
    poisoned.q[70 * c.q_stride] = NAN;
    const Outputs got = run(context, poisoned);
    expect(std::isnan(got.o[70 * c.q_stride]) && std::isnan(got.lse[70 * 2]), "%s: NaN in q is lost", level);
    expect(!std::isnan(got.o[69 * c.q_stride]) && !std::isnan(got.o[71 * c.q_stride]), "%s: NaN in q spreads", level);
    expect(std::isnan(got.dk[0]), "%s: NaN in q does not reach dk", level);
  });
}

void test_errors() {
  std::vector<float> x(64, 1.0f);
  for_each_level(1, [&](Context& context, const char*) {
    const auto status = [&](AttentionShape shape, AttentionSequence sequence) {
      const ConstRows view{x.data(), 4};
      return attention_forward(context, shape, {&sequence, 1}, view, view, view, {x.data(), 4}, nullptr);
    };
    expect_code(status({3, 2, 1, 1.0f}, {0, 1, 0, 1}), Code::kShapeMismatch, "3 heads of 2 key heads");
    expect_code(status({2, 0, 1, 1.0f}, {0, 1, 0, 1}), Code::kShapeMismatch, "no key heads");
    expect_code(status({2, 2, 0, 1.0f}, {0, 1, 0, 1}), Code::kShapeMismatch, "head_dim 0");
    expect_code(status({2, 2, 1, 1.0f}, {0, 2, 0, 1}), Code::kShapeMismatch, "more queries than keys");
  });
}

}  // namespace

int main() {
  Random random(test_seed());
  test_shapes(random);
  test_windows(random);
  test_random(random);
  test_finite_differences(random);
  test_threads(random);
  test_extremes(random);
  test_errors();
  return finish();
}

// Ops that take rows of fp32 or bf16, bit for bit: with bf16 they compute what they compute with fp32
// rows of the same values, rounded once where it is stored. At every level, also those that train in
// fp32 only.
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "ops/dropout.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"
#include "reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

using Halves = std::vector<uint16_t>;

// Values that bf16 holds.
Floats random_values(Random& random, size_t n) { return floats_of(halves_of(random.normals(n, 3))); }

Rows rows(Halves& halves, size_t stride) { return {halves.data(), stride, DType::kBF16}; }

void expect_rounded(const Halves& got, const Floats& of_floats, const char* level,
                    const char* what) {
  const Halves want = halves_of(of_floats);
  for (size_t i = 0; i < want.size(); ++i) {
    if (!expect(got[i] == want[i], "%s %s [%zu]: %#06x instead of %#06x", level, what, i, got[i],
                want[i]))
      return;
  }
}

struct Shape {
  size_t tokens, columns;
};
constexpr Shape kShapes[] = {{0, 3}, {1, 1}, {2, 7}, {3, 16}, {5, 33}, {70, 576}, {4, 1000}};

void test_rmsnorm(Context& context, const char* level, Random& random, Shape shape) {
  const auto [tokens, columns] = shape;
  const Floats x = random.normals(tokens * columns), w = random.normals(columns),
               dy = random.normals(tokens * columns);
  Floats y(tokens * columns), inv_rms(tokens), dx = random.normals(tokens * columns);
  Halves y_halves(tokens * (columns + 2)), rounded(tokens * columns);
  expect_ok(rmsnorm_forward(context, x.data(), w.data(), 1e-5f, tokens, columns,
                            {y.data(), columns}, inv_rms.data()),
            level);
  expect_ok(rmsnorm_forward(context, x.data(), w.data(), 1e-5f, tokens, columns,
                            rows(y_halves, columns + 2), inv_rms.data()),
            level);
  Halves tight;
  for (size_t i = 0; i < tokens * columns; ++i)
    tight.push_back(y_halves[i / columns * (columns + 2) + i % columns]);
  expect_rounded(tight, y, level, "rmsnorm");
  for (size_t t = 0; t < tokens; ++t)
    expect(y_halves[t * (columns + 2) + columns] == 0, "%s: rmsnorm wrote between rows", level);
  Floats plain = dx;
  expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy.data(), tokens,
                             columns, plain.data(), true, nullptr),
            level);
  expect_ok(rmsnorm_backward(context, x.data(), w.data(), inv_rms.data(), dy.data(), tokens,
                             columns, dx.data(), true, nullptr, rounded.data()),
            level);
  expect(dx == plain, "%s: rmsnorm's rounded dx changes dx", level);
  expect_rounded(rounded, dx, level, "rmsnorm dx");
}

void test_swiglu(Context& context, const char* level, Random& random, Shape shape) {
  const auto [tokens, columns] = shape;
  const size_t stride = 2 * columns + 1;
  const Floats gu = random_values(random, tokens * stride),
               dh = random_values(random, tokens * columns);
  Floats h(tokens * columns), dgu = gu;
  Halves h_halves(tokens * columns), dgu_halves = halves_of(gu), dh_halves = halves_of(dh);
  const ConstRows g{gu.data(), stride}, u{gu.data() + columns, stride};
  const Rows dg = rows(dgu_halves, stride), du = dg.at(0, columns);
  expect_ok(swiglu_forward(context, g, u, tokens, columns, {h.data(), columns}), level);
  expect_ok(swiglu_forward(context, dg, du, tokens, columns, rows(h_halves, columns)), level);
  expect_rounded(h_halves, h, level, "swiglu");
  expect_ok(swiglu_backward(context, g, u, {dh.data(), columns}, tokens, columns,
                            {dgu.data(), stride}, {dgu.data() + columns, stride}),
            level);
  expect_ok(swiglu_backward(context, dg, du, rows(dh_halves, columns), tokens, columns, dg, du),
            level);
  expect_rounded(dgu_halves, dgu, level, "swiglu in place, and what lies between rows");
}

void test_dropout(Context& context, const char* level, Random& random, Shape shape) {
  const auto [tokens, columns] = shape;
  for (const bool accumulate : {false, true}) {
    const uint64_t seed = random.next(), module = random.next();
    const size_t gap = random.below(2);
    const Floats x = random_values(random, tokens * columns),
                 before = random_values(random, tokens * (columns + gap));
    Halves x_halves = halves_of(x);
    Floats want = before;
    expect_ok(dropout_apply(context, {x.data(), columns}, tokens, columns, 0.3f, seed, module,
                            {want.data(), columns + gap}, accumulate),
              level);
    for (const ConstRows source : {ConstRows{x.data(), columns}, ConstRows(rows(x_halves, columns))}) {
      Halves y_halves = halves_of(before);
      Floats y = before;
      expect_ok(dropout_apply(context, source, tokens, columns, 0.3f, seed, module,
                              rows(y_halves, columns + gap), accumulate),
                level);
      expect_ok(dropout_apply(context, source, tokens, columns, 0.3f, seed, module,
                              {y.data(), columns + gap}, accumulate),
                level);
      expect_rounded(y_halves, want, level, "dropout");
      expect(y == want, "%s: dropout from other rows differs", level);
    }
  }
}

void test_rope(Context& context, const char* level, Random& random) {
  for (const size_t head_dim : {2, 6, 64, 80, 128}) {
    const size_t tokens = 9, heads = 3, stride = heads * head_dim + 5, half = head_dim / 2;
    Floats x = random_values(random, tokens * stride);
    const Floats angles = random.normals(tokens * half);
    Floats cos, sin;
    for (float angle : angles) cos.push_back(std::cos(angle)), sin.push_back(std::sin(angle));
    Halves halves = halves_of(x);
    const bool inverse = random.coin();
    expect_ok(rope_apply(context, {x.data(), stride}, tokens, heads, head_dim, head_dim, cos.data(),
                         sin.data(), inverse),
              level);
    expect_ok(rope_apply(context, rows(halves, stride), tokens, heads, head_dim, head_dim,
                         cos.data(), sin.data(), inverse),
              level);
    expect_rounded(halves, x, level, "rope");
  }
}

// Rounding keeps what is not a number, and infinities.
void test_special_values(Context& context, const char* level) {
  const Floats g{NAN, INFINITY, -INFINITY, 3.3e38f, -0.0f}, u{1, 1, 1, 2, 1};
  Halves g_halves = halves_of(g), u_halves = halves_of(u), h(g.size());
  expect_ok(swiglu_forward(context, rows(g_halves, 5), rows(u_halves, 5), 1, 5, rows(h, 5)), level);
  const Floats got = floats_of(h);
  expect(std::isnan(got[0]) && got[1] == INFINITY && std::isnan(got[2]) && got[3] == INFINITY &&
             got[4] == 0 && std::signbit(got[4]),
         "%s: special values become %g %g %g %g %g", level, static_cast<double>(got[0]),
         static_cast<double>(got[1]), static_cast<double>(got[2]), static_cast<double>(got[3]),
         static_cast<double>(got[4]));
  Halves dropped(g.size());
  expect_ok(dropout_apply(context, {g.data(), 5}, 1, 5, 0, 1, 1, rows(dropped, 5), false), level);
  const Floats kept = floats_of(dropped);
  expect(std::isnan(kept[0]) && kept[1] == INFINITY && kept[2] == -INFINITY,
         "%s: dropout loses special values", level);
}

}  // namespace

int main() {
  for_each_level(2, [](Context& context, const char* level) {
    Random random(test_seed());
    for (const Shape shape : kShapes) {
      test_rmsnorm(context, level, random, shape);
      test_swiglu(context, level, random, shape);
      test_dropout(context, level, random, shape);
    }
    test_rope(context, level, random);
    test_special_values(context, level);
  });
  return finish();
}

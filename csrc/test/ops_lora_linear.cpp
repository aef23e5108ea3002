// lora_linear against a reference in double precision, whose own gradients are checked by finite
// differences (every loss here is linear in each tensor taken alone, so that differences are exact
// up to rounding).
//   |error| <= 4e-6 of the sum of the magnitudes of all that is added up to an element: two products
//   in a row, each good to 1e-6 of its own. In bf16, on values that it holds exactly, 2^-7: between
//   those and the result lie up to four roundings, each by at most 2^-9 (of dropped x or a weight of
//   Q8_0, of s or ds, of the result).
#include <cstring>
#include <deque>

#include "core/half.h"
#include "lora_linear_case.h"
#include "ops/lora_linear.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

constexpr double kTolerance = 4e-6, kBf16Tolerance = 0x1p-7;

double loss(const Case& test, const Tensors& t) {
  std::vector<Doubles> s, y;
  reference_forward(test, t, &s, &y);
  double sum = 0;
  for (size_t p = 0; p < test.modules.size(); ++p) {
    const Module& module = test.modules[p];
    for (size_t i = 0; i < test.tokens; ++i) {
      for (size_t n = 0; n < module.out; ++n)
        sum += module.dy[i * module.y_stride + n] * y[p][i * module.out + n];
    }
  }
  return sum;
}

// Moves one tensor along a random direction: the loss must change by gradient · direction. `pick`
// finds it among the tensors.
template <class Pick>
void check_gradient(const Case& test, const Tensors& at, const Tensors& gradients, Random& random,
                    const Pick& pick, const char* what) {
  Tensors moved = at;
  Doubles& tensor = pick(moved);
  const Doubles& gradient = pick(gradients);
  const double before = loss(test, at);
  double expected = 0, magnitude = std::fabs(before);
  for (size_t i = 0; i < tensor.size(); ++i) {
    const double step = random.normal();
    tensor[i] += step;
    expected += step * gradient[i];
    magnitude += std::fabs(step * gradient[i]);
  }
  expect_near(loss(test, moved) - before, expected, 1e-11 * magnitude, what, 0);
}

void test_reference(Random& random) {
  const Case test = random_case(random, true);
  const Tensors t = tensors_of(test);
  std::vector<Doubles> s, y;
  reference_forward(test, t, &s, &y);
  const Tensors g = reference_backward(test, t, s);
  check_gradient(
      test, t, g, random, [](auto& all) -> auto& { return all.x; },
      "finite difference of the reference: x");
  for (size_t p = 0; p < test.modules.size(); ++p) {
    check_gradient(
        test, t, g, random, [p](auto& all) -> auto& { return all.weight[p]; },
        "finite difference of the reference: W");
    check_gradient(
        test, t, g, random, [p](auto& all) -> auto& { return all.bias[p]; },
        "finite difference of the reference: bias");
  }
  for (size_t l = 0; l < test.loras.size(); ++l) {
    check_gradient(
        test, t, g, random, [l](auto& all) -> auto& { return all.a[l]; },
        "finite difference of the reference: A");
    check_gradient(
        test, t, g, random, [l](auto& all) -> auto& { return all.b[l]; },
        "finite difference of the reference: B");
  }
}

// What a run wrote, in one list, to compare bits between thread counts.
struct Outputs {
  std::deque<Module> modules;
  std::deque<Lora> loras;
  std::vector<float> dx, s, all;
};

// Rows as a case keeps them: the vector itself, or `halves`, which become its values in bf16.
Rows rows_of(std::vector<float>& values, size_t stride, bool bf16, std::vector<uint16_t>& halves) {
  if (!bf16) return {values.data(), stride};
  halves = halves_of(values);
  return {halves.data(), stride, DType::kBF16};
}

void widen(const std::vector<uint16_t>& halves, std::vector<float>& values) {
  for (size_t i = 0; i < halves.size(); ++i) values[i] = bf16_to_f32(halves[i]);
}

Status run_case(Context& context, const Case& test, Outputs* out) {
  out->modules = test.modules;
  out->loras = test.loras;
  out->dx = test.dx;
  std::vector<Projection> group;
  for (size_t p = 0; p < out->modules.size(); ++p) {
    Module& module = out->modules[p];
    module.loras.clear();
    for (Lora& lora : out->loras) {
      if (lora.projection != p) continue;
      module.loras.push_back({lora.a.data(), lora.b.data(), lora.r, lora.scale, lora.dropout,
                              lora.module, lora.train_a ? lora.grad_a.data() : nullptr,
                              lora.train_b ? lora.grad_b.data() : nullptr});
    }
    group.push_back({matrix(module.bytes.data(), module.type, module.out, test.in),
                     module.has_bias ? module.bias.data() : nullptr, module.loras,
                     Rows{module.train_weight ? module.grad_weight.data() : nullptr, test.in},
                     module.train_bias ? module.grad_bias.data() : nullptr});
  }
  out->s.assign(test.tokens * lora_rank_sum(group) + 1, 0);
  std::vector<float> x = test.x;
  std::vector<uint16_t> x_halves, dx_halves;
  const LinearArgs args{test.tokens,
                        test.in,
                        rows_of(x, test.x_stride, test.x_in_bf16, x_halves),
                        group,
                        out->s.data(),
                        test.seed};
  std::vector<Rows> y;
  std::vector<ConstRows> dy, add;
  std::deque<std::vector<uint16_t>> y_halves, dy_halves;
  for (Module& module : out->modules) {
    y.push_back(rows_of(module.y, module.y_stride, test.y_in_bf16, y_halves.emplace_back()));
    dy.push_back(rows_of(module.dy, module.y_stride, test.dy_in_bf16, dy_halves.emplace_back()));
    if (test.accumulate) add.push_back({module.y.data(), module.y_stride});
  }
  Rows dx = rows_of(out->dx, test.dx_stride, test.dx_in_bf16, dx_halves);
  if (!test.has_dx) dx.data = nullptr;
  LR_RETURN_IF_ERROR(lora_linear_forward(context, args, y, add));
  LR_RETURN_IF_ERROR(lora_linear_backward(context, args, dy, dx, test.accumulate_dx));
  for (size_t p = 0; p < out->modules.size(); ++p) widen(y_halves[p], out->modules[p].y);
  widen(dx_halves, out->dx);
  const auto append = [&](const std::vector<float>& values) {
    out->all.insert(out->all.end(), values.begin(), values.end());
  };
  append(out->dx);
  for (const Module& module : out->modules) {
    append(module.y);
    append(module.grad_weight);
    append(module.grad_bias);
  }
  for (const Lora& lora : out->loras) {
    append(lora.grad_a);
    append(lora.grad_b);
  }
  return {};
}

void check(const Case& test, const std::vector<float>& got, const Doubles& want,
           const Doubles& magnitude, const std::string& what) {
  Doubles tolerance;
  for (double size : magnitude)
    tolerance.push_back((test.bf16 ? kBf16Tolerance : kTolerance) * size);
  expect_all_near(got.data(), want, tolerance, what.c_str());
}

// before + change where trained, before otherwise.
void check_grad(const Case& test, const std::vector<float>& got, const std::vector<float>& before,
                const Doubles& change, const Doubles& change_magnitude, bool trained,
                const std::string& what) {
  if (!trained) {
    expect(got == before, "%s is not trained", what.c_str());
    return;
  }
  Doubles want = doubles(before), magnitude = change_magnitude;
  for (size_t i = 0; i < want.size(); ++i) {
    magnitude[i] += std::fabs(want[i]);
    want[i] += change[i];
  }
  check(test, got, want, magnitude, what);
}

struct RowsOf {
  size_t stride, change_stride, n;
  bool accumulate;
};

void check_rows(const Case& test, const std::vector<float>& got, const std::vector<float>& before,
                const Doubles& change, const Doubles& change_magnitude, const RowsOf& rows,
                const std::string& what) {
  // What lies between rows must stay.
  Doubles want = doubles(before), magnitude(want.size(), 0);
  for (size_t t = 0; t < test.tokens; ++t) {
    for (size_t i = 0; i < rows.n; ++i) {
      const size_t at = t * rows.stride + i, change_at = t * rows.change_stride + i;
      const double was = rows.accumulate ? want[at] : 0;
      want[at] = was + change[change_at];
      magnitude[at] = std::fabs(was) + change_magnitude[change_at];
    }
  }
  check(test, got, want, magnitude, what);
}

void test_case(Context& context, const char* level, const Case& test) {
  const Reference want = reference_of(test), size = magnitudes_of(test);
  const Tensors &g = want.gradients, &g_size = size.gradients;
  const std::string where = std::string("lora_linear ") + level + (test.bf16 ? " bf16" : "") +
                            " T=" + std::to_string(test.tokens) + " in=" + std::to_string(test.in) +
                            ": ";
  std::vector<float> first;
  for (size_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Context with_threads{pool, context.kernels, test.bf16 ? ComputeType::kBf16 : ComputeType::kF32};
    Outputs out;
    if (!expect_ok(run_case(with_threads, test, &out), where.c_str())) return;
    if (threads == 1) first = out.all;
    expect(std::memcmp(first.data(), out.all.data(), first.size() * sizeof(float)) == 0,
           "%s%zu threads give other bits", where.c_str(), threads);
    if (threads != 1) continue;
    for (size_t p = 0; p < test.modules.size(); ++p) {
      const Module &was = test.modules[p], &now = out.modules[p];
      check_rows(test, now.y, was.y, want.y[p], size.y[p],
                 {was.y_stride, was.out, was.out, test.accumulate}, where + "y");
      check_grad(test, now.grad_weight, was.grad_weight, g.weight[p], g_size.weight[p],
                 was.train_weight, where + "dW");
      check_grad(test, now.grad_bias, was.grad_bias, g.bias[p], g_size.bias[p], was.train_bias,
                 where + "dbias");
    }
    for (size_t l = 0; l < test.loras.size(); ++l) {
      const Lora &was = test.loras[l], &now = out.loras[l];
      check_grad(test, now.grad_a, was.grad_a, g.a[l], g_size.a[l], was.train_a, where + "dA");
      check_grad(test, now.grad_b, was.grad_b, g.b[l], g_size.b[l], was.train_b, where + "dB");
    }
    if (test.has_dx) {
      check_rows(test, out.dx, test.dx, g.x, g_size.x,
                 {test.dx_stride, test.x_stride, test.in, test.accumulate_dx}, where + "dx");
    } else {
      expect(out.dx == test.dx, "%sdx was not asked for", where.c_str());
    }
  }
}

void test_errors(Context& context) {
  std::vector<float> x(8), w(16), y(8);
  const Projection projection{matrix(w.data(), DType::kF32, 4, 4), nullptr, {}};
  LinearArgs args{2, 4, {x.data(), 4}, {&projection, 1}, nullptr};
  Rows out{y.data(), 4};
  expect_ok(lora_linear_forward(context, args, {&out, 1}),
            "without attachments");
  expect_code(lora_linear_forward(context, args, {}), Code::kShapeMismatch, "no y");
  out.stride = 3;
  expect_code(lora_linear_forward(context, args, {&out, 1}),
              Code::kShapeMismatch, "rows of y overlap");
  out.stride = 4;
  args.in = 3;
  expect_code(lora_linear_forward(context, args, {&out, 1}),
              Code::kShapeMismatch, "another in");
  args.in = 4;
  args.x.stride = 2;
  expect_code(lora_linear_forward(context, args, {&out, 1}),
              Code::kShapeMismatch, "rows of x overlap");
  args.x.stride = 4;
  const LoraAttachment lora{w.data(), w.data(), 2, 1};
  const Projection attached{projection.weight, nullptr, {&lora, 1}};
  args.group = {&attached, 1};
  expect_code(lora_linear_forward(context, args, {&out, 1}),
              Code::kShapeMismatch, "no s");
  args.tokens = 0;
  args.s = y.data();
  expect_ok(lora_linear_forward(context, args, {&out, 1}), "no tokens");
}

}  // namespace

int main() {
  Random random(test_seed());
  for (int round = 0; round < 5; ++round) test_reference(random);
  for_each_level(2, [&](Context& context, const char* level) {
    Random cases(test_seed() + 1);
    for (int round = 0; round < 30; ++round) {
      const Case test = random_case(cases, round % 2 == 1);
      test_case(context, level, test);
      if (context.kernels.gemm.bf16 != nullptr) test_case(context, level, in_bf16(test, cases));
    }
    test_errors(context);
  });
  return finish();
}

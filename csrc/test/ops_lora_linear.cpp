// lora_linear against a reference in double precision, whose own gradients are checked by finite
// differences (every loss here is linear in each tensor taken alone, so that differences are exact
// up to rounding).
//   |error| <= 4e-6 of the largest value of the tensor: two products in a row, each good to 1e-6 of
//   its sum of magnitudes.
#include <cstring>
#include <deque>

#include "core/half.h"
#include "core/philox.h"
#include "ops/dequantize.h"
#include "ops/lora_linear.h"
#include "reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

constexpr double kTolerance = 4e-6;

struct Lora {
  size_t r, projection;
  std::vector<float> a, b, grad_a, grad_b;
  float scale, dropout;
  uint64_t module;
  bool train_a, train_b;
};

struct Module {
  size_t out, y_stride;
  DType type;
  std::vector<unsigned char> bytes;
  std::vector<float> weight, bias, grad_weight, grad_bias, y, dy;  // weight: its exact values
  bool has_bias, train_weight, train_bias;
  std::vector<LoraAttachment> loras;
};

struct Case {
  size_t tokens, in, x_stride, dx_stride;
  uint64_t seed;
  bool accumulate, accumulate_dx, has_dx;
  std::vector<float> x, dx;
  std::deque<Module> modules;
  std::deque<Lora> loras;
};

// The values of a projection's weight as stored: fp32, bf16, or Q8_0 where a row is whole blocks.
void store_weight(Random& random, Module& module, size_t in) {
  const size_t n = module.out * in;
  module.type = std::vector<DType>{DType::kF32, DType::kBF16,
                                   in % 32 == 0 ? DType::kQ8_0 : DType::kF16}[random.below(3)];
  module.bytes.resize(module.out * row_bytes(module.type, in));
  module.weight.resize(n);
  if (module.type == DType::kQ8_0) {
    for (size_t block = 0; block < n / 32; ++block) {
      unsigned char* bytes = module.bytes.data() + block * 34;
      const uint16_t scale = f32_to_f16(0.01f);
      std::memcpy(bytes, &scale, 2);
      for (size_t i = 0; i < 32; ++i) {
        bytes[2 + i] = static_cast<unsigned char>(random.next());
        module.weight[block * 32 + i] =
            f16_to_f32(scale) * static_cast<float>(static_cast<int8_t>(bytes[2 + i]));
      }
    }
    return;
  }
  for (size_t i = 0; i < n; ++i) {
    const float value = random.normal();
    const uint16_t bf16 = f32_to_bf16(value), f16 = f32_to_f16(value);
    if (module.type == DType::kF32) {
      std::memcpy(module.bytes.data() + 4 * i, &value, 4);
      module.weight[i] = value;
    } else {
      std::memcpy(module.bytes.data() + 2 * i, module.type == DType::kBF16 ? &bf16 : &f16, 2);
      module.weight[i] = module.type == DType::kBF16 ? bf16_to_f32(bf16) : f16_to_f32(f16);
    }
  }
}

Case random_case(Random& random, bool dropout) {
  constexpr size_t kTokens[] = {1, 2, 3, 4, 5, 8, 17, 31, 64, 130},
                   kIn[] = {1, 3, 17, 32, 64, 96, 100, 576};
  Case test;
  test.tokens = kTokens[random.below(std::size(kTokens))];
  test.in = kIn[random.below(std::size(kIn))];
  test.x_stride = test.in + random.below(3);
  test.dx_stride = test.in + random.below(3);
  test.seed = random.next();
  test.accumulate = random.coin();
  test.accumulate_dx = random.coin();
  test.has_dx = random.below(4) > 0;
  test.x = random.normals(test.tokens * test.x_stride);
  test.dx = random.normals(test.tokens * test.dx_stride);
  const size_t projections = 1 + random.below(3);
  for (size_t p = 0; p < projections; ++p) {
    Module& module = test.modules.emplace_back();
    module.out = std::vector<size_t>{1, 5, 16, 33, 70}[random.below(5)];
    module.y_stride = module.out + random.below(3);
    store_weight(random, module, test.in);
    module.has_bias = random.coin();
    module.train_weight = random.below(4) == 0;
    module.train_bias = module.has_bias && random.coin();
    module.bias = random.normals(module.out);
    module.grad_weight = random.normals(module.out * test.in);
    module.grad_bias = random.normals(module.out);
    module.y = random.normals(test.tokens * module.y_stride);
    module.dy = random.normals(test.tokens * module.y_stride);
    for (size_t count = random.below(3); count > 0; --count) {
      Lora& lora = test.loras.emplace_back();
      lora.r = std::vector<size_t>{1, 3, 8, 16}[random.below(4)];
      lora.projection = p;
      lora.a = random.normals(lora.r * test.in);
      lora.b = random.normals(module.out * lora.r);
      lora.grad_a = random.normals(lora.a.size());
      lora.grad_b = random.normals(lora.b.size());
      lora.scale = 0.25f + static_cast<float>(random.uniform());
      lora.dropout = dropout && random.below(3) > 0 ? 0.3f : 0;
      lora.module = random.below(1000);
      lora.train_a = random.below(4) > 0;
      lora.train_b = random.below(4) > 0;
    }
  }
  return test;
}

// What dropout.h says of element e: its factor, 0 or 1 / (1 - p).
double keep(const Lora& lora, uint64_t seed, uint64_t e) {
  if (lora.dropout == 0) return 1;
  const auto words =
      philox4x32({static_cast<uint32_t>(e / 8), static_cast<uint32_t>((e / 8) >> 32),
                  static_cast<uint32_t>(lora.module), static_cast<uint32_t>(lora.module >> 32)},
                 seed);
  const uint32_t word = words[e % 8 / 2], u = e % 2 == 0 ? word & 0xffff : word >> 16;
  return u >= static_cast<uint32_t>(std::lround(lora.dropout * 65536.0))
             ? 1 / (1 - static_cast<double>(lora.dropout))
             : 0;
}

using Doubles = std::vector<double>;
Doubles doubles(const std::vector<float>& values) { return Doubles(values.begin(), values.end()); }

// The tensors in double, so that finite differences mean something.
struct Tensors {
  Doubles x;
  std::vector<Doubles> weight, bias, a, b;
};

Tensors tensors_of(const Case& test) {
  Tensors t{doubles(test.x), {}, {}, {}, {}};
  for (const Module& module : test.modules) {
    t.weight.push_back(doubles(module.weight));
    t.bias.push_back(module.has_bias ? doubles(module.bias) : Doubles(module.out, 0));
  }
  for (const Lora& lora : test.loras) {
    t.a.push_back(doubles(lora.a));
    t.b.push_back(doubles(lora.b));
  }
  return t;
}

// s[l]: [T, r]; y[p]: [T, out], without what was there before.
void reference_forward(const Case& test, const Tensors& t, std::vector<Doubles>* s,
                       std::vector<Doubles>* y) {
  s->clear();
  y->clear();
  for (size_t l = 0; l < test.loras.size(); ++l) {
    const Lora& lora = test.loras[l];
    Doubles rows(test.tokens * lora.r, 0);
    for (size_t i = 0; i < test.tokens; ++i) {
      for (size_t r = 0; r < lora.r; ++r) {
        for (size_t c = 0; c < test.in; ++c) {
          rows[i * lora.r + r] += lora.scale * keep(lora, test.seed, i * test.in + c) *
                                  t.x[i * test.x_stride + c] * t.a[l][r * test.in + c];
        }
      }
    }
    s->push_back(rows);
  }
  for (size_t p = 0; p < test.modules.size(); ++p) {
    const Module& module = test.modules[p];
    Doubles rows(test.tokens * module.out, 0);
    for (size_t i = 0; i < test.tokens; ++i) {
      for (size_t n = 0; n < module.out; ++n) {
        double sum = t.bias[p][n];
        for (size_t c = 0; c < test.in; ++c)
          sum += t.x[i * test.x_stride + c] * t.weight[p][n * test.in + c];
        for (size_t l = 0; l < test.loras.size(); ++l) {
          const Lora& lora = test.loras[l];
          if (lora.projection != p) continue;
          for (size_t r = 0; r < lora.r; ++r)
            sum += (*s)[l][i * lora.r + r] * t.b[l][n * lora.r + r];
        }
        rows[i * module.out + n] = sum;
      }
    }
    y->push_back(rows);
  }
}

// Gradients of Σ dy·y.
Tensors reference_backward(const Case& test, const Tensors& t, const std::vector<Doubles>& s) {
  Tensors g{Doubles(t.x.size(), 0), {}, {}, {}, {}};
  for (size_t p = 0; p < test.modules.size(); ++p) {
    const Module& module = test.modules[p];
    Doubles weight(module.out * test.in, 0), bias(module.out, 0);
    for (size_t i = 0; i < test.tokens; ++i) {
      for (size_t n = 0; n < module.out; ++n) {
        const double dy = module.dy[i * module.y_stride + n];
        bias[n] += dy;
        for (size_t c = 0; c < test.in; ++c) {
          weight[n * test.in + c] += dy * t.x[i * test.x_stride + c];
          g.x[i * test.x_stride + c] += dy * t.weight[p][n * test.in + c];
        }
      }
    }
    g.weight.push_back(weight);
    g.bias.push_back(bias);
  }
  for (size_t l = 0; l < test.loras.size(); ++l) {
    const Lora& lora = test.loras[l];
    const Module& module = test.modules[lora.projection];
    Doubles a(lora.a.size(), 0), b(lora.b.size(), 0);
    for (size_t i = 0; i < test.tokens; ++i) {
      for (size_t r = 0; r < lora.r; ++r) {
        double ds = 0;
        for (size_t n = 0; n < module.out; ++n) {
          const double dy = module.dy[i * module.y_stride + n];
          ds += lora.scale * dy * t.b[l][n * lora.r + r];
          b[n * lora.r + r] += dy * s[l][i * lora.r + r];
        }
        for (size_t c = 0; c < test.in; ++c) {
          const double factor = keep(lora, test.seed, i * test.in + c);
          a[r * test.in + c] += ds * factor * t.x[i * test.x_stride + c];
          g.x[i * test.x_stride + c] += ds * factor * t.a[l][r * test.in + c];
        }
      }
    }
    g.a.push_back(a);
    g.b.push_back(b);
  }
  return g;
}

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
                     module.train_weight ? module.grad_weight.data() : nullptr,
                     module.train_bias ? module.grad_bias.data() : nullptr});
  }
  out->s.assign(test.tokens * lora_rank_sum(group) + 1, 0);
  const LinearArgs args{
      test.tokens, test.in, {test.x.data(), test.x_stride}, group, out->s.data(), test.seed};
  std::vector<Rows> y;
  std::vector<ConstRows> dy, add;
  for (Module& module : out->modules) {
    y.push_back({module.y.data(), module.y_stride});
    dy.push_back({module.dy.data(), module.y_stride});
    if (test.accumulate) add.push_back(y.back());
  }
  LR_RETURN_IF_ERROR(lora_linear_forward(context, args, y, add));
  LR_RETURN_IF_ERROR(lora_linear_backward(
      context, args, dy, {test.has_dx ? out->dx.data() : nullptr, test.dx_stride},
      test.accumulate_dx));
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

// before + change where trained, before otherwise.
void check_grad(const std::vector<float>& got, const std::vector<float>& before,
                const Doubles& change, bool trained, const std::string& what) {
  Doubles want = doubles(before);
  for (size_t i = 0; i < want.size() && trained; ++i) want[i] += change[i];
  expect_all_near(got.data(), want, trained ? kTolerance : 0, what.c_str());
}

void check_rows(const std::vector<float>& got, const std::vector<float>& before, size_t stride,
                const Doubles& change, size_t change_stride, size_t tokens, size_t n,
                bool accumulate, const std::string& what) {
  Doubles want = doubles(before);  // what lies between rows must stay
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < n; ++i) {
      want[t * stride + i] =
          (accumulate ? want[t * stride + i] : 0) + change[t * change_stride + i];
    }
  }
  expect_all_near(got.data(), want, kTolerance, what.c_str());
}

void test_case(Context& context, const char* level, const Case& test) {
  const Tensors t = tensors_of(test);
  std::vector<Doubles> s, y;
  reference_forward(test, t, &s, &y);
  const Tensors g = reference_backward(test, t, s);
  const std::string where = std::string("lora_linear ") + level +
                            " T=" + std::to_string(test.tokens) + " in=" + std::to_string(test.in) +
                            ": ";
  std::vector<float> first;
  for (size_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Context with_threads{pool, context.kernels};
    Outputs out;
    if (!expect_ok(run_case(with_threads, test, &out), where.c_str())) return;
    if (threads == 1) first = out.all;
    expect(std::memcmp(first.data(), out.all.data(), first.size() * sizeof(float)) == 0,
           "%s%zu threads give other bits", where.c_str(), threads);
    if (threads != 1) continue;
    for (size_t p = 0; p < test.modules.size(); ++p) {
      const Module &was = test.modules[p], &now = out.modules[p];
      check_rows(now.y, was.y, was.y_stride, y[p], was.out, test.tokens, was.out, test.accumulate,
                 where + "y");
      check_grad(now.grad_weight, was.grad_weight, g.weight[p], was.train_weight, where + "dW");
      check_grad(now.grad_bias, was.grad_bias, g.bias[p], was.train_bias, where + "dbias");
    }
    for (size_t l = 0; l < test.loras.size(); ++l) {
      const Lora &was = test.loras[l], &now = out.loras[l];
      check_grad(now.grad_a, was.grad_a, g.a[l], was.train_a, where + "dA");
      check_grad(now.grad_b, was.grad_b, g.b[l], was.train_b, where + "dB");
    }
    if (test.has_dx) {
      check_rows(out.dx, test.dx, test.dx_stride, g.x, test.x_stride, test.tokens, test.in,
                 test.accumulate_dx, where + "dx");
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
    for (int round = 0; round < 30; ++round)
      test_case(context, level, random_case(cases, round % 2 == 1));
    test_errors(context);
  });
  return finish();
}

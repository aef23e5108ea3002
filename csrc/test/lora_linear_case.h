// Cases of lora_linear: random sizes, storage types and attachments, and what is to come out,
// computed in double precision.
#pragma once

#include <cstring>
#include <deque>

#include "core/half.h"
#include "core/philox.h"
#include "ops/lora_linear.h"
#include "reference.h"

namespace lowrank::test {

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
  bool bf16 = false;  // computes in it; then some of these are kept in it
  bool x_in_bf16 = false, y_in_bf16 = false, dy_in_bf16 = false, dx_in_bf16 = false;
  std::vector<float> x, dx;
  std::deque<Module> modules;
  std::deque<Lora> loras;
};

// The values of a projection's weight as stored: fp32, bf16, or Q8_0 where a row is whole blocks.
inline void store_weight(Random& random, Module& module, size_t in) {
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

inline Case random_case(Random& random, bool dropout) {
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

// f of every value that goes into the products.
template <class F>
void change_operands(Case& test, const F& f) {
  const auto change = [&](std::vector<float>& values) {
    for (float& value : values) value = f(value);
  };
  change(test.x);
  change(test.dx);
  for (Module& module : test.modules) {
    change(module.weight);
    change(module.bias);
    change(module.y);
    change(module.dy);
    if (module.type == DType::kF32)
      std::memcpy(module.bytes.data(), module.weight.data(), module.bytes.size());
  }
  for (Lora& lora : test.loras) {
    change(lora.a);
    change(lora.b);
  }
}

// The same case in bf16, of values that it holds exactly, as far as the type of a weight does.
inline Case in_bf16(Case test, Random& random) {
  test.bf16 = true;
  test.x_in_bf16 = random.coin();
  test.y_in_bf16 = random.coin();
  test.dy_in_bf16 = random.coin();
  test.dx_in_bf16 = !test.accumulate_dx && random.coin();
  change_operands(test, [](float value) { return bf16_to_f32(f32_to_bf16(value)); });
  return test;
}

// What dropout.h says of element e: its factor, 0 or 1 / (1 - p).
inline double keep(const Lora& lora, uint64_t seed, uint64_t e) {
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

inline Doubles doubles(const std::vector<float>& values) {
  return Doubles(values.begin(), values.end());
}

// The tensors in double, so that finite differences mean something.
struct Tensors {
  Doubles x;
  std::vector<Doubles> weight, bias, a, b;
};

inline Tensors tensors_of(const Case& test) {
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
inline void reference_forward(const Case& test, const Tensors& t, std::vector<Doubles>* s,
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
inline Tensors reference_backward(const Case& test, const Tensors& t, const std::vector<Doubles>& s) {
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

struct Reference {
  std::vector<Doubles> y;
  Tensors gradients;
};

inline Reference reference_of(const Case& test) {
  const Tensors t = tensors_of(test);
  Reference reference;
  std::vector<Doubles> s;
  reference_forward(test, t, &s, &reference.y);
  reference.gradients = reference_backward(test, t, s);
  return reference;
}

// Every sum with its terms' magnitudes.
inline Reference magnitudes_of(Case test) {
  change_operands(test, [](float value) { return std::fabs(value); });
  return reference_of(test);
}

}  // namespace lowrank::test

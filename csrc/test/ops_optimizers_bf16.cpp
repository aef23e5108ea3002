// Parameters and gradients in bf16: stochastic rounding against a bit-by-bit reference, unbiased, however it is cut; and every
// optimizer's update as that of the same values in fp32, rounded so, with the same bits for any number of threads.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "core/philox.h"
#include "test/reference.h"
#include "train/optimizer.h"

namespace lowrank::test {
namespace {

using Halves = std::vector<uint16_t>;

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Away from zero where x lies further above the nearer value, in 2^16ths of a step, than the element's random bits leave room for.
uint16_t rounded(float x, uint64_t seed, uint64_t stream, uint64_t element) {
  if (std::isnan(x)) return static_cast<uint16_t>(bits_of(x) >> 16 | 0x40);
  const uint64_t counter = element / 8;
  const auto words = philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), static_cast<uint32_t>(stream),
                                 static_cast<uint32_t>(stream >> 32)}, seed);
  const uint32_t random = words[element % 8 / 2] >> (element % 2 * 16) & 0xffff;
  return static_cast<uint16_t>(bits_of(x) >> 16) + ((bits_of(x) & 0xffff) + random > 0xffff ? 1 : 0);
}

void test_rounding(Context& context, const char* level, Random& random) {
  const auto round = context.kernels.optimizer.round_randomly;
  for (const size_t n : {0, 1, 7, 8, 63, 511, 512, 513, 5003}) {
    Floats x = random.normals(n);
    const float special[] = {0.0f, -0.0f, 1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                             float_of(0xffffffff), float_of(0x7f800001), 3e38f, -1e-37f};
    for (size_t i = 0; i < std::min(n, std::size(special)); ++i) x[random.below(n)] = special[i];
    const uint64_t seed = random.next(), stream = random.next(), first = random.below(2) ? random.below(5000) : (uint64_t{1} << 35) + 3;
    Halves want, got(n);
    for (size_t i = 0; i < n; ++i) want.push_back(rounded(x[i], seed, stream, first + i));
    round(x.data(), n, seed, stream, first, got.data());
    expect(got == want, "%s: rounding of %zu from %llu", level, n, static_cast<unsigned long long>(first));
    Halves pieces(n);
    for (size_t begin = 0; begin < n;) {
      const size_t count = std::min(n - begin, 1 + random.below(700));
      round(x.data() + begin, count, seed, stream, first + begin, pieces.data() + begin);
      begin += count;
    }
    expect(pieces == want, "%s: rounding of %zu in pieces", level, n);
  }
}

// Of n draws with probability p, as many as lie within five standard deviations; and values of bf16 stay.
void test_unbiased(Context& context, const char* level, Random& random) {
  const size_t n = 200000;
  for (const uint32_t above : {0u, 1u, 300u, 0x4000u, 0x8000u, 0xffffu}) {
    const uint32_t base = (random.coin() ? 0xbfa5u : 0x3fa5u) << 16;
    const Floats x(n, float_of(base + above));
    Halves got(n);
    context.kernels.optimizer.round_randomly(x.data(), n, random.next(), 3, 0, got.data());
    size_t away = 0;
    for (uint16_t half : got) {
      away += half == (base >> 16) + 1;
      if (!expect(half == base >> 16 || half == (base >> 16) + 1, "%s: %08x became %04x", level, base + above, half)) return;
    }
    const double p = above / 65536.0, sigma = std::sqrt(p * (1 - p) * n);
    expect(std::fabs(static_cast<double>(away) - p * n) <= 5 * sigma, "%s: %zu of %zu away from zero, with p = %g", level, away, n, p);
  }
}

// ── optimizers ──

struct Kind {
  OptimizerKind kind;
  bool coded;
  const char* name;
};
constexpr Kind kKinds[] = {{OptimizerKind::kAdamW, false, "adamw"},   {OptimizerKind::kAdamW, true, "adamw_8bit"},
                           {OptimizerKind::kLion, false, "lion"},     {OptimizerKind::kLion, true, "lion_8bit"},
                           {OptimizerKind::kSgd, false, "sgd"},       {OptimizerKind::kAdafactor, false, "adafactor"}};

// Two matrices of odd sizes, one of which is too small for codes, and a vector in fp32.
struct Tensors {
  std::vector<Parameter> parameters;
  std::vector<Buffer> gradients;
  std::vector<Trained> trained;

  Tensors(DType type, const std::vector<Floats>& values) {
    const std::vector<std::vector<size_t>> shapes = {{131, 517}, {3, 37}, {41}};
    parameters.resize(shapes.size());
    gradients.resize(shapes.size());
    for (size_t i = 0; i < shapes.size(); ++i) {
      Parameter& parameter = parameters[i];
      parameter.shape = shapes[i];
      parameter.type = shapes[i].size() == 1 ? DType::kF32 : type;
      const size_t bytes = parameter.elements() * parameter.element_bytes();
      expect_ok(parameter.value.allocate(bytes, "a parameter"), "memory");
      expect_ok(gradients[i].allocate(bytes, "a gradient"), "memory");
      store(parameter.type, values[i], parameter.value.as<>());
      trained.push_back({&parameter, parameter.type, gradients[i].as<>(), i != 1});
    }
  }
  static void store(DType type, const Floats& values, void* to) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DType::kF32) static_cast<float*>(to)[i] = values[i];
      else static_cast<uint16_t*>(to)[i] = f32_to_bf16(values[i]);
    }
  }
  Floats values(size_t parameter) const {
    const Parameter& of = parameters[parameter];
    Floats result;
    for (size_t i = 0; i < of.elements(); ++i)
      result.push_back(of.type == DType::kF32 ? of.data()[i] : bf16_to_f32(of.value.as<uint16_t>()[i]));
    return result;
  }
};

std::vector<unsigned char> all_states(const Optimizer& optimizer, size_t parameters) {
  std::vector<unsigned char> bytes;
  for (size_t parameter = 0; parameter < parameters; ++parameter) {
    const std::vector<StateTensor> states = optimizer.states(parameter);
    for (size_t state = 0; state < states.size(); ++state) {
      const size_t at = bytes.size();
      bytes.resize(at + states[state].bytes());
      optimizer.read_state(parameter, state, bytes.data() + at);
    }
  }
  return bytes;
}

void test_optimizer(Context& context, const char* level, const Kind& kind, Random& random) {
  const std::string what = std::string(level) + " " + kind.name;
  const UpdateOptions options{1e-2, 0.9, 0.99, 1e-8, 0.1, 1.0, 0.9};
  OptimizerOptions made;
  made.kind = kind.kind;
  made.coded = kind.coded;
  std::vector<Floats> start, gradients;
  for (const size_t n : {131 * 517, 3 * 37, 41}) {
    start.push_back(floats_of(halves_of(random.normals(n))));
    gradients.push_back(floats_of(halves_of(random.normals(n, 1e-2f))));
  }
  const uint64_t seed = random.next();
  const auto run = [&](DType type, size_t threads, uint64_t rounding, std::vector<unsigned char>* states) {
    auto tensors = std::make_unique<Tensors>(type, start);
    for (size_t i = 0; i < gradients.size(); ++i) Tensors::store(tensors->parameters[i].type, gradients[i], tensors->gradients[i].as<>());
    ThreadPool pool(threads);
    Context with_threads{.pool = pool, .kernels = context.kernels};
    Result<std::unique_ptr<Optimizer>> optimizer = Optimizer::create(made, tensors->trained);
    expect_ok(optimizer.status(), what.c_str());
    expect_ok(optimizer.value()->update(with_threads, options, 0.5, 1, rounding), what.c_str());
    *states = all_states(*optimizer.value(), gradients.size());
    return tensors;
  };
  std::vector<unsigned char> want_states, states;
  const auto exact = run(DType::kF32, 1, seed, &want_states);
  for (size_t threads : {1, 2, 3, 7}) {
    const auto got = run(DType::kBF16, threads, seed, &states);
    expect(states == want_states, "%s: states differ from those of the same values in fp32 (%zu threads)", what.c_str(), threads);
    for (size_t parameter = 0; parameter < gradients.size(); ++parameter) {
      Floats want = exact->values(parameter);
      if (got->parameters[parameter].type == DType::kBF16) {
        for (size_t i = 0; i < want.size(); ++i) want[i] = bf16_to_f32(rounded(want[i], seed, parameter, i));
      }
      expect(got->values(parameter) == want, "%s: parameter %zu (%zu threads)", what.c_str(), parameter, threads);
    }
  }
  const auto other = run(DType::kBF16, 2, seed + 1, &states);
  const auto same = run(DType::kBF16, 2, seed, &states);
  expect(other->values(0) != same->values(0), "%s: two seeds round alike", what.c_str());
}

// Steps of a thousandth of what separates two bf16 values move the mean as they should.
void test_small_steps(Context& context, const char* level, Random& random) {
  const size_t n = 131 * 517, steps = 50;
  std::vector<Floats> start = {Floats(n, 1.0f), Floats(3 * 37, 1.0f), Floats(41, 1.0f)};
  Tensors tensors(DType::kBF16, start);
  OptimizerOptions made;
  made.kind = OptimizerKind::kSgd;
  Result<std::unique_ptr<Optimizer>> optimizer = Optimizer::create(made, tensors.trained);
  expect_ok(optimizer.status(), level);
  Tensors::store(DType::kBF16, Floats(n, 1.0f), tensors.gradients[0].as<>());
  const double rate = 0.001 / 256;  // bf16 values below 1 lie 1/256 apart
  const UpdateOptions options{rate, 0, 0, 0, 0, 0, 0};
  for (size_t step = 1; step <= steps; ++step) expect_ok(optimizer.value()->update(context, options, 1, step, random.next()), level);
  double mean = 0;
  for (float value : tensors.values(0)) mean += static_cast<double>(value) / static_cast<double>(n);
  // Each step moves a value by 1/256 with probability 1/1000: five standard deviations of the mean.
  const double tolerance = 5 * std::sqrt(0.001 * steps / static_cast<double>(n)) / 256;
  expect_near(mean, 1 - rate * steps, tolerance, level, 0);
}

}  // namespace

void test_all() {
  Random random(test_seed() + 9);
  for_each_level(2, [&](Context& context, const char* level) {
    test_rounding(context, level, random);
    test_unbiased(context, level, random);
    for (const Kind& kind : kKinds) test_optimizer(context, level, kind, random);
    test_small_steps(context, level, random);
  });
}

}  // namespace lowrank::test

int main() {
  lowrank::test::test_all();
  return lowrank::test::finish();
}

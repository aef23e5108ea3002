// The fused head against a double-precision reference and finite differences: loss, accuracy, dh
// and dw, at every level, for several storage types and odd sizes; non-finite input, bad targets,
// and the same bits for any number of threads.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/half.h"
#include "ops/linear_cross_entropy.h"
#include "test/reference.h"

namespace lowrank::test {
namespace {

struct Shape {
  size_t n, channels, vocab;
};
constexpr Shape kShapes[] = {{1, 1, 1},      {1, 64, 257},  {3, 17, 1009},  {2, 7, 3},
                             {17, 127, 288}, {33, 64, 49},  {7, 833, 1153}, {5, 1801, 97},
                             {70, 64, 2503}, {601, 31, 613}};

// A head in one storage type, with the fp32 values that it stands for.
struct Head {
  std::vector<unsigned char> bytes;
  Floats values;
  Matrix matrix;
};

Head make_head(Random& random, DType type, size_t vocab, size_t channels, float scale) {
  Head head;
  head.values = random.normals(vocab * channels, scale);
  head.bytes.resize(row_bytes(type, channels) * vocab);
  unsigned char* out = head.bytes.data();
  switch (type) {
    case DType::kF32:
      std::memcpy(out, head.values.data(), head.bytes.size());
      break;
    case DType::kBF16:
    case DType::kF16:
      for (size_t i = 0; i < head.values.size(); ++i) {
        const uint16_t half =
            type == DType::kBF16 ? f32_to_bf16(head.values[i]) : f32_to_f16(head.values[i]);
        head.values[i] = type == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
        std::memcpy(out + 2 * i, &half, 2);
      }
      break;
    default:  // Q8_0: an fp16 scale and 32 signed bytes
      for (size_t block = 0; block * 32 < head.values.size(); ++block) {
        const uint16_t half = f32_to_f16(scale / 40);
        std::memcpy(out + block * 34, &half, 2);
        for (size_t i = 0; i < 32; ++i) {
          float& value = head.values[block * 32 + i];
          const int code = std::max(
              -127, std::min(127, static_cast<int>(std::lround(value / f16_to_f32(half)))));
          out[block * 34 + 2 + i] = static_cast<unsigned char>(static_cast<int8_t>(code));
          value = static_cast<float>(code) * f16_to_f32(half);
        }
      }
  }
  head.matrix = matrix(out, type, vocab, channels);
  return head;
}

struct Reference {
  double nll_sum = 0;
  size_t correct = 0;
  Doubles dh, dw;
};

double row_nll(const double* h, const Floats& w, size_t channels, size_t vocab, size_t target,
               Doubles* p) {
  Doubles logits(vocab);
  for (size_t v = 0; v < vocab; ++v) {
    for (size_t c = 0; c < channels; ++c)
      logits[v] += h[c] * static_cast<double>(w[v * channels + c]);
  }
  double largest = logits[0], sum = 0;
  for (double logit : logits) largest = std::fmax(largest, logit);
  for (double logit : logits) sum += std::exp(logit - largest);
  if (p != nullptr) {
    p->resize(vocab + 1);
    for (size_t v = 0; v < vocab; ++v) (*p)[v] = std::exp(logits[v] - largest) / sum;
    (*p)[vocab] =
        static_cast<double>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  return largest + std::log(sum) - logits[target];
}

Reference reference(const Doubles& h, const Floats& w, const std::vector<int32_t>& targets,
                    size_t channels, size_t vocab, double grad_scale) {
  Reference result;
  result.dh.resize(h.size());
  result.dw.resize(w.size());
  Doubles p;
  for (size_t i = 0; i < targets.size(); ++i) {
    const size_t target = static_cast<size_t>(targets[i]);
    result.nll_sum += row_nll(&h[i * channels], w, channels, vocab, target, &p);
    result.correct += static_cast<size_t>(p[vocab]) == target ? 1 : 0;
    for (size_t v = 0; v < vocab; ++v) {
      const double error = grad_scale * (p[v] - (v == target ? 1 : 0));
      for (size_t c = 0; c < channels; ++c) {
        result.dh[i * channels + c] += error * static_cast<double>(w[v * channels + c]);
        result.dw[v * channels + c] += error * h[i * channels + c];
      }
    }
  }
  return result;
}

Floats rounded(const Floats& values) { return floats_of(halves_of(values)); }

// With bf16 against the reference of rounded operands: the loss is as near, the gradients within
// their own roundings (2^-9 for the weights in O, and as much for operands that stay unrounded).
void test_against_reference(Context& context, const char* level, Random& random) {
  const bool bf16 =
      context.compute == ComputeType::kBf16 && context.kernels.gemm.bf16 != nullptr;
  const double gradient_tolerance = bf16 ? 8e-3 : 1e-5;
  for (const auto [n, channels, vocab] : kShapes) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0}) {
      if (channels % dtype_info(type).block_elements != 0) continue;
      const float scale = 2 / std::sqrt(static_cast<float>(channels));
      const Head head = make_head(random, type, vocab, channels, scale);
      Floats h = random.normals(n * channels, 2);
      std::vector<int32_t> targets;
      for (size_t i = 0; i < n; ++i) {
        const size_t target = i == 0 ? vocab - 1 : random.below(vocab);
        targets.push_back(static_cast<int32_t>(target));
        for (size_t c = 0; i % 2 == 1 && c < channels; ++c)
          h[i * channels + c] += 3 * head.values[target * channels + c];
      }
      const float grad_scale = 1 / static_cast<float>(n);
      const Floats before = random.normals(vocab * channels, grad_scale);
      Floats dh(n * channels, std::numeric_limits<float>::quiet_NaN()), dw = before;
      HeadLoss loss, loss_only, frozen;
      const std::string what = std::string(level) + (bf16 ? " bf16 " : " ") + dtype_info(type).name +
                               " n=" + std::to_string(n) + " C=" + std::to_string(channels) +
                               " V=" + std::to_string(vocab);
      expect_ok(linear_cross_entropy(context, {h.data(), channels}, head.matrix, targets.data(), n,
                                     grad_scale, dh.data(), {dw.data(), channels}, &loss),
                what.c_str());
      const Floats seen = bf16 ? rounded(h) : h;
      Reference want = reference(Doubles(seen.begin(), seen.end()),
                                 bf16 ? rounded(head.values) : head.values, targets, channels,
                                 vocab, static_cast<double>(grad_scale));
      for (size_t i = 0; i < want.dw.size(); ++i) want.dw[i] += static_cast<double>(before[i]);
      expect_near(loss.nll_sum, want.nll_sum,
                  3e-6 * (static_cast<double>(n) + std::fabs(want.nll_sum)),
                  (what + ": loss").c_str(), 0);
      expect(loss.correct == want.correct, "%s: %zu correct instead of %zu", what.c_str(),
             loss.correct, want.correct);
      expect_all_near(dh.data(), want.dh, gradient_tolerance, (what + ": dh").c_str(),
                      1e-7 * static_cast<double>(grad_scale));
      expect_all_near(dw.data(), want.dw, gradient_tolerance, (what + ": dw").c_str());

      expect_ok(linear_cross_entropy(context, {h.data(), channels}, head.matrix, targets.data(), n,
                                     grad_scale, nullptr, {}, &loss_only),
                what.c_str());
      Floats dh_frozen(n * channels);
      expect_ok(linear_cross_entropy(context, {h.data(), channels}, head.matrix, targets.data(), n,
                                     grad_scale, dh_frozen.data(), {}, &frozen),
                what.c_str());
      expect(loss_only.nll_sum == loss.nll_sum && loss_only.correct == loss.correct &&
                 frozen.nll_sum == loss.nll_sum,
             "%s: the loss depends on the gradients asked for", what.c_str());
      expect(std::memcmp(dh.data(), dh_frozen.data(), dh.size() * 4) == 0,
             "%s: dh depends on grad_w", what.c_str());
      // A gradient in bf16 has the same sum added to it, and is rounded once.
      Floats sum(vocab * channels);
      std::vector<uint16_t> dw_bf16 = halves_of(before), want_bf16;
      expect_ok(linear_cross_entropy(context, {h.data(), channels}, head.matrix, targets.data(), n,
                                     grad_scale, dh_frozen.data(), {sum.data(), channels}, &frozen),
                what.c_str());
      expect_ok(linear_cross_entropy(context, {h.data(), channels}, head.matrix, targets.data(), n,
                                     grad_scale, dh_frozen.data(),
                                     {dw_bf16.data(), channels, DType::kBF16}, &frozen),
                what.c_str());
      for (size_t i = 0; i < sum.size(); ++i)
        want_bf16.push_back(f32_to_bf16(bf16_to_f32(f32_to_bf16(before[i])) + sum[i]));
      expect(dw_bf16 == want_bf16, "%s: dw in bf16", what.c_str());
      if (!bf16) continue;
      const std::vector<uint16_t> halves = halves_of(h);
      Floats dw_halves = before;
      HeadLoss of_halves;
      expect_ok(linear_cross_entropy(context, {halves.data(), channels, DType::kBF16}, head.matrix,
                                     targets.data(), n, grad_scale, dh_frozen.data(),
                                     {dw_halves.data(), channels}, &of_halves),
                what.c_str());
      expect(of_halves.nll_sum == loss.nll_sum &&
                 std::memcmp(dh.data(), dh_frozen.data(), dh.size() * 4) == 0 &&
                 std::memcmp(dw.data(), dw_halves.data(), dw.size() * 4) == 0,
             "%s: rows in bf16 give other bits than rows rounded to it", what.c_str());
    }
  }
}

// The reference's own gradient, and with it dh, against central differences of the loss.
void test_finite_differences(Context& context, Random& random) {
  const size_t channels = 19, vocab = 311;
  const Head head = make_head(random, DType::kF32, vocab, channels, 0.5f);
  const Floats h = random.normals(channels);
  const int32_t target = 42;
  Floats dh(channels);
  HeadLoss loss;
  expect_ok(linear_cross_entropy(context, {h.data(), head.matrix.cols}, head.matrix, &target, 1, 1,
                                 dh.data(), {},
                                 &loss),
            "head");
  for (size_t c = 0; c < channels; ++c) {
    const double step = 1e-4;
    Doubles above(h.begin(), h.end()), below = above;
    above[c] += step;
    below[c] -= step;
    const double difference = (row_nll(above.data(), head.values, channels, vocab, 42, nullptr) -
                               row_nll(below.data(), head.values, channels, vocab, 42, nullptr)) /
                              (2 * step);
    expect_near(dh[c], difference, 1e-5, "dh by differences", c);
  }
}

// Rows of equal logits: the first is the prediction.
void test_ties(Context& context) {
  const size_t vocab = 1000, channels = 2;
  Floats w(vocab * channels, 0.0f);
  for (const size_t v : {5, 6, 700}) w[v * channels] = 1;
  const Floats h{2, 0, 2, 0, 2, 0, 2, 0};
  const int32_t targets[] = {5, 6, 700, 0};
  HeadLoss loss;
  expect_ok(linear_cross_entropy(context, {h.data(), channels}, matrix(w.data(), DType::kF32, vocab, channels),
                                 targets, 4, 1, nullptr, {}, &loss),
            "ties");
  expect(loss.correct == 1, "ties: %zu correct instead of 1", loss.correct);
}

// Logits that grow by hundreds from block to block, so that every block rescales and exp would
// overflow without it.
void test_large_logits(Context& context) {
  const size_t vocab = 3000;
  Floats w(vocab);
  std::iota(w.begin(), w.end(), 0.0f);
  const Floats h{1, -1, 0};
  const int32_t targets[] = {2999, 1, 7};
  Floats dh(3);
  HeadLoss loss;
  expect_ok(linear_cross_entropy(context, {h.data(), 1}, matrix(w.data(), DType::kF32, vocab, 1),
                                 targets, 3, 1, dh.data(), {}, &loss),
            "large logits");
  const Reference want = reference({1, -1, 0}, w, {2999, 1, 7}, 1, vocab, 1);
  expect_near(loss.nll_sum, want.nll_sum, 1e-5, "large logits: loss", 0);
  expect_all_near(dh.data(), want.dh, 1e-5, "large logits: dh");
}

void test_bad_input(Context& context, Random& random) {
  const size_t channels = 33, vocab = 700, n = 3;
  const Head head = make_head(random, DType::kF32, vocab, channels, 1);
  const int32_t targets[] = {1, 699, 300};
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(), 3e38f}) {
    Floats h = random.normals(n * channels), dh(n * channels), dw(vocab * channels);
    h[channels + 5] = bad;
    HeadLoss loss;
    expect_ok(linear_cross_entropy(context, {h.data(), head.matrix.cols}, head.matrix, targets, n, 1, dh.data(),
                                   {dw.data(), head.matrix.cols}, &loss),
              "non-finite h");
    expect(!std::isfinite(loss.nll_sum), "loss of h with %g is %g", static_cast<double>(bad),
           loss.nll_sum);
    expect(loss.correct <= n, "correct of h with %g is %zu", static_cast<double>(bad),
           loss.correct);
    expect(std::isfinite(dh[0]) && std::isfinite(dh[2 * channels]),
           "a bad row spoils its neighbours");
  }
  Floats h = random.normals(n * channels);
  HeadLoss loss;
  for (const int32_t bad : {-100, -1, 700, std::numeric_limits<int32_t>::max()}) {
    const int32_t with_bad[] = {0, bad, 2};
    const Status status = linear_cross_entropy(context, {h.data(), head.matrix.cols}, head.matrix, with_bad, n, 1,
                                               nullptr, {}, &loss);
    expect_code(status, Code::kShapeMismatch, "target outside");
    expect(status.message().find("target 1 is " + std::to_string(bad)) != std::string::npos,
           "target outside says: %s", status.message().c_str());
  }
  Matrix ragged = head.matrix;
  ragged.type = DType::kQ8_0;
  expect_code(
      linear_cross_entropy(context, {h.data(), ragged.cols}, ragged, targets, n, 1, nullptr, {}, &loss),
      Code::kShapeMismatch, "33 channels of Q8_0");
  loss = {5, 5};
  expect_ok(
      linear_cross_entropy(context, {h.data(), head.matrix.cols}, head.matrix, targets, 0, 1, nullptr, {}, &loss),
      "no rows");
  expect(loss.nll_sum == 0 && loss.correct == 0, "no rows give a loss of %g", loss.nll_sum);
}

// Losses and gradients of one call, as bytes.
std::vector<unsigned char> run_once(Context& context) {
  Random random(test_seed());
  const size_t n = 523, channels = 96, vocab = 2017;
  const Head head = make_head(random, DType::kBF16, vocab, channels, 0.3f);
  const Floats h = random.normals(n * channels);
  std::vector<int32_t> targets;
  for (size_t i = 0; i < n; ++i) targets.push_back(static_cast<int32_t>(random.below(vocab)));
  Floats dh(n * channels), dw(vocab * channels);
  HeadLoss loss;
  expect_ok(linear_cross_entropy(context, {h.data(), head.matrix.cols}, head.matrix, targets.data(), n, 0.01f,
                                 dh.data(), {dw.data(), head.matrix.cols}, &loss),
            "head");
  std::vector<unsigned char> bytes(sizeof loss.nll_sum + dh.size() * 4 + dw.size() * 4);
  std::memcpy(bytes.data(), &loss.nll_sum, sizeof loss.nll_sum);
  std::memcpy(bytes.data() + sizeof loss.nll_sum, dh.data(), dh.size() * 4);
  std::memcpy(bytes.data() + sizeof loss.nll_sum + dh.size() * 4, dw.data(), dw.size() * 4);
  return bytes;
}

void test_threads(ComputeType compute) {
  std::vector<std::vector<unsigned char>> alone;
  for_each_level(1, [&](Context& context, const char*) {
    context.compute = compute;
    alone.push_back(run_once(context));
  });
  for (const size_t threads : {2, 3, 7}) {
    size_t level = 0;
    for_each_level(threads, [&](Context& context, const char* name) {
      context.compute = compute;
      expect(run_once(context) == alone[level++], "%s: other bits with %zu threads", name, threads);
    });
  }
}

}  // namespace
}  // namespace lowrank::test

int main() {
  using namespace lowrank::test;
  for_each_level(2, [](lowrank::Context& context, const char* level) {
    Random random(test_seed());
    lowrank::Context in_bf16{context.pool, context.kernels, lowrank::ComputeType::kBf16};
    test_against_reference(context, level, random);
    test_against_reference(in_bf16, level, random);
    test_finite_differences(context, random);
    test_ties(context);
    test_large_logits(context);
    test_bad_input(context, random);
    test_bad_input(in_bf16, random);
  });
  test_threads(lowrank::ComputeType::kF32);
  test_threads(lowrank::ComputeType::kBf16);
  return finish();
}

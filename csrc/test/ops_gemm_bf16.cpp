// The bf16 block kernels, bit for bit, against a host twin of VDPBF16PS:
//   acc = fma(even, even', fma(odd, odd', acc))
// over operands rounded to nearest even. Exact, so a pair packed or summed out of order shows.
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "ops/gemm.h"
#include "reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

float rounded(float value) { return bf16_to_f32(f32_to_bf16(value)); }

struct Segment {
  std::vector<float> a;
  std::vector<float> b;         // [n, k] if transposed, else [k, n]
  std::vector<uint16_t> halves;  // the same as bf16
  size_t k, a_row;
  bool transposed, stored_as_bf16;

  Matrix matrix(size_t n) const {
    const size_t rows = transposed ? n : k, cols = transposed ? k : n;
    return stored_as_bf16 ? lowrank::matrix(halves.data(), DType::kBF16, rows, cols)
                          : lowrank::matrix(b.data(), DType::kF32, rows, cols);
  }
  float b_at(size_t kk, size_t j, size_t n) const {
    return kk < k ? rounded(transposed ? b[j * k + kk] : b[kk * n + j]) : 0.0f;
  }
  float a_at(size_t i, size_t kk) const { return kk < k ? rounded(a[i * a_row + kk]) : 0.0f; }
};

Segment random_segment(Random& random, size_t m, size_t n) {
  Segment segment;
  segment.k = 1 + random.below(150);
  segment.a_row = segment.k + random.below(3);
  segment.transposed = random.coin();
  segment.stored_as_bf16 = random.coin();
  segment.a = random.normals(m * segment.a_row);
  segment.b = random.normals(segment.k * n);
  for (float value : segment.b) segment.halves.push_back(f32_to_bf16(value));
  return segment;
}

float twin(const std::vector<Segment>& segments, size_t i, size_t j, size_t n) {
  float sum = 0;
  for (const Segment& segment : segments) {
    for (size_t k = 0; k < segment.k; k += 2) {
      sum = std::fma(segment.a_at(i, k + 1), segment.b_at(k + 1, j, n), sum);
      sum = std::fma(segment.a_at(i, k), segment.b_at(k, j, n), sum);
    }
  }
  return sum;
}

void test_block(const GemmKernels& gemm, const char* level) {
  const BlockKernels& kernels = *gemm.bf16;
  Random random(test_seed());
  for (int round = 0; round < 60; ++round) {
    const size_t m = 1 + random.below(20), n = 1 + random.below(130);
    std::vector<Segment> segments;
    for (size_t count = 1 + random.below(4); count > 0; --count)
      segments.push_back(random_segment(random, m, n));
    size_t depth = 0;
    for (const Segment& segment : segments) depth += kernels.depth(segment.k);
    Buffer panels;
    const size_t columns = (n + gemm.width - 1) / gemm.width * gemm.width;
    expect_ok(panels.reserve(depth * columns * sizeof(float), "panels"), "reserve");
    std::vector<GemmSegment> operands;
    size_t at = 0;
    for (const Segment& segment : segments) {
      kernels.pack(segment.matrix(n), segment.transposed, 0, segment.k, 0, n, panels.as<float>(),
                   depth, at);
      at += kernels.depth(segment.k);
      operands.push_back({segment.a.data(), segment.a_row, 1, segment.k});
    }
    const bool accumulate = random.coin();
    const std::vector<float> bias = random.normals(n), before = random.normals(m * n);
    std::vector<float> c = before;
    kernels.block(operands.data(), operands.size(), m, panels.as<float>(), n,
                  {c.data(), n, accumulate ? c.data() : nullptr, n, bias.data()});
    for (size_t i = 0; i < m * n; ++i) {
      float want = twin(segments, i / n, i % n, n);
      if (accumulate) want = before[i] + want;
      want += bias[i % n];
      if (!expect(std::memcmp(&c[i], &want, sizeof want) == 0,
                  "%s round %d m=%zu n=%zu [%zu]: %.9g instead of %.9g", level, round, m, n, i,
                  c[i], want))
        return;
    }
  }
}

// Where a level has no bf16 kernels, asking for bf16 changes nothing.
void test_fallback(Context& context, const char* level) {
  Random random(test_seed() + 1);
  const size_t m = 20, k = 70, n = 50;
  const std::vector<float> a = random.normals(m * k), w = random.normals(n * k);
  std::vector<float> c(m * n), in_bf16(m * n);
  const GemmTerm term{a.data(), k, 1, matrix(w.data(), DType::kF32, n, k), true, k};
  Context asking{context.pool, context.kernels, ComputeType::kBf16};
  expect_ok(gemm(context, m, term, c.data(), n, n, false), level);
  expect_ok(gemm(asking, m, term, in_bf16.data(), n, n, false), level);
  expect((c == in_bf16) == (context.kernels.gemm.bf16 == nullptr), "%s: bf16 where it should not be",
         level);
}

}  // namespace

int main() {
  for_each_level(1, [](Context& context, const char* level) {
    if (context.kernels.gemm.bf16 != nullptr) test_block(context.kernels.gemm, level);
    test_fallback(context, level);
  });
  return finish();
}

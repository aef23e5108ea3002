// The bf16 block kernels, bit for bit, against host twins of their instructions, over operands
// rounded to nearest even:
//   VDPBF16PS   sum = fma(even, even', fma(odd, odd', sum))       for each pair of k
//   TDPBF16PS   sum = sum + (Σ even · even' + Σ odd · odd')       for each 32 of k, by FMA from 0
// Exact, so a pair packed or summed out of order shows. Denormals count as zeros.
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "ops/gemm.h"
#include "reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

// Zero in place of a denormal, of the same sign.
float flushed(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}
float rounded(float value) { return flushed(bf16_to_f32(f32_to_bf16(flushed(value)))); }
float fma_flushed(float a, float b, float c) { return flushed(std::fma(a, b, c)); }

// One segment of a sum: A[m, k] in rows or, where `a_by_k`, in columns; B as b[n][k] where
// `transposed`.
struct Segment {
  size_t k, a_row, a_col;
  bool a_in_bf16, transposed, b_in_bf16;
  std::vector<float> a, b;
  Buffer a_halves;  // aligned, which decides how A is read
  std::vector<uint16_t> b_halves;

  Matrix matrix(size_t n) const {
    const size_t rows = transposed ? n : k, cols = transposed ? k : n;
    return b_in_bf16 ? lowrank::matrix(b_halves.data(), DType::kBF16, rows, cols)
                     : lowrank::matrix(b.data(), DType::kF32, rows, cols);
  }
  GemmSegment operand() const {
    const void* data = a_in_bf16 ? static_cast<const void*>(a_halves.as<uint16_t>()) : a.data();
    return {data, a_row, a_col, k, a_in_bf16};
  }
  float a_at(size_t i, size_t kk) const { return kk < k ? rounded(a[i * a_row + kk * a_col]) : 0; }
  float b_at(size_t kk, size_t j, size_t n) const {
    return kk < k ? rounded(transposed ? b[j * k + kk] : b[kk * n + j]) : 0;
  }
};

// Mostly ordinary values, some of them so small that they, or their products, are denormal.
std::vector<float> random_values(Random& random, size_t n) {
  std::vector<float> values = random.normals(n);
  for (float& value : values) {
    if (random.below(16) == 0) value = std::ldexp(value, -60 - static_cast<int>(random.below(80)));
  }
  return values;
}

Segment random_segment(Random& random, size_t m, size_t n, size_t k) {
  Segment segment;
  segment.k = k;
  const bool by_k = random.below(4) == 0;
  // Rows that begin on lines of the cache, and rows that do not.
  const size_t rows = by_k ? k : m, length = by_k ? m : k;
  const size_t stride = random.coin() ? (length + 31) / 32 * 32 : length + random.below(3);
  segment.a_row = by_k ? 1 : stride;
  segment.a_col = by_k ? stride : 1;
  segment.a_in_bf16 = random.coin();
  segment.transposed = random.coin();
  segment.b_in_bf16 = random.coin();
  segment.a = random_values(random, rows * stride);
  for (size_t row = 0; row < rows; ++row) {  // what lies between rows of A counts for nothing
    for (size_t i = length; i < stride; ++i) segment.a[row * stride + i] = NAN;
  }
  segment.b = random_values(random, k * n);
  expect_ok(segment.a_halves.reserve((segment.a.size() + 1) * sizeof(uint16_t), "A"), "reserve");
  for (size_t i = 0; i < segment.a.size(); ++i)
    segment.a_halves.as<uint16_t>()[i] = f32_to_bf16(segment.a[i]);
  segment.b_halves = halves_of(segment.b);
  return segment;
}

float pair_twin(const std::vector<Segment>& segments, size_t i, size_t j, size_t n) {
  float sum = 0;
  for (const Segment& segment : segments) {
    for (size_t k = 0; k < segment.k; k += 2) {
      sum = fma_flushed(segment.a_at(i, k + 1), segment.b_at(k + 1, j, n), sum);
      sum = fma_flushed(segment.a_at(i, k), segment.b_at(k, j, n), sum);
    }
  }
  return sum;
}

float tile_twin(const std::vector<Segment>& segments, size_t i, size_t j, size_t n) {
  float sum = 0;
  for (const Segment& segment : segments) {
    for (size_t unit = 0; unit < segment.k; unit += 32) {
      float even = 0, odd = 0;
      for (size_t k = unit; k < unit + 32; k += 2) {
        even = fma_flushed(segment.a_at(i, k), segment.b_at(k, j, n), even);
        odd = fma_flushed(segment.a_at(i, k + 1), segment.b_at(k + 1, j, n), odd);
      }
      sum = flushed(sum + flushed(even + odd));
    }
  }
  return sum;
}

// Segments whose k, padding included, fit in one block.
std::vector<Segment> random_segments(Random& random, const BlockKernels& kernels, size_t m,
                                     size_t n) {
  std::vector<Segment> segments;
  size_t left = kernels.max_k;
  for (size_t count = random.below(5); count > 0; --count) {
    const size_t k = random.below(8) == 0 ? left
                     : random.coin()      ? 32 * random.below(5)
                                          : random.below(150);
    const size_t padded = kernels.depth(k) * kernels.k_step;
    if (padded > left) break;
    left -= padded;
    segments.push_back(random_segment(random, m, n, k));
  }
  return segments;
}

void test_block(const GemmKernels& gemm, const char* level) {
  const BlockKernels& kernels = *gemm.bf16;
  const auto twin = kernels.k_unit == 32 ? tile_twin : pair_twin;
  Random random(test_seed());
  for (int round = 0; round < 150; ++round) {
    const size_t m = 1 + random.below(random.coin() ? 17 : 80), n = 1 + random.below(130);
    const std::vector<Segment> segments = random_segments(random, kernels, m, n);
    size_t depth = 0;
    for (const Segment& segment : segments) depth += kernels.depth(segment.k);
    Buffer panels;
    const size_t columns = (n + gemm.width - 1) / gemm.width * gemm.width;
    const size_t floats = depth * columns;
    expect_ok(panels.reserve((floats + 1) * sizeof(float), "panels"), "reserve");
    // What packing leaves out is NaN in the result.
    std::memset(panels.as<float>(), 0xff, (floats + 1) * sizeof(float));
    std::vector<GemmSegment> operands;
    size_t at = 0;
    for (const Segment& segment : segments) {
      kernels.pack(segment.matrix(n), segment.transposed, 0, segment.k, 0, n, panels.as<float>(),
                   depth, at);
      at += kernels.depth(segment.k);
      operands.push_back(segment.operand());
    }
    expect(std::isnan(panels.as<float>()[floats]), "%s: packed past the block", level);

    const size_t ldc = n + random.below(3), add_ld = n + random.below(3);
    const std::vector<float> bias = random.normals(n), add = random.normals(m * add_ld);
    std::vector<float> c = random.normals(m * ldc);
    std::vector<uint16_t> halves(m * ldc, 0x1234);
    const std::vector<float> before = c;
    const bool in_bf16 = random.coin(), accumulates = !in_bf16 && random.coin();
    BlockOutput out{c.data(), ldc};
    if (in_bf16) {
      out.c = halves.data();
      out.bf16 = true;
    }
    if (random.coin()) out.bias = bias.data();
    if (random.coin()) {
      out.add = accumulates ? c.data() : add.data();
      out.add_ld = accumulates ? ldc : add_ld;
    }
    kernels.block(operands.data(), operands.size(), m, panels.as<float>(), n, out);
    for (size_t i = 0; i < m; ++i) {
      for (size_t j = 0; j < ldc; ++j) {
        float want = before[i * ldc + j];
        if (j < n) {
          want = twin(segments, i, j, n);
          if (out.add != nullptr) want += accumulates ? before[i * ldc + j] : add[i * add_ld + j];
          if (out.bias != nullptr) want += bias[j];
        }
        float got = c[i * ldc + j];
        if (in_bf16) {
          want = j < n ? rounded(want) : bf16_to_f32(0x1234);
          got = bf16_to_f32(halves[i * ldc + j]);
        }
        if (!expect(std::memcmp(&got, &want, sizeof want) == 0,
                    "%s round %d m=%zu n=%zu segments=%zu%s [%zu, %zu]: %.9g instead of %.9g",
                    level, round, m, n, segments.size(), in_bf16 ? " to bf16" : "", i, j, got, want))
          return;
      }
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

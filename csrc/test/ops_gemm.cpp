// gemm and gemm_tn against sums in double precision over random odd shapes, every storage type,
// strides, several terms and parts, both compute types; the same bits for any number of threads;
// guard values around C untouched.
//   |error| <= 1e-6 * Σ|a||b|: a chain of K fp32 roundings, at worst K * 6e-8 of the sum of
//   magnitudes, in practice its root. With bf16 the same, from operands rounded to it.
#include <cstring>
#include <memory>

#include "core/half.h"
#include "ops/dequantize.h"
#include "ops/gemm.h"
#include "reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

constexpr double kTolerance = 1e-6;
constexpr double kHalfUlpOfBf16 = 0.00390625;  // relative
constexpr float kGuard = 12288.0f;  // a bf16 too

// A weight of any storage type with its exact values.
struct Weight {
  Matrix matrix;
  std::vector<unsigned char> bytes;
  std::vector<float> values;  // [rows, cols]
};

bool is_scale_byte(DType type, size_t offset) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return offset < 4;
    case DType::kQ2_K:
      return offset >= 80;
    case DType::kQ3_K:
      return offset >= 108;
    case DType::kQ6_K:
      return offset >= 208;
    default:
      return offset < 2;
  }
}

// Rows lie `gap` bytes further apart than they need.
std::unique_ptr<Weight> random_weight(Context& context, Random& random, DType type, size_t rows,
                                      size_t cols, size_t gap) {
  auto weight = std::make_unique<Weight>();
  const DTypeInfo& info = dtype_info(type);
  const size_t stride = row_bytes(type, cols) + gap;
  weight->bytes.resize(rows * stride + 1);
  for (unsigned char& byte : weight->bytes) byte = static_cast<unsigned char>(random.next());
  for (size_t r = 0; r < rows; ++r) {
    unsigned char* row = weight->bytes.data() + r * stride;
    if (info.block_elements == 1) {
      for (size_t c = 0; c < cols; ++c) {
        const float value = random.normal();
        const uint16_t half = type == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
        if (type == DType::kF32) {
          std::memcpy(row + 4 * c, &value, 4);
        } else {
          std::memcpy(row + 2 * c, &half, 2);
        }
      }
      continue;
    }
    for (size_t block = 0; block < cols / info.block_elements;
         ++block) {  // scales are small and finite
      unsigned char* bytes = row + block * info.block_bytes;
      if (type == DType::kNF4 || type == DType::kFP4 || type == DType::kInt8) {
        const float absmax = 0.01f * random.normal();
        std::memcpy(bytes, &absmax, 4);
        continue;
      }
      for (size_t i = 0; i + 1 < info.block_bytes; ++i) {
        if (!is_scale_byte(type, i) || !is_scale_byte(type, i + 1) || (i & 1)) continue;
        const uint16_t scale = f32_to_f16(0.01f * random.normal());
        std::memcpy(bytes + i, &scale, 2);
      }
    }
  }
  weight->matrix = {weight->bytes.data(), type, rows, cols, stride};
  weight->values.resize(rows * cols);
  expect_ok(dequantize(context, weight->matrix, weight->values.data()), "dequantize");
  return weight;
}

size_t odd_size(Random& random) {
  constexpr size_t kSizes[] = {1,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16,  17,  31,
                               32, 33, 47, 48, 49, 63, 65, 96, 100, 127, 145, 200, 257};
  return kSizes[random.below(std::size(kSizes))];
}

struct Term {
  std::unique_ptr<Weight> weight;
  std::vector<float> a;
  std::vector<uint16_t> halves;  // the same in bf16, or empty
  size_t a_row, a_col, k;
  bool transposed;
  GemmTerm view() const {
    if (halves.empty()) return {a.data(), a_row, a_col, weight->matrix, transposed, k};
    return {halves.data(), a_row, a_col, weight->matrix, transposed, k, DType::kBF16};
  }
  double b(size_t kk, size_t n) const {
    return weight->values[transposed ? n * weight->matrix.cols + kk : kk * weight->matrix.cols + n];
  }
};

struct Part {
  std::vector<Term> terms;
  std::vector<GemmTerm> views;
  std::vector<float> c, bias, add;
  size_t n, ldc, add_ld;
  bool accumulate, add_apart, bf16;
  std::vector<double> want, tolerance;  // [m, n]
};

// Whether gemm() takes rows in bf16 here.
bool computes_bf16(const Context& context) {
  return context.compute == ComputeType::kBf16 && context.kernels.gemm.bf16 != nullptr;
}

Term random_term(Context& context, Random& random, DType type, size_t m, size_t n, size_t k,
                 bool transposed, bool rows_only) {
  Term term;
  term.k = k;
  term.transposed = transposed;
  const size_t gap = random.coin() ? 0 : dtype_info(type).block_bytes * random.below(3);
  term.weight = random_weight(context, random, type, transposed ? n : k, transposed ? k : n, gap);
  const size_t pad = random.below(4);
  const bool strided =
      !rows_only && random.below(4) == 0;  // A as the transpose of a row-major matrix
  term.a_row = strided ? 1 : k + pad;
  term.a_col = strided ? m + pad : 1;
  term.a = random.normals((strided ? k : m) * (strided ? term.a_col : term.a_row) + 1);
  if (computes_bf16(context) && random.coin()) term.halves = halves_of(term.a);
  return term;
}

Part random_part(Context& context, Random& random, DType type, size_t m, bool decoding) {
  Part part;
  const DTypeInfo& info = dtype_info(type);
  const auto fitting = [&](size_t size) {  // a size along the rows of this type
    return info.block_elements == 1
               ? size
               : (1 + size % (info.block_elements == 32 ? 9 : 2)) * info.block_elements;
  };
  const bool transposed = decoding || random.coin();
  const bool deep = random.below(4) == 0;  // over the cuts of K
  const size_t k = deep ? 700 + 32 * random.below(40) + random.below(3) : odd_size(random);
  part.n = transposed ? odd_size(random) : fitting(odd_size(random));
  part.terms.push_back(random_term(context, random, type, m, part.n, transposed ? fitting(k) : k,
                                   transposed, decoding));
  for (size_t extra = random.below(3); extra > 0; --extra) {
    part.terms.push_back(random_term(context, random, DType::kF32, m, part.n, random.below(20),
                                     decoding || random.coin(), decoding));
  }
  part.ldc = part.n + random.below(5);
  part.accumulate = random.coin();
  if (random.coin()) part.bias = random.normals(part.n);
  part.c = random.normals(m * part.ldc + 1);
  part.bf16 = computes_bf16(context) && random.coin();
  part.add_apart = part.accumulate && (part.bf16 || random.coin());
  part.add_ld = part.n + random.below(3);
  if (part.add_apart) part.add = random.normals(m * part.add_ld);
  return part;
}

// Whether gemm() rounds the operands of these parts.
bool takes_bf16(const Context& context, size_t m, const std::vector<Part>& parts) {
  if (!computes_bf16(context)) return false;
  bool dots = m <= gemm_dot_rows(context);
  for (const Part& part : parts) {
    dots &= !part.bf16;
    for (const Term& term : part.terms)
      dots &= term.transposed && term.a_col == 1 && term.halves.empty();
  }
  return !dots || m > kGemmDotRows;
}

double operand(double value, bool rounded) {
  return rounded ? bf16_to_f32(f32_to_bf16(static_cast<float>(value))) : value;
}

void fill_reference(Part& part, size_t m, bool rounded) {
  part.want.assign(m * part.n, 0);
  part.tolerance.assign(m * part.n, 0);
  for (size_t i = 0; i < m; ++i) {
    for (size_t j = 0; j < part.n; ++j) {
      double sum = !part.accumulate ? 0
                   : part.add_apart ? part.add[i * part.add_ld + j]
                                    : part.c[i * part.ldc + j];
      double magnitude = std::fabs(sum);
      if (!part.bias.empty()) {
        sum += part.bias[j];
        magnitude += std::fabs(part.bias[j]);
      }
      for (const Term& term : part.terms) {
        for (size_t k = 0; k < term.k; ++k) {
          const double product = operand(term.a[i * term.a_row + k * term.a_col], rounded) *
                                 operand(term.b(k, j), rounded);
          sum += product;
          magnitude += std::fabs(product);
        }
      }
      part.want[i * part.n + j] = sum;
      part.tolerance[i * part.n + j] =
          kTolerance * magnitude + 1e-30 + (part.bf16 ? kHalfUlpOfBf16 * std::fabs(sum) : 0);
    }
  }
}

void check_parts(Context& context, const char* level, DType type, size_t m,
                 std::vector<Part>& parts) {
  const std::string what =
      std::string("gemm ") + level + (context.compute == ComputeType::kBf16 ? " bf16 " : " ") +
      (context.decoding ? "decoding " : "") +
      dtype_info(type).name + " m=" + std::to_string(m);
  std::vector<std::vector<float>> outputs;  // of each thread count
  for (size_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Context with_threads{.pool = pool, .kernels = context.kernels, .compute = context.compute, .decoding = context.decoding};
    std::vector<std::vector<float>> c;
    std::vector<std::vector<uint16_t>> halves(parts.size());
    std::vector<GemmPart> views;
    for (Part& part : parts) {
      part.views.clear();
      for (const Term& term : part.terms) part.views.push_back(term.view());
      c.push_back(part.c);
      for (size_t i = 0; i < m; ++i) {
        for (size_t j = part.n; j < part.ldc; ++j) c.back()[i * part.ldc + j] = kGuard;
      }
      c.back().back() = kGuard;
    }
    for (size_t p = 0; p < parts.size(); ++p) {
      Part& part = parts[p];
      GemmPart view{c[p].data(), part.ldc, part.n, part.views,
                    part.bias.empty() ? nullptr : part.bias.data()};
      if (part.accumulate) {
        view.add = part.add_apart ? part.add.data() : c[p].data();
        view.add_ld = part.add_apart ? part.add_ld : part.ldc;
      }
      if (part.bf16) {
        halves[p] = halves_of(c[p]);
        view.c = halves[p].data();
        view.c_type = DType::kBF16;
      }
      views.push_back(view);
    }
    if (!expect_ok(gemm(with_threads, m, views), what.c_str())) return;
    for (size_t p = 0; p < parts.size(); ++p) {
      if (parts[p].bf16) c[p] = floats_of(halves[p]);
    }
    std::vector<float> all;
    for (size_t p = 0; p < parts.size(); ++p) {
      const Part& part = parts[p];
      for (size_t i = 0; i < m; ++i) {
        for (size_t j = 0; j < part.ldc; ++j) {
          const float got = c[p][i * part.ldc + j];
          if (j >= part.n) {
            if (!expect(got == kGuard, "%s: wrote between rows of C", what.c_str())) return;
            continue;
          }
          all.push_back(got);
          const size_t index = i * part.n + j;
          const std::string where = what + " n=" + std::to_string(part.n) +
                                    " terms=" + std::to_string(part.terms.size()) +
                                    " k=" + std::to_string(part.terms[0].k) +
                                    (part.terms[0].transposed ? " transposed" : "");
          if (!expect_near(got, part.want[index], part.tolerance[index], where.c_str(), index))
            return;
        }
      }
      if (!expect(c[p].back() == kGuard, "%s: wrote past C", what.c_str())) return;
    }
    outputs.push_back(all);
    expect(std::memcmp(outputs[0].data(), all.data(), all.size() * sizeof(float)) == 0,
           "%s: %zu threads give other bits", what.c_str(), threads);
  }
}

void test_random_shapes(Context& context, const char* level) {
  Random random(test_seed());
  for (size_t i = 0; i < static_cast<size_t>(DType::kCount); ++i) {
    const DType type = static_cast<DType>(i);
    if (!dtype_info(type).is_weight) continue;
    for (int round = 0; round < 6; ++round) {
      const bool decoding = round < 2;
      const size_t m = decoding ? 1 + random.below(gemm_dot_rows(context)) : odd_size(random);
      std::vector<Part> parts;
      for (size_t count = 1 + random.below(3); count > 0; --count)
        parts.push_back(random_part(context, random, type, m, decoding));
      const bool rounded = takes_bf16(context, m, parts);
      for (Part& part : parts) fill_reference(part, m, rounded);
      check_parts(context, level, type, m, parts);
    }
  }
}

// Rows of A may be cut anywhere: the first rows of a product are the product of the first rows, among packed
// products and among row-wise dot products.
void test_rows_are_independent(Context& context, const char* level) {
  Random random(test_seed() + 1);
  const size_t m = 40, k = 928, n = 70;
  const auto weight = random_weight(context, random, DType::kQ4_1, n, k, 0);
  const std::vector<float> a = random.normals(m * k);
  std::vector<float> whole(m * n), first(m * n);
  const GemmTerm term{a.data(), k, 1, weight->matrix, true, k};
  const auto compare = [&](size_t all, size_t some) {
    expect_ok(gemm(context, all, term, whole.data(), n, n, false), "gemm");
    expect_ok(gemm(context, some, term, first.data(), n, n, false), "gemm");
    expect(std::memcmp(whole.data(), first.data(), some * n * sizeof(float)) == 0,
           "%s: %zu rows of a product differ from those of %zu", level, some, all);
  };
  const size_t dot_rows = gemm_dot_rows(context);
  compare(m, dot_rows + 5);
  const bool rounds = context.compute == ComputeType::kBf16;  // more than kGemmDotRows of them
  for (size_t some = rounds ? kGemmDotRows + 1 : 1; some < dot_rows; ++some)
    compare(dot_rows, some);
  for (size_t some = 1; some < kGemmDotRows; ++some) compare(kGemmDotRows, some);
}

struct TnShape {
  size_t m, n, t;
};

// The sums that gemm_tn has in fp32, added to a bf16 C and rounded once, and nothing beside C touched.
void expect_added_in_bf16(Context& context, const char* level, TnShape shape, ConstRows a, ConstRows b,
                          const std::vector<float>& c, size_t ldc) {
  std::vector<float> sums(c.size());
  expect_ok(gemm_tn(context, shape.m, shape.n, shape.t, a, b, {sums.data(), ldc}), "gemm_tn of zeros");
  const std::vector<uint16_t> before = halves_of(c);
  std::vector<uint16_t> want = before;
  for (size_t i = 0; i < shape.m; ++i) {
    for (size_t j = 0; j < shape.n; ++j) {
      const size_t at = i * ldc + j;
      want[at] = f32_to_bf16(bf16_to_f32(before[at]) + sums[at]);
    }
  }
  for (size_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Context with_threads{.pool = pool, .kernels = context.kernels, .compute = context.compute};
    std::vector<uint16_t> out = before;
    expect_ok(gemm_tn(with_threads, shape.m, shape.n, shape.t, a, b, {out.data(), ldc, DType::kBF16}), "gemm_tn in bf16");
    expect(out == want, "gemm_tn %s in bf16, m=%zu n=%zu t=%zu, %zu threads", level, shape.m, shape.n, shape.t, threads);
  }
}

void test_tn(Context& context, const char* level) {
  const bool bf16 = computes_bf16(context);
  Random random(test_seed() + 2);
  for (int round = 0; round < 40; ++round) {
    const size_t m = odd_size(random), n = odd_size(random),
                 t = random.below(4) == 0 ? 1100 : random.below(8) == 0 ? 1701 : odd_size(random);
    const size_t lda = m + random.below(3), ldb = n + random.below(3);
    const bool transposed = random.coin();
    const size_t ldc = (transposed ? m : n) + random.below(3);
    const std::vector<float> a = random.normals(t * lda), b = random.normals(t * ldb);
    const bool a_in_bf16 = bf16 && random.coin(), b_in_bf16 = bf16 && random.coin();
    const std::vector<uint16_t> a_halves = halves_of(a), b_halves = halves_of(b);
    const ConstRows left = a_in_bf16 ? ConstRows{a_halves.data(), lda, DType::kBF16}
                                     : ConstRows{a.data(), lda};
    const ConstRows right = b_in_bf16 ? ConstRows{b_halves.data(), ldb, DType::kBF16}
                                      : ConstRows{b.data(), ldb};
    const std::vector<float> c = random.normals((transposed ? n : m) * ldc);
    std::vector<float> reference;
    for (size_t threads : {1, 2, 3, 7}) {
      ThreadPool pool(threads);
      Context with_threads{.pool = pool, .kernels = context.kernels, .compute = context.compute};
      std::vector<float> out = c;
      expect_ok(
          gemm_tn(with_threads, m, n, t, left, right, {out.data(), ldc}, transposed),
          "gemm_tn");
      if (threads == 1) reference = out;
      expect(out == reference, "gemm_tn %s: %zu threads give other bits", level, threads);
    }
    if (!transposed) expect_added_in_bf16(context, level, {m, n, t}, left, right, c, ldc);
    std::vector<double> want(c.begin(), c.end()), tolerance(c.size(), 1e-30);
    for (size_t i = 0; i < m; ++i) {
      for (size_t j = 0; j < n; ++j) {
        double sum = 0, magnitude = 0;
        for (size_t s = 0; s < t; ++s) {
          const double product = operand(a[s * lda + i], bf16) * operand(b[s * ldb + j], bf16);
          sum += product;
          magnitude += std::fabs(product);
        }
        const size_t at = transposed ? j * ldc + i : i * ldc + j;
        tolerance[at] = kTolerance * (magnitude + std::fabs(want[at]));
        want[at] += sum;
      }
    }
    const std::string what = std::string("gemm_tn ") + level + " m=" + std::to_string(m) +
                             " n=" + std::to_string(n) + " t=" + std::to_string(t) +
                             (transposed ? " transposed" : "");
    expect_all_near(reference.data(), want, tolerance, what.c_str());
  }
}

void test_empty_and_errors(Context& context, const char* level) {
  const std::vector<float> a(64, 1), w(64, 1), bias(4, 0.5f);
  std::vector<float> c(16, 3);
  const GemmTerm none{a.data(), 4, 1, matrix(w.data(), DType::kF32, 4, 0), true, 0};
  const GemmPart part{c.data(), 4, 4, {&none, 1}, bias.data()};
  for (size_t m : {0, 2, 4}) expect_ok(gemm(context, m, {&part, 1}), level);
  expect(c == std::vector<float>(16, 0.5f), "%s: a sum over no k is the bias", level);
  const GemmPart no_terms{c.data(), 4, 4, {}, nullptr, c.data(), 4};
  expect_ok(gemm(context, 4, {&no_terms, 1}), level);
  expect(c == std::vector<float>(16, 0.5f), "%s: adding no terms changes nothing", level);
  expect_ok(gemm(context, 4, {}), level);

  const GemmTerm narrow{a.data(), 4, 1, matrix(w.data(), DType::kF32, 3, 4), true, 4};
  expect_code(gemm(context, 2, narrow, c.data(), 4, 4, false), Code::kShapeMismatch,
              "too few rows of W");
  const GemmTerm shallow{a.data(), 4, 1, matrix(w.data(), DType::kF32, 4, 4), true, 5};
  expect_code(gemm(context, 2, shallow, c.data(), 4, 4, false), Code::kShapeMismatch, "another k");
  const GemmTerm integers{a.data(), 4, 1, matrix(w.data(), DType::kI8, 4, 4), true, 4};
  expect_code(gemm(context, 2, integers, c.data(), 4, 4, false), Code::kUnsupportedQuantization,
              "integers");
  if (!computes_bf16(context)) {
    const GemmTerm halves{a.data(), 4, 1, matrix(w.data(), DType::kF32, 4, 4), true, 4,
                          DType::kBF16};
    expect_code(gemm(context, 2, halves, c.data(), 4, 4, false), Code::kInvalidOption,
                "bf16 rows without bf16");
    expect_code(gemm_tn(context, 2, 2, 2, {a.data(), 2, DType::kBF16}, {w.data(), 2}, {c.data(), 2}),
                Code::kInvalidOption, "bf16 rows without bf16");
  }
  expect_code(gemm_tn(context, 2, 2, 2, {a.data(), 2}, {w.data(), 2}, {c.data(), 2, DType::kBF16}, true),
              Code::kInvalidOption, "a transposed C in bf16");
  const GemmTerm cut{a.data(), 48, 1, {w.data(), DType::kQ8_0, 1, 48, 51}, true, 48};
  expect_code(gemm(context, 1, cut, c.data(), 1, 1, false), Code::kShapeMismatch,
              "a row that ends inside a block");
}

}  // namespace

int main() {
  for_each_level(2, [](Context& context, const char* level) {
    for (ComputeType compute : {ComputeType::kF32, ComputeType::kBf16}) {
      for (bool decoding : {false, true}) {
        Context computing{.pool = context.pool, .kernels = context.kernels, .compute = compute, .decoding = decoding};
        test_random_shapes(computing, level);
        test_rows_are_independent(computing, level);
        test_empty_and_errors(computing, level);
      }
      Context computing{.pool = context.pool, .kernels = context.kernels, .compute = compute};
      test_tn(computing, level);
    }
  });
  return finish();
}

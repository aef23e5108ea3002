// Every storage type against the gguf package's own values (NF4 and FP4: bitsandbytes'), bit for bit, at
// every level and for any cut of columns.
//   ops_dequantize [folder of fixtures, made by test/reference/make_dequant_fixture.py and make_bitsandbytes_fixture.py]
#include <cstring>

#include "ops/dequantize.h"
#include "reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

constexpr size_t kRows = 2, kColumns = 768;

struct Fixture {
  std::vector<unsigned char> stored;
  std::vector<float> values;
};

bool read_fixture(const std::string& folder, DType type, Fixture* fixture) {
  const std::string path = folder + "/" + dtype_info(type).name + ".bin";
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!expect(file != nullptr, "cannot open %s", path.c_str())) return false;
  fixture->stored.resize(kRows * row_bytes(type, kColumns));
  fixture->values.resize(kRows * kColumns);
  const bool whole = std::fread(fixture->stored.data(), 1, fixture->stored.size(), file) ==
                         fixture->stored.size() &&
                     std::fread(fixture->values.data(), 4, fixture->values.size(), file) ==
                         fixture->values.size() &&
                     std::fgetc(file) == EOF;
  std::fclose(file);
  return expect(whole, "%s is not as long as it should be", path.c_str());
}

bool same_bits(const float* got, const float* want, size_t n, const char* what, size_t at) {
  for (size_t i = 0; i < n; ++i) {
    uint32_t a, b;
    std::memcpy(&a, got + i, 4);
    std::memcpy(&b, want + i, 4);
    if (!expect(a == b, "%s [%zu]: %.9g instead of %.9g", what, at + i, got[i], want[i]))
      return false;
  }
  return true;
}

void test_type(DType type, const Fixture& fixture) {
  for_each_level(2, [&](Context& context, const char* level) {
    const std::string what = std::string(dtype_info(type).name) + " at " + level;
    const Matrix w = matrix(fixture.stored.data(), type, kRows, kColumns);
    std::vector<float> out(kRows * kColumns, -1);
    if (!expect_ok(dequantize(context, w, out.data()), what.c_str())) return;
    same_bits(out.data(), fixture.values.data(), out.size(), what.c_str(), 0);

    Random random(test_seed());
    for (int i = 0; i < 50; ++i) {
      const size_t begin = random.below(kColumns), n = 1 + random.below(kColumns - begin),
                   row = random.below(kRows);
      std::vector<float> cut(n + 1, 7);
      context.kernels.gemm.dequantize(w, row, 1, begin, n, cut.data(), n);
      same_bits(cut.data(), &fixture.values[row * kColumns + begin], n, (what + ", a cut").c_str(),
                row * kColumns + begin);
      expect(cut[n] == 7, "%s: wrote past a cut of [%zu, +%zu)", what.c_str(), begin, n);
    }
  });
}

void test_errors() {
  for_each_level(1, [](Context& context, const char*) {
    float out[512];
    const unsigned char bytes[512] = {};
    expect_code(dequantize(context, {bytes, DType::kI32, 1, 4, 16}, out),
                Code::kUnsupportedQuantization, "integers");
    expect_code(dequantize(context, {bytes, DType::kQ4_K, 1, 128, 144}, out), Code::kShapeMismatch,
                "half a block");
    expect_ok(dequantize(context, {nullptr, DType::kQ4_K, 0, 256, 144}, nullptr), "no rows");
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : "test/fixtures/dequant";
  for (size_t i = 0; i < static_cast<size_t>(DType::kCount); ++i) {
    const DType type = static_cast<DType>(i);
    Fixture fixture;
    if (dtype_info(type).is_weight && read_fixture(folder, type, &fixture))
      test_type(type, fixture);
  }
  test_errors();
  return finish();
}

// AMX's tile instructions, one by one: what they compute, how they address memory, and what they
// refuse. On a machine with AMX this tests the machine; on one without, amx_trap.h, by the same
// expectations. Elsewhere there is nothing to run.
#include "reference.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/half.h"

using namespace lowrank;
using namespace lowrank::test;

#define LR_TILES __attribute__((target("amx-tile,amx-bf16")))

namespace {

constexpr size_t kRow = 64, kRows = 16;

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Configuration& tile(size_t index, size_t rows_of_tile, size_t bytes) {
    rows[index] = static_cast<uint8_t>(rows_of_tile);
    row_bytes[index] = static_cast<uint16_t>(bytes);
    return *this;
  }
};

Configuration whole() {
  Configuration configuration;
  for (size_t tile = 0; tile < 8; ++tile) configuration.tile(tile, kRows, kRow);
  return configuration;
}

LR_TILES void configure(const Configuration& configuration) {
  asm volatile("ldtilecfg %0" ::"m"(configuration));
}

LR_TILES void release() { asm volatile("tilerelease"); }

// Every form of address that an assembler chooses by registers and displacement.
LR_TILES void test_addresses() {
  alignas(64) static unsigned char from[48 * kRow];
  for (size_t i = 0; i < sizeof from; ++i) from[i] = static_cast<unsigned char>(i * 7 + i / 64);
  const auto expect_tile_3 = [](size_t first, size_t stride, const char* form) LR_TILES {
    unsigned char to[kRows * kRow];
    asm volatile("tilestored %%tmm3, (%0,%1,1)" ::"r"(to), "r"(kRow) : "memory");
    for (size_t row = 0; row < kRows; ++row) {
      if (!expect(std::memcmp(to + kRow * row, from + first + row * stride, kRow) == 0,
                  "%s: row %zu differs", form, row))
        return;
    }
  };
  configure(whole());
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(from), "r"(kRow) : "memory");
  expect_tile_3(0, 64, "no displacement");
  asm volatile("tileloadd 64(%0,%1,2), %%tmm3" ::"r"(from), "r"(kRow) : "memory");
  expect_tile_3(64, 128, "a displacement of a byte, the index scaled");
  asm volatile("tileloaddt1 -1024(%0,%1,1), %%tmm3" ::"r"(from + 2048), "r"(2 * kRow) : "memory");
  expect_tile_3(1024, 128, "a displacement of four bytes, below zero");
  asm volatile("tileloadd (%0), %%tmm3" ::"r"(from + 64) : "memory");
  expect_tile_3(64, 0, "no index");
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(from + 2048), "r"(-kRow) : "memory");
  expect_tile_3(2048, -kRow, "rows from the last to the first");
  // These registers are encoded otherwise than the rest.
  register const unsigned char* r12 asm("r12") = from + 128;
  register const unsigned char* r13 asm("r13") = from + 192;
  register size_t r14 asm("r14") = kRow;
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(r12), "r"(r14) : "memory");
  expect_tile_3(128, 64, "base r12");
  r13 = from + 192;
  r14 = 2 * kRow;
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(r13), "r"(r14) : "memory");
  expect_tile_3(192, 128, "base r13");
  register size_t index asm("r12") = kRow;
  asm volatile("tileloadd (%0,%1,1), %%tmm3" ::"r"(from), "r"(index) : "memory");
  expect_tile_3(0, 64, "index r12");
  release();
}

// Tiles that are not whole: rows and bytes beyond their shapes are neither read nor written, and a
// product of them, denormals among its operands and results.
LR_TILES void test_product() {
  Random random(test_seed());
  constexpr size_t kM = 5, kN = 7, kPairs = 3;
  alignas(64) uint16_t a[kM][2 * kPairs], b[kPairs][2 * kN];
  alignas(64) float c[kRows][16], got[kRows][16], want[kRows][16];
  const auto value = [&] {
    return std::ldexp(random.normal(), random.coin() ? 0 : -static_cast<int>(random.below(140)));
  };
  for (auto& row : a) {
    for (uint16_t& half : row) half = f32_to_bf16(value());
  }
  for (auto& row : b) {
    for (uint16_t& half : row) half = f32_to_bf16(value());
  }
  for (auto& row : c) {
    for (float& sum : row) sum = value();
  }
  const auto flushed = [](float x) {
    return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
  };
  std::fill_n(got[0], kRows * 16, 77.0f);
  std::memcpy(want, got, sizeof want);
  for (size_t m = 0; m < kM; ++m) {
    for (size_t n = 0; n < kN; ++n) {
      float sums[2] = {0, 0};  // over even k and odd
      for (size_t k = 0; k < 2 * kPairs; ++k) {
        const float x = flushed(bf16_to_f32(a[m][k]));
        const float y = flushed(bf16_to_f32(b[k / 2][2 * n + k % 2]));
        sums[k % 2] = flushed(std::fma(x, y, sums[k % 2]));
      }
      want[m][n] = flushed(flushed(c[m][n]) + flushed(sums[0] + sums[1]));
    }
  }
  configure(Configuration().tile(0, kM, 4 * kN).tile(1, kM, 4 * kPairs).tile(2, kPairs, 4 * kN));
  asm volatile("tileloadd (%0,%1,1), %%tmm0" ::"r"(c), "r"(sizeof c[0]) : "memory");
  asm volatile("tileloadd (%0,%1,1), %%tmm1" ::"r"(a), "r"(sizeof a[0]) : "memory");
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm2" ::"r"(b), "r"(sizeof b[0]) : "memory");
  asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0");
  asm volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(got), "r"(sizeof got[0]) : "memory");
  release();
  for (size_t i = 0; i < kRows * 16; ++i) {
    expect(std::memcmp(&got[i / 16][i % 16], &want[i / 16][i % 16], sizeof(float)) == 0,
           "product [%zu, %zu]: %.9g instead of %.9g", i / 16, i % 16, got[i / 16][i % 16],
           want[i / 16][i % 16]);
  }
}

// The only kernel with tiles that no test of an op runs.
void test_peak() {
  const auto multiply_add = kernels_for(CpuLevel::kAmx).peak.multiply_add_bf16;
  expect(multiply_add(80) == 10 * 4 * 2.0 * 16 * 16 * 32, "the peak's loop counts its flop wrong");
}

LR_TILES void use_tiles_without_configuration() { asm volatile("tilezero %tmm0"); }
LR_TILES void use_tiles_after_release() {
  configure(whole());
  release();
  asm volatile("tilezero %tmm0");
}
LR_TILES void use_a_tile_without_shape() {
  configure(Configuration().tile(0, kRows, kRow));
  asm volatile("tilezero %tmm1");
}
LR_TILES void multiply_a_tile_by_itself() {
  configure(whole());
  // tdpbf16ps %tmm1, %tmm1, %tmm0, which assemblers refuse.
  asm volatile(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1");
}
LR_TILES void multiply_what_does_not_fit() {
  configure(Configuration().tile(0, 16, 64).tile(1, 16, 32).tile(2, 16, 64));
  asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0");
}
void configure_reserved_bytes() {
  Configuration configuration = whole();
  configuration.reserved[3] = 1;
  configure(configuration);
}
void configure_too_many_rows() { configure(whole().tile(4, 17, 64)); }
void configure_an_unknown_palette() {
  Configuration configuration = whole();
  configuration.palette = 2;
  configure(configuration);
}

// f ends a process of its own by a signal.
void expect_refused(void (*f)(), const char* what) {
  const pid_t child = fork();
  if (child == 0) {
    close(STDERR_FILENO);  // the trap's reason
    f();
    _exit(0);
  }
  int status = 0;
  expect(child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
             (WTERMSIG(status) == SIGILL || WTERMSIG(status) == SIGSEGV),
         "%s is not refused", what);
}

}  // namespace

int main() {
  if (tested_levels().back() != CpuLevel::kAmx) return finish();
  test_addresses();
  test_product();
  test_peak();
  expect(threads_with_tiles() == 0, "tiles are counted as configured after their release");
  expect_refused(use_tiles_without_configuration, "a tile without a configuration");
  expect_refused(use_tiles_after_release, "a tile after the release");
  expect_refused(use_a_tile_without_shape, "a tile without a shape");
  expect_refused(multiply_a_tile_by_itself, "a product that names a tile twice");
  expect_refused(multiply_what_does_not_fit, "a product of tiles that do not fit");
  expect_refused(configure_reserved_bytes, "a configuration with reserved bytes");
  expect_refused(configure_too_many_rows, "a tile of 17 rows");
  expect_refused(configure_an_unknown_palette, "an unknown palette");
  return finish();
}

#else

int main() { return lowrank::test::finish(); }

#endif

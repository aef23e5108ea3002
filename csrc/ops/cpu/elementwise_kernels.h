// Single-threaded kernels of the ops that are bound by memory or by exp, of one instruction-set
// level. The formulas stand in the ops' own headers (rmsnorm.h, swiglu.h, dropout.h,
// linear_cross_entropy.h); these work on one chunk of them. A `void*` is fp32, or bf16 where its flag
// says so.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace lowrank {

// Online softmax of one row over blocks of columns. The weights so far are exp(x - shift), `sum` is
// their total.
struct SoftmaxState {
  double sum;
  float shift;    // -infinity before the first block
  float rescale;  // what the last block asks earlier results to be multiplied by; 1: nothing
  float largest;  // of the last block
};

struct ElementwiseKernels {
  // Rows are contiguous, but for those of y.
  void (*rmsnorm_forward)(const float* x, const float* w, float eps, size_t rows, size_t channels,
                          void* y, size_t y_stride, bool bf16, float* inv_rms);
  // `rounded` (may be null) takes dx in bf16 too.
  void (*rmsnorm_backward)(const float* x, const float* w, const float* inv_rms, const float* dy,
                           size_t rows, size_t channels, float* dx, bool accumulate,
                           uint16_t* rounded);
  // dw[c] += Σ_t dy[t,c] * x[t,c] * inv_rms[t] for c in [begin, end), in token order.
  void (*rmsnorm_grad_weight)(const float* x, const float* inv_rms, const float* dy, size_t tokens,
                              size_t channels, size_t begin, size_t end, float* dw);

  void (*swiglu_forward)(const void* g, const void* u, bool bf16, size_t n, void* h);
  void (*swiglu_backward)(const void* g, const void* u, const void* dh, bool bf16, size_t n,
                          void* dg, void* du);

  // y[i] = bf16(x[i])
  void (*to_bf16)(const float* x, size_t n, uint16_t* y);
  // y[i] = x[i]
  void (*from_bf16)(const uint16_t* x, size_t n, float* y);
  // y[i] += x[i]
  void (*add)(const float* x, size_t n, float* y);
  void (*add_bf16)(const float* x, size_t n, uint16_t* y);
  // y[i] = x_factor * x[i] + y_factor * y[i]
  void (*blend)(float x_factor, const float* x, size_t n, float y_factor, float* y);
  // y[i] *= factor
  void (*scale)(float factor, size_t n, float* y);

  // Elements first … first + n - 1 of dropout.h; dropped where their 16 bits are below `threshold`.
  void (*dropout)(const void* x, bool x_bf16, size_t n, uint64_t first, uint32_t threshold,
                  float scale, uint64_t seed, uint64_t module, void* y, bool y_bf16,
                  bool accumulate);

  // Σ x² in double over sixteen interleaved sums, the same at every level.
  double (*sum_of_squares)(const float* x, size_t n);
  double (*sum_of_squares_bf16)(const uint16_t* x, size_t n);

  // x[i] becomes exp(x[i] - shift), and `state` takes the block in; NaN stays NaN.
  void (*softmax_block)(float* x, size_t n, SoftmaxState* state);
  // x[i] = factor * exp(x[i] - shift)
  void (*scaled_exp)(float shift, float factor, size_t n, float* x);
};

}  // namespace lowrank

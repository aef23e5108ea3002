// Single-threaded kernels of the optimizers whose update of an element depends on that element alone, of one instruction-set level.
// The formulas stand in adamw.h, lion.h and sgd.h; states of 8 bits in code_map.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace lowrank {

struct CodeMap;  // ops/code_map.h

// States of 8 bits share a scale in blocks of so many elements, as in bitsandbytes.
constexpr size_t kCodeBlock = 256;

// What one AdamW update multiplies by, computed once in double.
struct AdamWFactors {
  float grad_scale;
  float decay;  // 1 - lr * weight_decay
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float root_correction2;  // sqrt(1 - beta2^step)
  float eps;
  float step_size;  // lr / (1 - beta1^step)
};

struct LionFactors {
  float grad_scale;
  float decay;  // 1 - lr * weight_decay
  float one_minus_beta1;
  float one_minus_beta2;
  float lr;
};

struct SgdFactors {
  float grad_scale;
  float weight_decay;
  float momentum;
  float lr;
};

// A state of 8 bits: codes[n], and one absmax for each block of kCodeBlock of them.
struct CodedState {
  const CodeMap* map;
  uint8_t* codes;
  float* absmax;
};

struct OptimizerKernels {
  void (*adamw)(const AdamWFactors&, size_t n, const float* g, float* p, float* m, float* v);
  void (*adamw_coded)(const AdamWFactors&, size_t n, const float* g, float* p, const CodedState& m, const CodedState& v);
  void (*lion)(const LionFactors&, size_t n, const float* g, float* p, float* m);
  void (*lion_coded)(const LionFactors&, size_t n, const float* g, float* p, const CodedState& m);
  void (*sgd)(const SgdFactors&, size_t n, const float* g, float* p, float* m);

  // y[i] = x[i] rounded to one of the two bf16 values around it, so that its expectation is x[i]: bits of Philox stream (seed, stream), of
  // element first + i, decide. NaN stays NaN.
  void (*round_randomly)(const float* x, size_t n, uint64_t seed, uint64_t stream, uint64_t first, uint16_t* y);
};

}  // namespace lowrank

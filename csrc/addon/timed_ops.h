// Every op of a training step on operands of its own, ready to be timed natively: no call from JavaScript is in the time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "core/dtype.h"
#include "ops/rows.h"

namespace lowrank::addon {

// Which of these an op reads is told by its name in timed_ops.cpp.
struct OpCase {
  std::string op;
  DType weight = DType::kBF16;
  DType rows = DType::kF32;  // attention: of activations, kF32 or kBF16
  size_t tokens = 0, in = 0, out = 0;
  size_t group = 1, rank = 0;                            // lora_linear: projections of one input, and their rank
  size_t sequences = 1, heads = 0, kv_heads = 0, head_dim = 0;
};

// Memory of one op's operands; what could not be had is said once, by status().
class Operands {
 public:
  float* zeros(size_t n) { return static_cast<float*>(bytes(n * sizeof(float))); }
  float* random(size_t n);
  // Activations of kF32 or kBF16.
  Rows random_rows(DType type, size_t rows, size_t columns);
  // Rows of a storage type. Of quantised ones all bits are zero: unpacking takes as long whatever they are.
  void* weight(DType type, size_t rows, size_t cols);
  const Status& status() const { return status_; }

 private:
  void* bytes(size_t n);
  float next();  // in [-1, 1)

  std::vector<Buffer> buffers_;
  Status status_;
  uint32_t state_ = 1;
};

using TimedOp = std::function<Status(Context&)>;

// kInvalidOption where no op has this name. `operands` must outlive the op.
Result<TimedOp> timed_op(const OpCase&, Operands* operands);

}  // namespace lowrank::addon

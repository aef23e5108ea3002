// What turns gradients into updates of a session's parameters, and the states that it keeps of each: named, so that checkpoints hold
// them, and readable and writable by the tensor.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/context.h"
#include "model/model.h"
#include "ops/muon.h"

namespace lowrank {

enum class OptimizerKind { kAdamW, kLion, kSgd, kAdafactor, kMuon };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  // States of parameters of at least kSmallestCoded elements have 8 bits an element; AdamW and Lion.
  bool coded = false;
  // States of more bytes than this are paged: they lie in a file in `folder`. Not of adafactor, which keeps next to none, and of Muon's.
  size_t window = SIZE_MAX;
  std::string folder;
  MuonRatio muon_ratio = MuonRatio::kMatchRmsAdamW;
};

// Smaller parameters keep 32-bit states, as in bitsandbytes.
constexpr size_t kSmallestCoded = 4096;

struct UpdateOptions {
  double learning_rate, beta1, beta2, epsilon, weight_decay;  // double: 1 - 0.999f is off by 1e-5
  double max_grad_norm;                                       // 0: no clipping
  double momentum;                                            // SGD's and Muon's
};

// A parameter that is trained, with its gradient.
struct Trained {
  const Parameter* parameter;
  DType type;      // the parameter's, and the gradient's
  void* gradient;
  bool decay;  // whether weight decay is for it
};

// A tensor of the state that is kept of one parameter.
struct StateTensor {
  const char* name;  // m, v, m_absmax, …
  DType type;        // kF32 or kU8
  std::vector<size_t> shape;

  size_t bytes() const;
};

class Optimizer {
 public:
  // kInvalidOption where there is no such optimizer; kOutOfMemory, kIoError.
  static Result<std::unique_ptr<Optimizer>> create(const OptimizerOptions&, std::span<const Trained>);
  // Bytes of memory that the states take, before anything is allocated; paged ones take the window.
  static size_t estimate(const OptimizerOptions&, std::span<const Parameter* const>);

  virtual ~Optimizer() = default;

  // The same list for the life of the optimizer. `parameter` is an index into what it was made with, `state` one into this list.
  virtual std::vector<StateTensor> states(size_t parameter) const = 0;
  virtual void read_state(size_t parameter, size_t state, void* to) const = 0;
  virtual void write_state(size_t parameter, size_t state, const void* from) = 0;

  // One update of all parameters. Gradients are finite; grad_scale multiplies them first. `step` is 1 for the first. bf16 parameters are
  // computed with in fp32 and rounded randomly, by bits drawn with `seed`, which should be another one in every step.
  virtual Status update(Context&, const UpdateOptions&, double grad_scale, uint64_t step, uint64_t seed) = 0;
};

}  // namespace lowrank

// What an optimizer updates or reads, fp32 or bf16 in memory, as fp32 a stretch at a time.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "ops/cpu/kernels.h"

namespace lowrank {

class StoredFloats {
 public:
  explicit StoredFloats(float* data) : data_(data) {}
  // Of type kF32 or kBF16. What is written as bf16 is rounded randomly, by bits of Philox stream (seed, stream): no change is too small to
  // count in the mean.
  StoredFloats(const Kernels& kernels, DType type, void* data, uint64_t seed = 0, uint64_t stream = 0)
      : kernels_(&kernels), bf16_(type == DType::kBF16), data_(data), seed_(seed), stream_(stream) {}

  bool bf16() const { return bf16_; }
  // Elements [first, first + n): where they lie, if that is in fp32, else a copy in `scratch`.
  float* read(size_t first, size_t n, float* scratch) const {
    if (!bf16_) return static_cast<float*>(data_) + first;
    kernels_->elementwise.from_bf16(static_cast<const uint16_t*>(data_) + first, n, scratch);
    return scratch;
  }
  // Stores what read() gave and was changed since.
  void write(size_t first, size_t n, const float* values) const {
    if (bf16_) kernels_->optimizer.round_randomly(values, n, seed_, stream_, first, static_cast<uint16_t*>(data_) + first);
  }

 private:
  const Kernels* kernels_ = nullptr;
  bool bf16_ = false;
  void* data_;
  uint64_t seed_ = 0, stream_ = 0;
};

}  // namespace lowrank

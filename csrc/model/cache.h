// Keys and values of sequences that are being generated: [layers][rows][capacity, kv_width] fp32, rotated keys.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "model/config.h"

namespace lowrank {

class KvCache {
 public:
  Status allocate(const DecoderConfig& config, size_t rows, size_t capacity);

  size_t rows() const { return lengths_.size(); }
  size_t capacity() const { return capacity_; }
  size_t length(size_t row) const { return lengths_[row]; }
  void grow(size_t row, size_t tokens) { lengths_[row] += tokens; }

  // All rows of a layer: row r, token t at [(r * capacity + t) * kv_width].
  float* keys(size_t layer) const { return data_.as<float>() + 2 * layer * layer_elements_; }
  float* values(size_t layer) const { return keys(layer) + layer_elements_; }

 private:
  Buffer data_;
  size_t capacity_ = 0, layer_elements_ = 0;
  std::vector<size_t> lengths_;
};

}  // namespace lowrank

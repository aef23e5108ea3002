// Keys and values of sequences that are being generated: [layers][rows][capacity, kv_width] fp32, rotated keys.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "model/config.h"

namespace lowrank {

class KvCache {
 public:
  // Fixes the sizes; the memory comes with the first prepare, which may run off the JavaScript thread.
  KvCache(const DecoderConfig& config, size_t rows, size_t capacity)
      : layers_(config.layers), width_(config.kv_width()), capacity_(capacity), lengths_(rows, 0) {}
  // What it takes; rows and capacity that can be addressed.
  static size_t bytes(const DecoderConfig& config, size_t rows, size_t capacity) {
    return 2 * config.layers * rows * capacity * config.kv_width() * sizeof(float);
  }
  // kOutOfMemory names what was wanted.
  Status prepare();

  size_t rows() const { return lengths_.size(); }
  size_t capacity() const { return capacity_; }
  size_t length(size_t row) const { return lengths_[row]; }
  void grow(size_t row, size_t tokens) { lengths_[row] += tokens; }

  // All rows of a layer: row r, token t at [(r * capacity + t) * kv_width].
  float* keys(size_t layer) const { return data_.as<float>() + 2 * layer * layer_elements(); }
  float* values(size_t layer) const { return keys(layer) + layer_elements(); }

 private:
  size_t layer_elements() const { return rows() * capacity_ * width_; }

  Buffer data_;
  size_t layers_, width_, capacity_;
  std::vector<size_t> lengths_;
};

}  // namespace lowrank

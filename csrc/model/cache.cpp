#include "model/cache.h"

#include "core/checked.h"

namespace lowrank {

Status KvCache::allocate(const DecoderConfig& config, size_t rows, size_t capacity) {
  size_t elements, bytes;
  if (!checked_mul(rows, capacity, &elements) || !checked_mul(elements, config.kv_width(), &elements) ||
      !checked_mul(elements, 2 * config.layers * sizeof(float), &bytes)) {
    return error(Code::kOutOfMemory, "a cache of %zu rows of %zu tokens is more than can be addressed", rows, capacity);
  }
  LR_RETURN_IF_ERROR(data_.allocate(bytes, "keys and values of the generation cache"));
  layer_elements_ = elements;
  capacity_ = capacity;
  lengths_.assign(rows, 0);
  return {};
}

}  // namespace lowrank

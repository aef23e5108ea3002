#include "model/cache.h"

#include "core/checked.h"

namespace lowrank {

Status KvCache::prepare() {
  if (data_.bytes() > 0) return {};
  size_t bytes;
  if (!checked_mul(rows(), capacity_, &bytes) || !checked_mul(bytes, 2 * layers_ * width_ * sizeof(float), &bytes)) {
    return error(Code::kOutOfMemory, "a cache of %zu rows of %zu tokens is more than can be addressed", rows(), capacity_);
  }
  return data_.allocate(bytes, "keys and values of the generation cache");
}

}  // namespace lowrank

#include "core/buffer.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/checked.h"

namespace lowrank {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

void* aligned_allocate(size_t bytes, size_t alignment) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, alignment);
#else
  void* data = nullptr;
  return posix_memalign(&data, alignment, bytes) == 0 ? data : nullptr;
#endif
}

}  // namespace

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Status Buffer::allocate(size_t bytes, const char* what) {
  reset();
  if (bytes == 0) return {};
  const bool large = bytes >= 2 * kHugePage;
  const size_t alignment = large ? kHugePage : kCacheLine;
  size_t rounded;
  if (!checked_align(bytes, alignment, &rounded)) {
    return error(Code::kOutOfMemory, "%s: %zu bytes is more than can be addressed", what, bytes);
  }
  data_ = aligned_allocate(rounded, alignment);
  if (data_ == nullptr) {
    return error(Code::kOutOfMemory, "%s: %zu bytes could not be allocated", what, bytes);
  }
#if defined(__linux__)
  if (large) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
  std::memset(data_, 0, rounded);
  bytes_ = bytes;
  return {};
}

Status Buffer::reserve(size_t bytes, const char* what) {
  return bytes <= bytes_ ? Status() : allocate(bytes, what);
}

void Buffer::reset() {
#if defined(_WIN32)
  _aligned_free(data_);
#else
  std::free(data_);
#endif
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace lowrank

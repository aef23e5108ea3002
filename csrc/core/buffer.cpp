#include "core/buffer.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "core/checked.h"

namespace lowrank {
namespace {

constexpr size_t kCacheLine = 64;

#if defined(__linux__)
constexpr size_t kHugePage = size_t{2} << 20;
constexpr bool is_mapped(size_t bytes) { return bytes >= 2 * kHugePage; }
size_t granularity(size_t bytes) { return is_mapped(bytes) ? static_cast<size_t>(sysconf(_SC_PAGESIZE)) : kCacheLine; }

// Fresh pages, which are zero without being written: large buffers cost nothing until they are used, on the thread that uses them. What
// is left after the last whole huge page lies in small ones.
void* map_pages(size_t bytes) {
  const size_t wanted = bytes + kHugePage;  // room to move to the next boundary
  void* mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  unsigned char* const begin = static_cast<unsigned char*>(mapped);
  const size_t before = round_up(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  // To start a program, a process is copied first, page tables and all, while every other thread that needs a page waits.
  madvise(begin + before, bytes, MADV_DONTFORK);
  return begin + before;
}
#else
constexpr size_t kHugePage = kCacheLine;
constexpr bool is_mapped(size_t) { return false; }
size_t granularity(size_t) { return kCacheLine; }
void* map_pages(size_t) { return nullptr; }
#endif

void* allocate_zeroed(size_t bytes) {
#if defined(_WIN32)
  void* data = _aligned_malloc(bytes, kCacheLine);
#else
  void* data = nullptr;
  if (posix_memalign(&data, kCacheLine, bytes) != 0) data = nullptr;
#endif
  if (data != nullptr) std::memset(data, 0, bytes);
  return data;
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
  const bool mapped = is_mapped(bytes);
  size_t rounded, with_slack;
  if (!checked_align(bytes, granularity(bytes), &rounded) || !checked_add(rounded, kHugePage, &with_slack)) {
    return error(Code::kOutOfMemory, "%s: %zu bytes is more than can be addressed", what, bytes);
  }
  data_ = mapped ? map_pages(rounded) : allocate_zeroed(rounded);
  if (data_ == nullptr) {
    return error(Code::kOutOfMemory, "%s: %zu bytes could not be allocated", what, bytes);
  }
  bytes_ = bytes;
  return {};
}

Status Buffer::reserve(size_t bytes, const char* what) {
  return bytes <= bytes_ ? Status() : allocate(bytes, what);
}

size_t Buffer::held(size_t bytes) { return round_up(bytes, granularity(bytes)); }

void Buffer::reset() {
#if defined(_WIN32)
  _aligned_free(data_);
#elif defined(__linux__)
  if (is_mapped(bytes_)) {
    munmap(data_, round_up(bytes_, granularity(bytes_)));
  } else {
    std::free(data_);
  }
#else
  std::free(data_);
#endif
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace lowrank

// Owned, aligned memory that can fail to be had. Large buffers are mapped on 2 MiB boundaries, untouched until used, and ask for
// huge pages ("madvise" is the common setting: without the call they sit in 4 KiB pages).
#pragma once

#include <cstddef>

#include "core/status.h"

namespace lowrank {

class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { reset(); }
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Replaces the contents by `bytes` zeroed bytes, 64-byte aligned. kOutOfMemory names `what`.
  Status allocate(size_t bytes, const char* what);
  // Like allocate, but keeps the present memory where it is large enough; contents are unspecified.
  Status reserve(size_t bytes, const char* what);
  void reset();

  // Bytes of memory that a buffer of `bytes` takes once all of it is used.
  static size_t held(size_t bytes);

  template <class T = void>
  T* as() const { return static_cast<T*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace lowrank

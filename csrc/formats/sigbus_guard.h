// Keeps a truncated file from killing the process. Touching a mapped page that lies beyond the end
// of its file (because another process truncated it) raises SIGBUS. For ranges registered here a
// process-wide handler puts zero pages in place of what was lost and marks the range as damaged:
// the reader goes on with zeros, and whoever asks damaged() afterwards learns that they are not the
// file's. Other faults go to the handler that was there before.
//
// A signal handler is global by nature: this is, with the thread pool, the one place of csrc with
// mutable global state.
#pragma once

#include <cstddef>
#include <memory>

namespace lowrank {

class SigbusGuard {
 public:
  // Guards the mapping [data, data + bytes) until destroyed; destroy it before the range is
  // unmapped.
  SigbusGuard(void* data, size_t bytes);
  ~SigbusGuard();
  SigbusGuard(const SigbusGuard&) = delete;
  SigbusGuard& operator=(const SigbusGuard&) = delete;

  // Whether a page of the range was lost since it was registered.
  bool damaged() const;

 private:
  struct Range;
  friend struct SigbusHandler;
  Range* range_;
};

}  // namespace lowrank

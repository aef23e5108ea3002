// What a thread's arithmetic does with denormal numbers while a scope lasts: the pool's work flushes them to zero, which is faster;
// V8's must not, nor what has to give the bytes of another program.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lowrank {

class DenormalScope {
 public:
  DenormalScope(const DenormalScope&) = delete;
  DenormalScope& operator=(const DenormalScope&) = delete;

 protected:
#if defined(__x86_64__)
  explicit DenormalScope(bool flush) : saved_(_mm_getcsr()) { set(flush ? saved_ | kFlush : saved_ & ~kFlush); }
  ~DenormalScope() { set(saved_); }

 private:
  // Results and operands.
  static constexpr unsigned kFlush = 0x8040;
  static void set(unsigned mode) {
    asm volatile("" ::: "memory");  // what is computed on one side must not be moved to the other
    _mm_setcsr(mode);
    asm volatile("" ::: "memory");
  }
  unsigned saved_;
#elif defined(__aarch64__)
  explicit DenormalScope(bool flush) {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    set(flush ? saved_ | kFlush : saved_ & ~kFlush);
  }
  ~DenormalScope() { set(saved_); }

 private:
  static constexpr uint64_t kFlush = uint64_t{1} << 24;
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
  uint64_t saved_;
#else
  explicit DenormalScope(bool) {}
  ~DenormalScope() = default;
#endif
};

struct FlushDenormals : DenormalScope {
  FlushDenormals() : DenormalScope(true) {}
};
struct KeepDenormals : DenormalScope {
  KeepDenormals() : DenormalScope(false) {}
};

}  // namespace lowrank

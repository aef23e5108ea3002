// Memory that the heap keeps though it has been freed.
#pragma once

#if defined(__linux__)
#include <malloc.h>
#endif

namespace lowrank {

// Gives it back to the system, where the C library knows how. Building a tokenizer alone leaves tens of MiB of it to its thread.
inline void trim_heap() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace lowrank

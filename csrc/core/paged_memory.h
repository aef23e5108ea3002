// Memory of which a bounded part is resident: ordinary memory, or, where there is to be more of it than the window that may stay, a mapped
// file that was unlinked when it was made. Who walks through it fetches ahead what comes next and gives back what was used; a part at the
// beginning stays. Optimizers' states lie in it, and the inputs of blocks that are parked until the backward.
#pragma once

#include <string>

#include "core/buffer.h"

namespace lowrank {

// The smallest window that can be asked for.
constexpr size_t kSmallestWindow = size_t{4} << 20;

class PagedMemory {
 public:
  PagedMemory() = default;
  ~PagedMemory() { reset(); }
  PagedMemory(const PagedMemory&) = delete;
  PagedMemory& operator=(const PagedMemory&) = delete;

  // `bytes` zeroed bytes in the place of what was there. A file is made in `folder` where they are more than `window`; all its blocks are
  // reserved then, and kIoError says how many bytes it was to have for `what` where the disk has no room for them.
  Status allocate(size_t bytes, size_t window, const std::string& folder, const char* what);
  void reset();

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool paged() const { return file_ >= 0; }
  // Of the file, how much may be in use at a time; fetching ahead needs as much again.
  size_t stretch() const { return stretch_; }

  // Has [begin, end) read from the disk meanwhile.
  void prefetch(size_t begin, size_t end) const;
  // Maps the pages of [begin, end), which are about to be written, at once: cheaper than at their first touch.
  void populate(size_t begin, size_t end) const;
  // Gives back the pages of [begin, end) beyond the part that stays, all but the last where it goes on beyond `end`.
  void release(size_t begin, size_t end) const;

 private:
  Status map_file(const std::string& folder, const char* what);
  void advise(size_t begin, size_t end, int advice) const;

  Buffer memory_;
  int file_ = -1;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0, resident_ = 0, stretch_ = 0;
};

}  // namespace lowrank

// Where an optimizer's states lie: ordinary memory, or, where they are larger than the window that may stay resident, a mapped file
// that was unlinked when it was made. The states of a file are walked through from the beginning to the end in each update: what comes
// next is fetched ahead, and what was used is given back, except for a part at the beginning that stays.
#pragma once

#include <string>

#include "core/buffer.h"

namespace lowrank {

// The smallest window that can be asked for.
constexpr size_t kSmallestWindow = size_t{4} << 20;

class StateMemory {
 public:
  StateMemory() = default;
  ~StateMemory();
  StateMemory(const StateMemory&) = delete;
  StateMemory& operator=(const StateMemory&) = delete;

  // `bytes` zeroed bytes. A file is made in `folder` where they are more than `window`; all its blocks are reserved then, and
  // kIoError says how many bytes it was to have where the disk has no room for them.
  Status allocate(size_t bytes, size_t window, const std::string& folder);

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool paged() const { return file_ >= 0; }
  // Of the file, how much may be in use at a time; fetching ahead needs as much again.
  size_t stretch() const { return stretch_; }

  void prefetch(size_t begin, size_t end) const;
  // Gives back the pages of [begin, end) beyond the part that stays, all but the last where it goes on beyond `end`.
  void release(size_t begin, size_t end) const;

 private:
  Status map_file(const std::string& folder);

  Buffer memory_;
  int file_ = -1;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0, resident_ = 0, stretch_ = 0;
};

}  // namespace lowrank

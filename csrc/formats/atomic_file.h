// A file that appears under its name only when it is whole: written beside it under a temporary
// name, flushed to the disk, renamed.
#pragma once

#include <cstddef>
#include <string>

#include "core/status.h"

namespace lowrank {

// Every error is IO_ERROR and names the file. Unless commit() succeeded, the destructor removes the
// temporary file, and what was at `path` before is untouched.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path) : path_(std::move(path)) {}
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Creates `<path>.tmp-<process id>-<number>`.
  Status open();
  Status write(const void* data, size_t bytes);
  // fsync, rename, fsync of the folder. Where only the last of these fails the new file is in
  // place, but may not outlive a loss of power.
  Status commit();

 private:
  Status fail(const char* action, const std::string& path) const;
  Status sync_folder() const;

  std::string path_;
  std::string temporary_;  // empty: there is none to remove
  int descriptor_ = -1;
};

}  // namespace lowrank

// A regular file mapped read-only. Nothing is read before it is touched, so a file may be larger
// than memory. The pages belong to the page cache; the file may be changed by others at any time,
// which check_unchanged() tells.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "formats/sigbus_guard.h"

namespace lowrank {

class MappedFile {
 public:
  // FILE_NOT_FOUND, or IO_ERROR where `path` is a folder, pipe or device, or cannot be opened or
  // mapped. Never blocks on a pipe. An empty file maps to size 0.
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const unsigned char* data() const { return static_cast<const unsigned char*>(data_); }
  size_t size() const { return size_; }

  // IO_ERROR where the file was written to or truncated since it was opened. A file that was
  // replaced under its name (as every careful writer does) or deleted is unchanged: the mapping
  // keeps the old one.
  Status check_unchanged() const;

  // Gives back the resident pages that lie wholly inside [begin, end); they are read again when
  // touched again.
  void release(size_t begin, size_t end) const;

 private:
  MappedFile(std::string path, int descriptor, const struct stat& status);
  Status map();

  std::string path_;
  int descriptor_;  // kept open: check_unchanged() must see this very inode, whatever its name
                    // leads to by then
  size_t size_;
  int64_t modified_;  // nanoseconds
  void* data_ = nullptr;
  std::unique_ptr<SigbusGuard> guard_;
};

// What the format readers walk over: bytes, and the mapping they lie in, if they do.
struct FileBytes {
  const unsigned char* data = nullptr;
  size_t size = 0;
  const MappedFile* mapping = nullptr;

  // Called with what is read and not needed again, so that walking a large header does not fill
  // memory.
  void release(size_t begin, size_t end) const {
    if (mapping != nullptr) mapping->release(begin, end);
  }
};

}  // namespace lowrank

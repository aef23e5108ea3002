#include "formats/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "formats/text.h"

namespace lowrank {
namespace {

constexpr size_t kLargestWrite =
    size_t{1} << 30;  // Linux writes at most 2 GiB - 4 KiB at a time, macOS fails beyond 2 GiB
constexpr int kAttempts =
    100;  // at names that are taken by leftovers of an earlier process of our number

std::string next_temporary(const std::string& path) {
  static std::atomic<unsigned> number{0};
  return path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(number.fetch_add(1));
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

Status AtomicFile::fail(const char* action, const std::string& path) const {
  return error(Code::kIoError, "cannot %s %s: %s", action, path.c_str(), std::strerror(errno));
}

Status AtomicFile::open() {
  if (path_.find('\0') != std::string::npos) {
    return error(Code::kInvalidOption, "path %s holds a NUL character", quoted(path_).c_str());
  }
  for (int attempt = 0; attempt < kAttempts && descriptor_ < 0; ++attempt) {
    temporary_ = next_temporary(path_);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST && errno != EINTR) break;
  }
  if (descriptor_ >= 0) return Status();
  const Status status = fail("create", temporary_);
  temporary_.clear();
  return status;
}

Status AtomicFile::write(const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, next, std::min(bytes, kLargestWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fail("write", temporary_);
    if (written == 0) {
      errno = ENOSPC;  // cannot happen on a regular file; never turn in circles
      return fail("write", temporary_);
    }
    next += written;
    bytes -= static_cast<size_t>(written);
  }
  return Status();
}

Status AtomicFile::commit() {
  if (fsync(descriptor_) != 0) return fail("flush", temporary_);
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (close(descriptor) != 0 && errno != EINTR)
    return fail("close", temporary_);  // EINTR: closed all the same
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0)
    return fail("rename the temporary file to", path_);
  temporary_.clear();
  return sync_folder();
}

// Makes the rename itself outlive a loss of power.
Status AtomicFile::sync_folder() const {
  const std::string folder = folder_of(path_);
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return fail("open", folder);
  const bool failed =
      fsync(descriptor) != 0 && errno != EINVAL;  // EINVAL: this file system flushes no folders
  const Status status = failed ? fail("flush", folder) : Status();
  close(descriptor);
  return status;
}

}  // namespace lowrank

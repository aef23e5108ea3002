#include "core/paged_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/checked.h"

namespace lowrank {
namespace {

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// A new file without a name; negative, with errno, where there can be none.
int unnamed_file(const std::string& folder) {
#if defined(O_TMPFILE)
  const int file = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0) return file;
#endif
  const std::string pattern = folder + "/.lowrank-paged-XXXXXX";
  std::vector<char> path(pattern.c_str(), pattern.c_str() + pattern.size() + 1);
  const int named = mkstemp(path.data());
  if (named < 0) return named;
  unlink(path.data());
  fcntl(named, F_SETFD, FD_CLOEXEC);
  return named;
}

// 0, or the error's number. Zeros are written where the file system cannot reserve, so that a full disk is met now.
int reserve(int file, size_t bytes) {
#if defined(__linux__)
  return posix_fallocate(file, 0, static_cast<off_t>(bytes));
#else
  const std::vector<char> zeros(size_t{1} << 20);
  for (size_t at = 0; at < bytes;) {
    const ssize_t written = pwrite(file, zeros.data(), std::min(zeros.size(), bytes - at), static_cast<off_t>(at));
    if (written < 0 && errno != EINTR) return errno;
    if (written > 0) at += static_cast<size_t>(written);
  }
  return 0;
#endif
}

}  // namespace

void PagedMemory::reset() {
  if (paged() && data_ != nullptr) munmap(data_, bytes_);
  if (paged()) close(file_);
  memory_.reset();
  file_ = -1;
  data_ = nullptr;
  bytes_ = resident_ = stretch_ = 0;
}

Status PagedMemory::allocate(size_t bytes, size_t window, const std::string& folder, const char* what) {
  reset();
  bytes_ = bytes;
  if (bytes > window) {
    // Two stretches are in memory at a time: the one in use and the one that is fetched. What is left of the window stays.
    stretch_ = window / 8;
    resident_ = window - 2 * stretch_;
    return map_file(folder, what);
  }
  LR_RETURN_IF_ERROR(memory_.allocate(bytes, what));
  data_ = memory_.as<unsigned char>();
  return {};
}

Status PagedMemory::map_file(const std::string& folder, const char* what) {
  file_ = unnamed_file(folder);
  if (file_ < 0) {
    return error(Code::kIoError, "%s: no file for %s could be made here: %s", folder.c_str(), what, std::strerror(errno));
  }
  if (const int failure = reserve(file_, bytes_); failure != 0) {
    return error(Code::kIoError, "%s: %zu bytes for %s could not be had here: %s", folder.c_str(), bytes_, what,
                 std::strerror(failure));
  }
  void* const mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (mapped == MAP_FAILED) {
    return error(Code::kOutOfMemory, "the file of %s, %zu bytes, could not be mapped: %s", what, bytes_, std::strerror(errno));
  }
  data_ = static_cast<unsigned char*>(mapped);
  return {};
}

void PagedMemory::advise(size_t begin, size_t end, int advice) const {
  if (!paged() || begin >= end) return;
  const size_t page = page_size(), first = begin / page * page;
  madvise(data_ + first, std::min(round_up(end, page), bytes_) - first, advice);
}

void PagedMemory::prefetch(size_t begin, size_t end) const { advise(begin, end, MADV_WILLNEED); }

void PagedMemory::populate([[maybe_unused]] size_t begin, [[maybe_unused]] size_t end) const {
#if defined(MADV_POPULATE_WRITE)
  advise(begin, end, MADV_POPULATE_WRITE);  // where the system has none, pages fault one by one
#endif
}

void PagedMemory::release(size_t begin, size_t end) const {
  if (!paged()) return;
  const size_t page = page_size();
  const size_t first = std::max(begin, resident_) / page * page;
  const size_t last = end == bytes_ ? bytes_ : end / page * page;
  if (first >= last) return;
  // The file keeps what was written, and the system writes it to the disk when it wants to: asked for here, it took a quarter of an update.
  madvise(data_ + first, last - first, MADV_DONTNEED);
}

}  // namespace lowrank

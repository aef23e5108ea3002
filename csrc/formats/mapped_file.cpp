#include "formats/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/checked.h"
#include "formats/text.h"

namespace lowrank {
namespace {

int64_t modification_time(const struct stat& status) {
#ifdef __APPLE__
  const struct timespec& time = status.st_mtimespec;
#else
  const struct timespec& time = status.st_mtim;
#endif
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

MappedFile::MappedFile(std::string path, int descriptor, const struct stat& status)
    : path_(std::move(path)),
      descriptor_(descriptor),
      size_(static_cast<size_t>(status.st_size)),
      modified_(modification_time(status)) {}

MappedFile::~MappedFile() {
  guard_.reset();
  if (data_ != nullptr) munmap(data_, size_);
  close(descriptor_);
}

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) {
    return error(Code::kInvalidOption, "path %s holds a NUL character", quoted(path).c_str());
  }
  // O_NONBLOCK: opening a pipe must not wait for a writer. It changes nothing for regular files.
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) {
    const Code code = errno == ENOENT || errno == ENOTDIR ? Code::kFileNotFound : Code::kIoError;
    return error(code, "cannot open %s: %s", path.c_str(), std::strerror(errno));
  }
  struct stat status;
  if (fstat(descriptor, &status) != 0) {
    const int reason = errno;
    close(descriptor);
    return error(Code::kIoError, "cannot examine %s: %s", path.c_str(), std::strerror(reason));
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor);
    return error(Code::kIoError, "%s is %s; expected a regular file", path.c_str(),
                 kind_of(status.st_mode));
  }
  const std::shared_ptr<MappedFile> file(new MappedFile(path, descriptor, status));
  LR_RETURN_IF_ERROR(file->map());
  return std::shared_ptr<const MappedFile>(file);
}

Status MappedFile::map() {
  if (size_ == 0) return Status();  // mmap refuses length 0
  void* const data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
  if (data == MAP_FAILED) {
    const Code code = errno == ENOMEM ? Code::kOutOfMemory : Code::kIoError;
    return error(code, "cannot map %s (%zu bytes): %s", path_.c_str(), size_, std::strerror(errno));
  }
  data_ = data;
  guard_ = std::make_unique<SigbusGuard>(data, round_up(size_, page_size()));
  return Status();
}

Status MappedFile::check_unchanged() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) {
    return error(Code::kIoError, "cannot examine %s: %s", path_.c_str(), std::strerror(errno));
  }
  if (static_cast<size_t>(status.st_size) != size_) {
    return error(Code::kIoError,
                 "%s changed while it was open: it has %lld bytes now; expected %zu", path_.c_str(),
                 static_cast<long long>(status.st_size), size_);
  }
  if (guard_ != nullptr && guard_->damaged()) {
    return error(
        Code::kIoError,
        "a part of %s could not be read: it was truncated while it was open, or its disk failed",
        path_.c_str());
  }
  if (modification_time(status) != modified_) {
    return error(Code::kIoError, "%s was written to while it was open; open it again",
                 path_.c_str());
  }
  return Status();
}

void MappedFile::release(size_t begin, size_t end) const {
  const size_t page = page_size();
  const size_t first = round_up(begin, page);
  const size_t last = (end < size_ ? end : size_) / page * page;
  if (first < last) madvise(static_cast<char*>(data_) + first, last - first, MADV_DONTNEED);
}

}  // namespace lowrank

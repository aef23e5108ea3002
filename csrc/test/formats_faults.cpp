// What happens to files when the system fails us: the nth system call of a save or an open fails, n
// = 1, 2, … until a run meets no fault; a mapped file is truncated under its reader. System calls
// are interposed by this program's own definitions.
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "formats/safetensors_writer.h"
#include "formats/tensor_file.h"

namespace {

int calls_until_fault = 0;  // 0: no fault is armed
bool fault_met = false;
int fault_errno = EIO;
bool short_writes = false;

bool fails_now() {
  if (calls_until_fault == 0 || --calls_until_fault > 0) return false;
  fault_met = true;
  errno = fault_errno;
  return true;
}

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

}  // namespace

extern "C" {
int open(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const int mode = (flags & O_CREAT) != 0 ? va_arg(args, int) : 0;
  va_end(args);
  return fails_now() ? -1 : static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
int fstat(int descriptor, struct stat* status) {
  return fails_now() ? -1 : fstatat(descriptor, "", status, AT_EMPTY_PATH);
}
ssize_t write(int descriptor, const void* data, size_t bytes) {
  if (fails_now()) return -1;
  return syscall(SYS_write, descriptor, data, short_writes && bytes > 1 ? bytes / 2 : bytes);
}
int fsync(int descriptor) {
  return fails_now() ? -1 : static_cast<int>(syscall(SYS_fsync, descriptor));
}
int close(int descriptor) {
  const int result = static_cast<int>(syscall(SYS_close, descriptor));
  return fails_now() ? -1 : result;
}
int rename(const char* from, const char* to) {
  return fails_now() ? -1
                     : static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
}

namespace {

using namespace lowrank;

std::string folder;

size_t files_in_folder() {
  size_t count = 0;
  DIR* const opened = opendir(folder.c_str());
  while (const dirent* entry = readdir(opened)) count += entry->d_name[0] != '.';
  closedir(opened);
  return count;
}

Status save(const std::string& path, float value) {
  const float data[] = {value, value + 1};
  return write_safetensors(path, {{"w", DType::kF32, {2}, data, sizeof data}}, {{"format", "pt"}});
}

// The first element of the file's one tensor.
float saved(const std::string& path) {
  const auto file = TensorFile::open(path);
  CHECK(file.ok());
  float value;
  std::memcpy(&value, file.value()->find("w")->data, sizeof value);
  return value;
}

void saves_are_all_or_nothing() {
  const std::string path = folder + "/model.safetensors";
  CHECK(save(path, 1).ok());
  for (const int reason : {EIO, ENOSPC, EMFILE, EROFS}) {
    for (int nth = 1;; ++nth) {
      CHECK(nth < 100);
      CHECK(save(path, 1).ok());
      fault_errno = reason;
      fault_met = false;
      calls_until_fault = nth;
      const Status status = save(path, 2);
      calls_until_fault = 0;
      if (!fault_met) {
        CHECK(nth > 6);
        CHECK(status.ok());
        CHECK(saved(path) == 2);
        break;
      }
      CHECK(files_in_folder() == 1);
      const float now = saved(path);
      CHECK(now == 1 || now == 2);
      // The close of a flushed folder is the one call whose failure means nothing.
      if (status.ok()) {
        CHECK(now == 2);
      } else {
        CHECK(status.code() == Code::kIoError);
        CHECK(status.message().find(folder) != std::string::npos);
        CHECK(status.message().find(std::strerror(reason)) != std::string::npos);
      }
    }
  }
}

void interrupted_and_short_writes_go_on() {
  const std::string path = folder + "/model.safetensors";
  for (int nth = 2; nth < 5; ++nth) {
    fault_errno = EINTR;
    calls_until_fault = nth;
    CHECK(save(path, 3).ok());
    calls_until_fault = 0;
  }
  short_writes = true;
  CHECK(save(path, 4).ok());
  short_writes = false;
  CHECK(saved(path) == 4);
}

void opening_names_the_file() {
  const std::string path = folder + "/model.safetensors";
  for (int nth = 1;; ++nth) {
    fault_errno = EMFILE;
    fault_met = false;
    calls_until_fault = nth;
    const auto file = TensorFile::open(path);
    calls_until_fault = 0;
    if (!fault_met) break;
    CHECK(!file.ok());
    CHECK(file.status().code() == Code::kIoError);
    CHECK(file.status().message().find(path) != std::string::npos);
  }
}

// ── SIGBUS ──
sigjmp_buf previous_called;

void previous_handler(int, siginfo_t*, void*) { siglongjmp(previous_called, 1); }

void install_previous_handler() {
  struct sigaction action = {};
  action.sa_sigaction = previous_handler;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

void truncation_is_an_error_and_no_crash() {
  const std::string path = folder + "/large.safetensors";
  const std::vector<float> data(100000, 5.0f);
  CHECK(write_safetensors(
            path, {{"w", DType::kF32, {data.size()}, data.data(), data.size() * sizeof(float)}}, {})
            .ok());
  const auto opened = TensorFile::open(path);
  const auto other = TensorFile::open(folder + "/model.safetensors");
  CHECK(opened.ok() && other.ok());
  const TensorFile& file = *opened.value();
  CHECK(file.check_unchanged().ok());
  CHECK(truncate(path.c_str(), 200000) == 0);
  double sum = 0;
  for (size_t i = 0; i < data.size(); ++i) {
    float value;
    std::memcpy(&value, file.find("w")->data + i * sizeof value, sizeof value);
    CHECK(value == 5.0f || value == 0.0f);
    sum += value;
  }
  CHECK(sum > 0 && sum < 5.0 * 100000);
  CHECK(file.check_unchanged().code() == Code::kIoError);
  CHECK(other.value()->check_unchanged().ok());
}

void other_faults_reach_the_previous_handler() {
  const std::string path = folder + "/foreign";
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  CHECK(ftruncate(descriptor, 8192) == 0);
  const volatile char* const data =
      static_cast<const char*>(mmap(nullptr, 8192, PROT_READ, MAP_SHARED, descriptor, 0));
  CHECK(ftruncate(descriptor, 0) == 0);
  close(descriptor);
  volatile bool reached = false;
  if (sigsetjmp(previous_called, 1) == 0) {
    static_cast<void>(data[5000]);
    CHECK(false);
  } else {
    reached = true;
  }
  CHECK(reached);
  // One that was sent has no address.
  reached = false;
  if (sigsetjmp(previous_called, 1) == 0) {
    raise(SIGBUS);
  } else {
    reached = true;
  }
  CHECK(reached);
}

}  // namespace

int main() {
  char name[] = "/tmp/lowrank-faults-XXXXXX";
  CHECK(mkdtemp(name) != nullptr);
  folder = name;
  install_previous_handler();  // before the first file is mapped
  saves_are_all_or_nothing();
  interrupted_and_short_writes_go_on();
  opening_names_the_file();
  truncation_is_an_error_and_no_crash();
  other_faults_reach_the_previous_handler();
  for (const char* file : {"/model.safetensors", "/large.safetensors", "/foreign"})
    unlink((folder + file).c_str());
  CHECK(rmdir(folder.c_str()) == 0);
  std::puts("ok");
  return 0;
}

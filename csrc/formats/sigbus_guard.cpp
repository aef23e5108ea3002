#include "formats/sigbus_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace lowrank {

// A node of a list that the handler walks without a lock. Nodes are reused but never freed, since a
// handler on another thread may be reading one at any moment.
struct SigbusGuard::Range {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};  // 0: the node is free
  std::atomic<bool> damaged{false};
  Range* next = nullptr;  // set before the node is published

  // The end of the range where `address` lies inside, else 0. Reads `begin` twice, so that a node
  // that is being reused for another range meanwhile does not match by accident.
  uintptr_t end_if_holding(uintptr_t address) const {
    const uintptr_t first = begin.load();
    const uintptr_t last = end.load();
    const bool stable = begin.load() == first;
    return stable && address >= first && address < last ? last : 0;
  }
};

struct SigbusHandler {
  using Range = SigbusGuard::Range;

  inline static std::atomic<Range*> ranges{nullptr};
  inline static std::mutex mutex;  // guards the adding and removing of ranges
  inline static std::once_flag installed;
  inline static uintptr_t page_size = 4096;
  inline static struct sigaction previous = {};

  static void install() {
    page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    sigaction(SIGBUS, nullptr, &previous);  // known before a signal can arrive
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, nullptr);
  }

  static void handle(int signal, siginfo_t* info, void* context) {
    const int saved_errno = errno;
    const bool from_kernel = info->si_code > 0;  // else sent by kill(), and there is no address
    if (from_kernel && replace_lost_pages(reinterpret_cast<uintptr_t>(info->si_addr))) {
      errno = saved_errno;
      return;
    }
    errno = saved_errno;
    call_previous(signal, info, context);
  }

  // mmap is a plain system call where we run, and takes no lock of the C library.
  static bool replace_lost_pages(uintptr_t address) {
    for (Range* range = ranges.load(); range != nullptr; range = range->next) {
      const uintptr_t end = range->end_if_holding(address);
      if (end == 0) continue;
      const uintptr_t page = address & ~(page_size - 1);
      void* const wanted = reinterpret_cast<void*>(page);
      if (mmap(wanted, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
          wanted)
        return false;
      range->damaged.store(true);
      return true;
    }
    return false;
  }

  static void call_previous(int signal, siginfo_t* info, void* context) {
    if (previous.sa_flags & SA_SIGINFO) {
      previous.sa_sigaction(signal, info, context);
    } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
      if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return;
      // The fault happens again on return and then meets the default action; a sent signal must be
      // sent again.
      sigaction(SIGBUS, &previous, nullptr);
      if (info->si_code <= 0) raise(signal);
    } else {
      previous.sa_handler(signal);
    }
  }
};

SigbusGuard::SigbusGuard(void* data, size_t bytes) {
  std::call_once(SigbusHandler::installed, SigbusHandler::install);
  const std::lock_guard<std::mutex> lock(SigbusHandler::mutex);
  Range* range = SigbusHandler::ranges.load();
  while (range != nullptr && range->end.load() != 0) range = range->next;
  if (range == nullptr) {
    range = new Range;
    range->next = SigbusHandler::ranges.load();
    SigbusHandler::ranges.store(range);
  }
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  range->damaged.store(false);
  range->begin.store(begin);
  range->end.store(begin + bytes);
  range_ = range;
}

SigbusGuard::~SigbusGuard() {
  const std::lock_guard<std::mutex> lock(SigbusHandler::mutex);
  range_->end.store(0);
  range_->begin.store(0);
}

bool SigbusGuard::damaged() const { return range_->damaged.load(); }

}  // namespace lowrank

// Workers spin while regions follow one another (a fork/join of about a microsecond) and park on a
// condition variable when none has come for a while (a wake-up from there costs 50 to 70 µs).
#include "core/thread_pool.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/denormals.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lowrank {
namespace {

constexpr int kSpins = 20000;      // about 0.5 ms: longer than any gap inside a step
constexpr int kPoliteSpins = 2000; // then the core is offered to others: on a busy machine what is waited for needs it

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whole cores that the cgroup's quota allows; 0 where there is none.
size_t quota_cores() {
#if defined(__linux__)
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "re");
  if (file == nullptr) return 0;
  char quota[32] = {};
  double period = 0;
  const int fields = std::fscanf(file, "%31s %lf", quota, &period);
  std::fclose(file);
  if (fields != 2 || std::strcmp(quota, "max") == 0 || period <= 0) return 0;
  return std::max<size_t>(1, static_cast<size_t>(std::strtod(quota, nullptr) / period));
#else
  return 0;
#endif
}

size_t physical_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return std::thread::hardware_concurrency();
  std::vector<std::string> cores;  // "package:core" of each allowed processor; hyper-threads share one
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::string key;
    for (const char* part : {"physical_package_id", "core_id"}) {
      const std::string path = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + part;
      int id = cpu;
      if (std::FILE* file = std::fopen(path.c_str(), "re")) {
        if (std::fscanf(file, "%d", &id) != 1) id = cpu;
        std::fclose(file);
      }
      key += std::to_string(id) + ":";
    }
    cores.push_back(key);
  }
  std::sort(cores.begin(), cores.end());
  return static_cast<size_t>(std::unique(cores.begin(), cores.end()) - cores.begin());
#else
  return std::thread::hardware_concurrency();
#endif
}

}  // namespace

size_t ThreadPool::default_threads() {
  if (const char* text = std::getenv("LOWRANK_THREADS")) {
    const long threads = std::strtol(text, nullptr, 10);
    if (threads >= 1 && threads <= 1024) return static_cast<size_t>(threads);
  }
  const size_t cores = std::max<size_t>(1, physical_cores());
  const size_t quota = quota_cores();
  return quota == 0 ? cores : std::min(cores, quota);
}

ThreadPool::ThreadPool(size_t threads) {
  if (threads == 0) threads = default_threads();
  scratch_.resize(threads);
  workers_.reserve(threads - 1);
  for (size_t worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] { worker_loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

Status ThreadPool::reserve_scratch(size_t bytes) {
  for (Buffer& buffer : scratch_) LR_RETURN_IF_ERROR(buffer.reserve(bytes, "scratch of a worker thread"));
  return {};
}

// Takes the next chunk of the region. Whoever comes late, even by a whole region, finds either nothing or a chunk of the present one:
// the exchange that takes it also makes that region's job_ and chunks_ visible.
bool ThreadPool::claim(size_t* chunk) {
  size_t unclaimed = unclaimed_.load(std::memory_order_relaxed);
  while (unclaimed > 0) {
    if (unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acquire,
                                         std::memory_order_relaxed)) {
      *chunk = chunks_ - unclaimed;
      return true;
    }
  }
  return false;
}

size_t ThreadPool::run_chunks(size_t worker) {
  size_t count = 0;
  for (size_t chunk; claim(&chunk); ++count) (*job_)(chunk, worker);
  return count;
}

void ThreadPool::parallel(size_t chunks, ChunkFunction f) {
  if (chunks == 0) return;
  const FlushDenormals flush;
  if (workers_.empty() || chunks == 1) {
    for (size_t chunk = 0; chunk < chunks; ++chunk) f(chunk, 0);
    return;
  }
  job_ = &f;
  chunks_ = chunks;
  finished_.store(0, std::memory_order_relaxed);
  unclaimed_.store(chunks, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  const size_t others = chunks - run_chunks(0);
  for (int spins = 0; finished_.load(std::memory_order_acquire) != others; ++spins) {
    if (spins < kPoliteSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::worker_loop(size_t worker) {
  const FlushDenormals flush;
  for (int spins = 0; !stop_.load(std::memory_order_relaxed); ++spins) {
    if (const size_t count = run_chunks(worker); count > 0) {
      finished_.fetch_add(count, std::memory_order_release);
      spins = 0;
    } else if (spins < kSpins) {
      pause();
    } else {
      park();
      spins = 0;
    }
  }
}

void ThreadPool::park() {
  std::unique_lock lock(mutex_);
  parked_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [this] { return unclaimed_.load(std::memory_order_seq_cst) > 0 || stop_.load(); });
  parked_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace lowrank

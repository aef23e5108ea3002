// A fork/join pool. Chunks, not threads, define the order of every reduction, so a result has the same
// bits for any number of threads: callers split work into chunks whose bounds do not depend on it.
// A region waits for its chunks, not for the workers: one that has no core at the moment, because another
// process has it, takes none, and the others do its share.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/buffer.h"
#include "core/status.h"

namespace lowrank {

// A non-owning reference to a callable; valid while the callable lives.
class ChunkFunction {
 public:
  template <class F>
  ChunkFunction(const F& f)  // NOLINT(google-explicit-constructor)
      : object_(&f), call_([](const void* object, size_t chunk, size_t worker) {
          (*static_cast<const F*>(object))(chunk, worker);
        }) {}
  void operator()(size_t chunk, size_t worker) const { call_(object_, chunk, worker); }

 private:
  const void* object_;
  void (*call_)(const void*, size_t, size_t);
};

class ThreadPool {
 public:
  // `threads` counts the caller too; 0 means default_threads().
  explicit ThreadPool(size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // LOWRANK_THREADS where set, else physical cores within the cgroup's quota and the affinity mask.
  static size_t default_threads();

  size_t threads() const { return workers_.size() + 1; }

  // Calls f(chunk, worker) for every chunk in [0, chunks), each once; the caller takes a share as
  // worker 0. Returns when all are done. Denormals are flushed to zero inside. Not reentrant: one caller at a time.
  void parallel(size_t chunks, ChunkFunction f);

  // Scratch of worker `worker`, at least `bytes`, 64-byte aligned; kept and reused between calls. Each op
  // reserves what its workers need before it forks, so that a failed allocation is a Status.
  Status reserve_scratch(size_t bytes);
  template <class T>
  T* scratch(size_t worker) const { return scratch_[worker].template as<T>(); }

  // Memory of the op that calls, kept and reused between calls: one caller at a time, whichever thread it is on.
  enum CallerBuffer : size_t { kStackedLora, kDroppedRows, kLoraGradient, kCallerBuffers };
  Buffer& caller_buffer(CallerBuffer buffer) { return caller_buffers_[buffer]; }

 private:
  void worker_loop(size_t worker);
  bool claim(size_t* chunk);
  size_t run_chunks(size_t worker);
  void park();

  std::vector<std::thread> workers_;
  std::vector<Buffer> scratch_;
  Buffer caller_buffers_[kCallerBuffers];
  // The present region: written by the caller between regions, read only by whoever holds one of its chunks, which keeps the region
  // from ending.
  const ChunkFunction* job_ = nullptr;
  size_t chunks_ = 0;
  alignas(128) std::atomic<size_t> unclaimed_{0};  // chunks that nobody has taken yet
  std::atomic<bool> stop_{false};
  alignas(128) std::atomic<size_t> finished_{0};  // chunks that workers have run
  std::mutex mutex_;                  // guards parking only
  std::condition_variable wake_;
  std::atomic<size_t> parked_{0};
};

}  // namespace lowrank

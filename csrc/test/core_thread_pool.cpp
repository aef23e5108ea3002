// The pool under what it has to bear: regions of any size one after another, more threads than cores,
// threads that are taken off their core in the middle, parking, and ends of pools.
//   core_thread_pool [seed]
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "core/thread_pool.h"

namespace lowrank::test {
namespace {

constexpr size_t kMaxChunks = 300;

int failures = 0;

void fail(const char* what, size_t a, size_t b) {
  if (++failures < 10) std::printf("%s: %zu, %zu\n", what, a, b);
}

struct Work {
  // Written without atomics: a region's end must make them visible to the caller, its start to the workers.
  std::vector<size_t> runs = std::vector<size_t>(kMaxChunks);
  std::vector<size_t> values = std::vector<size_t>(kMaxChunks);
};

// One region: every chunk is run once, by a worker that there is, reads what the region before left and writes what
// the next one reads.
void run_region(ThreadPool& pool, size_t chunks, size_t region, std::mt19937_64& random, Work* work) {
  const size_t slow = random() % 64 == 0 ? random() % chunks : chunks;  // a chunk whose thread loses its core
  std::fill(work->runs.begin(), work->runs.end(), 0);
  // On the stack: a worker that came late to a region must not call what is gone.
  const std::unique_ptr<size_t> offset = std::make_unique<size_t>(region);
  pool.parallel(chunks, [&](size_t chunk, size_t worker) {
    if (worker >= pool.threads()) fail("a worker that there is not", worker, pool.threads());
    if (chunk == slow) std::this_thread::yield();
    ++work->runs[chunk];
    work->values[chunk] += *offset + chunk;
  });
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    if (work->runs[chunk] != 1) fail("runs of a chunk", chunk, work->runs[chunk]);
  }
}

void test_regions(size_t threads, size_t regions, uint64_t seed) {
  std::mt19937_64 random(seed + threads);
  ThreadPool pool(threads);
  Work work;
  std::vector<size_t> expected(kMaxChunks);
  for (size_t region = 0; region < regions; ++region) {
    const size_t chunks = 1 + random() % (random() % 4 == 0 ? kMaxChunks : 2 * threads + 1);
    run_region(pool, chunks, region, random, &work);
    for (size_t chunk = 0; chunk < chunks; ++chunk) expected[chunk] += region + chunk;
    // Long enough for workers to park, now and then.
    if (random() % 512 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (size_t chunk = 0; chunk < kMaxChunks; ++chunk) {
    if (work.values[chunk] != expected[chunk]) fail("sum of a chunk", chunk, work.values[chunk]);
  }
}

// While one worker is held up inside a chunk, the others do all the rest of the region.
void test_goes_on_beside_a_held_worker() {
  constexpr size_t kChunks = 64;
  ThreadPool pool(4);
  std::atomic<bool> held{false}, release{false};
  std::atomic<size_t> others{0};
  pool.parallel(kChunks, [&](size_t, size_t worker) {
    if (worker != 0 && !held.exchange(true)) {
      while (!release.load()) std::this_thread::yield();
      return;
    }
    if (++others == kChunks - 1) release.store(true);
    if (!held.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // let a worker come
  });
  const size_t expected = kChunks - (held.load() ? 1 : 0);
  if (others.load() != expected) fail("chunks run beside one that was held up", others.load(), expected);
}

void test_pools_end(uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t round = 0; round < 60; ++round) {
    ThreadPool pool(1 + random() % 6);
    std::atomic<size_t> count{0};
    const size_t regions = random() % 4;
    for (size_t region = 0; region < regions; ++region) pool.parallel(5, [&](size_t, size_t) { ++count; });
    if (count.load() != 5 * regions) fail("chunks of a pool's life", count.load(), 5 * regions);
    if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace
}  // namespace lowrank::test

int main(int argc, char** argv) {
  using namespace lowrank::test;
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  std::atomic<bool> stop{false};
  // Other work that wants the cores.
  std::vector<std::thread> busy;
  for (int i = 0; i < 2; ++i) busy.emplace_back([&] { while (!stop.load(std::memory_order_relaxed)) {} });
  for (size_t threads : {1, 2, 3, 8}) test_regions(threads, 3000, seed);
  test_goes_on_beside_a_held_worker();
  test_pools_end(seed);
  stop.store(true);
  for (std::thread& thread : busy) thread.join();
  if (failures == 0) std::printf("ok\n");
  else std::printf("%d failures with seed %llu\n", failures, static_cast<unsigned long long>(seed));
  return failures == 0 ? 0 : 1;
}

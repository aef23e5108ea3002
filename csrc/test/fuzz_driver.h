// A fuzzer in one header for programs that g++ builds, where there is no libFuzzer: each program
// defines LLVMFuzzerTestOneInput (so that libFuzzer can drive it too, with -DLOWRANK_LIBFUZZER) and
// a generator of files that are valid, nearly valid, or mangled.
//
//   fuzz_x CORPUS_FOLDER [--iterations N] [--seconds S] [--seed N] [--only ITERATION]
//
// First every file of the folder is replayed (those named valid-* must be accepted, those named
// refused-* must not), then inputs are generated. An input is a function of (seed, iteration)
// alone: what a failure prints is enough to repeat it, and the input itself is left in crash.bin.
// Fails on a sanitizer's report, an input that takes more than a second or 64 MiB of allocations,
// or a broken invariant.
#pragma once

#include <dirent.h>
#include <malloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

using Bytes = std::vector<uint8_t>;

inline constexpr double kMaxSeconds = 1;
inline constexpr size_t kMaxGrowth = size_t{64} << 20;

// Inputs that turned out valid. A generator that makes none tests little.
inline uint64_t accepted = 0;

// ── what is going on, for the report of a crash ──
inline Bytes current_input;
inline std::string current_name;

inline void report_input() {
  std::fprintf(stderr, "\nfuzz: failed on %s (%zu bytes, left in crash.bin)\n",
               current_name.c_str(), current_input.size());
  if (std::FILE* file = std::fopen("crash.bin", "wb")) {
    std::fwrite(current_input.data(), 1, current_input.size(), file);
    std::fclose(file);
  }
}

inline void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz: broken: %s\n", what);
  report_input();
  std::_Exit(1);
}

// ── allocations: live bytes and their peak, whatever the allocator keeps back ──
inline size_t live_bytes = 0, peak_bytes = 0;

inline void* counted_allocate(size_t bytes) {
  void* const memory = std::malloc(bytes);
  check(memory != nullptr, "out of memory");
  live_bytes += malloc_usable_size(memory);
  peak_bytes = std::max(peak_bytes, live_bytes);
  return memory;
}

inline void counted_free(void* memory) {
  if (memory != nullptr) live_bytes -= malloc_usable_size(memory);
  std::free(memory);
}

// ── random numbers: splitmix64 ──
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  size_t below(size_t bound) { return static_cast<size_t>(next() % bound); }
  bool one_in(size_t n) { return below(n) == 0; }
  template <class T, size_t N>
  const T& pick(const T (&choices)[N]) {
    return choices[below(N)];
  }

 private:
  uint64_t state_;
};

// Numbers at which arithmetic goes wrong, and small ones.
inline uint64_t evil_number(Random& random) {
  static constexpr uint64_t kEvil[] = {0,
                                       1,
                                       2,
                                       3,
                                       7,
                                       8,
                                       31,
                                       32,
                                       33,
                                       63,
                                       64,
                                       255,
                                       256,
                                       65535,
                                       65536,
                                       0x7fffffff,
                                       0x80000000,
                                       0xffffffff,
                                       0x100000000,
                                       uint64_t{1} << 53,
                                       (uint64_t{1} << 61) - 1,
                                       uint64_t{1} << 61,
                                       uint64_t{1} << 62,
                                       0x7fffffffffffffff,
                                       uint64_t{1} << 63,
                                       0xfffffffffffffff8,
                                       0xffffffffffffffff};
  const uint64_t number = random.pick(kEvil);
  return random.one_in(3) ? number + random.below(17) - 8 : number;
}

// Flips, overwrites, inserts, removes, copies and truncates a few times.
inline void mangle(Random& random, Bytes* bytes) {
  for (size_t times = 1 + random.below(4); times > 0 && !bytes->empty(); --times) {
    const size_t at = random.below(bytes->size());
    const auto place = bytes->begin() + static_cast<ptrdiff_t>(at);
    const size_t length = std::min<size_t>(1 + random.below(16), bytes->size() - at);
    switch (random.below(6)) {
      case 0: (*bytes)[at] ^= static_cast<uint8_t>(1u << random.below(8)); break;
      case 1: (*bytes)[at] = static_cast<uint8_t>(random.next()); break;
      case 2: bytes->insert(place, 1 + random.below(8), static_cast<uint8_t>(random.next())); break;
      case 3: bytes->erase(place, place + static_cast<ptrdiff_t>(length)); break;
      case 4: {
        const Bytes copy(place, place + static_cast<ptrdiff_t>(length));
        bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(random.below(bytes->size())),
                      copy.begin(), copy.end());
        break;
      }
      default: bytes->resize(at); break;
    }
  }
}

// ── running ──
inline void run_one(Bytes input, std::string name) {
  current_input = std::move(input);
  current_name = std::move(name);
  // A copy of exactly this size on the heap, so that a read beyond its end is seen.
  uint8_t* const exact =
      static_cast<uint8_t*>(std::malloc(std::max<size_t>(current_input.size(), 1)));
  if (!current_input.empty()) std::memcpy(exact, current_input.data(), current_input.size());
  peak_bytes = live_bytes;
  const size_t before = live_bytes;
  const auto start = std::chrono::steady_clock::now();
  LLVMFuzzerTestOneInput(exact, current_input.size());
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  check(seconds <= kMaxSeconds, "an input took more than a second");
  check(peak_bytes - before <= kMaxGrowth, "an input took more than 64 MiB of memory");
  std::free(exact);
}

inline Bytes read_file(const std::string& path) {
  Bytes bytes;
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return bytes;
  uint8_t chunk[65536];
  for (size_t count; (count = std::fread(chunk, 1, sizeof chunk, file)) > 0;)
    bytes.insert(bytes.end(), chunk, chunk + count);
  std::fclose(file);
  return bytes;
}

inline size_t replay(const std::string& folder) {
  std::vector<std::string> paths;
  DIR* const opened = opendir(folder.c_str());
  check(opened != nullptr, "the corpus folder cannot be opened");
  while (const dirent* entry = readdir(opened)) {
    const std::string path = folder + "/" + entry->d_name;
    struct stat status;
    if (stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode)) paths.push_back(path);
  }
  closedir(opened);
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    const uint64_t before = accepted;
    run_one(read_file(path), path);
    check(path.find("/valid-") == std::string::npos || accepted == before + 1,
          "a valid file was refused");
    check(path.find("/refused-") == std::string::npos || accepted == before,
          "a file that is to be refused was accepted");
  }
  return paths.size();
}

inline int main_of(int argc, char** argv, Bytes (*generate)(Random&)) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(report_input);
#endif
  uint64_t iterations = 100000, seed = 1, only = UINT64_MAX;
  double seconds = 1e9;
  const char* folder = nullptr;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : "0";
    if (option == "--iterations")
      iterations = std::strtoull(value, nullptr, 10), ++i;
    else if (option == "--seconds")
      seconds = std::strtod(value, nullptr), ++i;
    else if (option == "--seed")
      seed = std::strtoull(value, nullptr, 10), ++i;
    else if (option == "--only")
      only = std::strtoull(value, nullptr, 10), ++i;
    else
      folder = argv[i];
  }
  const size_t replayed = folder != nullptr ? replay(folder) : 0;
  const auto start = std::chrono::steady_clock::now();
  uint64_t done = 0;
  for (uint64_t i = only != UINT64_MAX ? only : 0; i < iterations; ++i, ++done) {
    Random random(seed * 0x2545f4914f6cdd1du + i);
    run_one(generate(random), "--seed " + std::to_string(seed) + " --only " + std::to_string(i));
    if (only != UINT64_MAX) break;
    if (i % 64 == 0 &&
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > seconds)
      break;
  }
  std::printf("replayed %zu, generated %llu, accepted %llu, seed %llu\n", replayed,
              static_cast<unsigned long long>(done), static_cast<unsigned long long>(accepted),
              static_cast<unsigned long long>(seed));
  return 0;
}

}  // namespace fuzz

// Each program is one source file, so these are defined once.
#if !defined(LOWRANK_LIBFUZZER)
void* operator new(size_t bytes) { return fuzz::counted_allocate(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return fuzz::counted_allocate(bytes);
}
void operator delete(void* memory) noexcept { fuzz::counted_free(memory); }
void operator delete(void* memory, size_t) noexcept { fuzz::counted_free(memory); }
#endif

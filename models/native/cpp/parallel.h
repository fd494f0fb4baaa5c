// Work shared between threads, and scratch memory for each share.
#pragma once

#include <atomic>
#include <cstdlib>

#include "vector.h"

// The entry point of every OpenMP runtime (libgomp, LLVM's and Intel's). Nothing links one: the weak symbol resolves to
// the runtime that torch has loaded, so that there never is a second one, or to null, and then one thread does it all.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);

namespace diastole {

// Call f(0) ... f(parts - 1) on at most `threads` threads. Which thread runs which part is open, so what a part computes
// must not depend on it: results are then the same bits for any number of threads.
template <class F>
void parallel(int64_t parts, int threads, F&& f) {
  if (threads > parts) threads = static_cast<int>(parts);
  if (threads <= 1 || !GOMP_parallel) {
    for (int64_t part = 0; part < parts; ++part) f(part);
    return;
  }
  struct Shared {
    F& f;
    int64_t parts;
    std::atomic<int64_t> next{0};
  } shared{f, parts};
  const auto work = [](void* data) {
    Shared& mine = *static_cast<Shared*>(data);
    for (int64_t part; (part = mine.next.fetch_add(1)) < mine.parts;) mine.f(part);
  };
  GOMP_parallel(work, &shared, static_cast<unsigned>(threads), 0);
}

// Memory of its own, aligned to a cache line; null where there is none left. A cache line beyond the end may be read.
class Scratch {
 public:
  explicit Scratch(size_t floats)
      : data_(static_cast<float*>(aligned_alloc(64, (floats * sizeof(float) + 127) / 64 * 64))) {}
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

}  // namespace diastole

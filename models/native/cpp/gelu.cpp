// GELU (Hendrycks and Gimpel, 2016), x times the normal distribution's function at x; exact to about a rounding of 1.

#include "normal.h"
#include "parallel.h"

namespace diastole {
namespace {

constexpr int64_t kBlock = 1 << 14;  // Values that a thread takes at a time.

// Call body(lanes, at) for vectors of all values.
template <class Body>
int over_values(int64_t count, int threads, Body&& body) {
  parallel((count + kBlock - 1) / kBlock, threads, [&](int64_t block) {
    const int64_t start = block * kBlock;
    over_channels(lesser(kBlock, count - start), [&](auto lanes, int64_t i) { body(lanes, start + i); });
  });
  return 0;
}

template <class T>
int gelu(const T* x, T* out, int64_t count, int threads) {
  return over_values(count, threads, [&](auto lanes, int64_t at) {
    constexpr int L = lanes();
    const auto value = load<L>(x + at);
    store<L>(out + at, value * Normal<L>(value).below);
  });
}

template <class T>
int gelu_backward(const T* gradient, const T* x, T* out, int64_t count, int threads) {
  return over_values(count, threads, [&](auto lanes, int64_t at) {
    constexpr int L = lanes();
    const auto value = load<L>(x + at);
    const Normal<L> normal(value);
    store<L>(out + at, load<L>(gradient + at) * (normal.below + value * normal.density));
  });
}

}  // namespace
}  // namespace diastole

#define DIASTOLE_GELU(SUFFIX, T)                                                                                     \
  DIASTOLE_EXPORT int diastole_gelu_##SUFFIX(const T* x, T* out, int64_t count, int threads) {                       \
    return diastole::gelu(x, out, count, threads);                                                                   \
  }                                                                                                                  \
  DIASTOLE_EXPORT int diastole_gelu_backward_##SUFFIX(const T* gradient, const T* x, T* out, int64_t count,          \
                                                      int threads) {                                                 \
    return diastole::gelu_backward(gradient, x, out, count, threads);                                                \
  }

DIASTOLE_KERNELS(DIASTOLE_GELU)

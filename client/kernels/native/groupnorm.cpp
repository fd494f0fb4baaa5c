// GroupNorm of channels-last maps, with or without ReLU behind it; forward and backward read main memory once each.

#include "norm.h"

namespace diastole {
namespace {

template <class T>
int normalise(const T* x, const float* weight, const float* bias, T* out, double* means, float* rstds, const Norm& norm,
              double eps, bool relu, int threads) {
  const Cut cut(norm);
  const float floor = relu ? 0.0f : -INFINITY;  // One loop for both: twice as many take too long to compile.
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    if (!sums) {
      status = 1;
      return;
    }
    const T* from = x + n * norm.values();
    T* to = out + n * norm.values();
    moments(from, cut, sums);
    sums.finish(cut, norm, eps, weight, bias, means + n * norm.groups, rstds + n * norm.groups);
    walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
      constexpr int V = vectors(), L = lanes();
      using F = typename Lanes<L>::f;
      for (int64_t row = 0; row < rows; ++row, start += cut.span)
        unroll<V>([&](auto v) {
          const int64_t i = lane + v * L;
          F y = (load<L>(from + start + v * L) - load<L>(sums.mean + i)) * load<L>(sums.scale + i) +
                load<L>(sums.shift + i);
          y = y < floor ? F{} : y;
          store<L>(to + start + v * L, y);
        });
    });
  });
  return status;
}

// With g the gradient of the output and h = (x - mean) / deviation, the gradient of x is
// (weight g - mean(weight g) - h mean(weight g h)) / deviation, with means over a group. What comes through ReLU is
// computed again. `parameters` gets the gradients of weight and bias for each image, [images, 2, channels].
template <class T>
int differentiate(const T* gradient, const T* x, const float* weight, const float* bias, const double* means,
                  const float* rstds, T* out, float* parameters, const Norm& norm, bool relu, int threads) {
  const Cut cut(norm);
  const float floor = relu ? 0.0f : -INFINITY;  // One loop for both: twice as many take too long to compile.
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    if (!sums) {
      status = 1;
      return;
    }
    const T* from = x + n * norm.values();
    const T* above = gradient + n * norm.values();
    T* to = out + n * norm.values();
    const double* mean = means + n * norm.groups;
    const float* rstd = rstds + n * norm.groups;
    sums.fill(cut, norm, mean, rstd, weight, bias);
    const auto arrived = [&](auto lanes, int64_t at, auto off, int64_t lane) __attribute__((always_inline)) {
      constexpr int L = lanes();
      using F = typename Lanes<L>::f;
      const F value = load<L>(above + at);
      return off * load<L>(sums.scale + lane) + load<L>(sums.shift + lane) <= floor ? F{} : value;
    };
    walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
      constexpr int V = vectors(), L = lanes();
      using F = typename Lanes<L>::f;
      F sum[V] = {}, product[V] = {};
      for (int64_t row = 0; row < rows; ++row, start += cut.span)
        unroll<V>([&](auto v) {
          const int64_t i = lane + v * L;
          const F off = load<L>(from + start + v * L) - load<L>(sums.mean + i);
          const F value = arrived(lanes, start + v * L, off, i);
          sum[v] += value;
          product[v] += value * off;
        });
      float totals[V * L], products[V * L];
      memcpy(totals, sum, sizeof totals);
      memcpy(products, product, sizeof products);
      for (int i = 0; i < V * L; ++i) {
        sums.first[lane + i] += totals[i];
        sums.second[lane + i] += products[i];
      }
    });
    float* to_weight = parameters + n * 2 * norm.channels;
    sums.differentiate(cut, norm, mean, rstd, weight, to_weight, to_weight + norm.channels);
    walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
      constexpr int V = vectors(), L = lanes();
      using F = typename Lanes<L>::f;
      for (int64_t row = 0; row < rows; ++row, start += cut.span)
        unroll<V>([&](auto v) {
          const int64_t i = lane + v * L;
          const F off = load<L>(from + start + v * L) - load<L>(sums.mean + i);
          const F value = arrived(lanes, start + v * L, off, i);
          store<L>(to + start + v * L, value * load<L>(sums.scale + i) +
                                           (off * load<L>(sums.slope + i) + load<L>(sums.offset + i)));
        });
    });
  });
  return status;
}

}  // namespace
}  // namespace diastole

#define DIASTOLE_GROUPNORM(SUFFIX, T)                                                                                \
  DIASTOLE_EXPORT int diastole_normalise_##SUFFIX(const T* x, const float* weight, const float* bias, T* out,        \
                                                  double* means, float* rstds, int64_t images, int64_t pixels,        \
                                                  int64_t channels, int64_t groups, double eps, int relu,            \
                                                  int threads) {                                                     \
    return diastole::normalise(                                                                                      \
        x, weight, bias, out, means, rstds, {images, pixels, channels, groups}, eps, relu, threads);                       \
  }                                                                                                                  \
  DIASTOLE_EXPORT int diastole_differentiate_##SUFFIX(const T* gradient, const T* x, const float* weight,            \
                                                      const float* bias, const double* means, const float* rstds,    \
                                                      T* out, float* parameters, int64_t images, int64_t pixels,     \
                                                      int64_t channels, int64_t groups, int relu, int threads) {     \
    return diastole::differentiate(                            \
        gradient, x, weight, bias, means, rstds, out, parameters, {images, pixels, channels, groups}, relu, threads);      \
  }

DIASTOLE_GROUPNORM(f32, float)
DIASTOLE_GROUPNORM(bf16, diastole::Bf16)

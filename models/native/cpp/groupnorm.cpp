// GroupNorm of channels-last maps, alone or with ReLU or hard swish behind it; forward and backward read main memory
// once each.
//
// Before the ReLU, `added` may be added, as in a residual block.

#include "norm.h"

namespace diastole {
namespace {

// What follows the norm, as Python says it.
constexpr int kRelu = 1, kHardSwish = 2;

// The loops there are: what is not above a floor becomes 0; hard swish; and with something added, or its output kept.
enum class Kind { kFloor, kSwish, kAdded };

// Call body(integral_constant kind).
template <class Body>
DIASTOLE_INLINE void with_kind(int after, bool added, Body&& body) {
  if (added) return body(std::integral_constant<Kind, Kind::kAdded>{});
  if (after == kHardSwish) return body(std::integral_constant<Kind, Kind::kSwish>{});
  body(std::integral_constant<Kind, Kind::kFloor>{});
}

// Hard swish of y is y times this (Howard et al. 2019); `slope` 1/6, and 1/3 for its derivative beside 0.
template <class F>
DIASTOLE_INLINE F gate(F y, float slope) {
  const F inside = y * slope + 0.5f;
  return y <= -3.0f ? F{} : y >= 3.0f ? F{} + 1.0f : inside;
}

template <class T>
int normalise(const T* x, const T* added, const float* weight, const float* bias, T* out, double* means, float* rstds,
              const Norm& norm, double eps, int after, int threads) {
  const Cut cut(norm);
  const float floor = after == kRelu ? 0.0f : -__builtin_inff();
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    if (!sums) {
      status = 1;
      return;
    }
    const T* from = x + n * norm.values();
    const T* more = added ? added + n * norm.values() : nullptr;
    T* to = out + n * norm.values();
    moments(from, cut, sums);
    sums.finish(cut, norm, eps, weight, bias, means + n * norm.groups, rstds + n * norm.groups);
    with_kind(after, more, [&](auto kind) {
      walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
        constexpr int V = vectors(), L = lanes();
        using F = typename Lanes<L>::f;
        const Factors<V, L> mean(sums.mean + lane), scale(sums.scale + lane), shift(sums.shift + lane);
        for (int64_t row = 0; row < rows; ++row, start += cut.span)
          unroll<V>([&](auto v) {
            F y = (load<L>(from + start + v * L) - mean.of[v]) * scale.of[v] + shift.of[v];
            if constexpr (kind() == Kind::kAdded) y += load<L>(more + start + v * L);
            store<L>(to + start + v * L, kind() == Kind::kSwish ? y * gate(y, 1.0f / 6) : y < floor ? F{} : y);
          });
      });
    });
  });
  return status;
}

// With g the gradient of the output and h = (x - mean) / deviation, the gradient of x is
// (weight g - mean(weight g) - h mean(weight g h)) / deviation, with means over a group. What comes through ReLU is
// computed again; or, if something was added, taken from the output `kept`, and written as the gradient of what was
// added. `parameters` gets the gradients of weight and bias for each image, [images, 2, channels].
template <class T>
int differentiate(const T* gradient, const T* x, const T* kept, const float* weight, const float* bias,
                  const double* means, const float* rstds, T* out, T* to_added, float* parameters, const Norm& norm,
                  int after, int threads) {
  const Cut cut(norm);
  const float floor = after == kRelu ? 0.0f : -__builtin_inff();
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    if (!sums) {
      status = 1;
      return;
    }
    const T* from = x + n * norm.values();
    const T* above = gradient + n * norm.values();
    const T* result = kept ? kept + n * norm.values() : nullptr;
    T* passed = kept ? to_added + n * norm.values() : nullptr;
    T* to = out + n * norm.values();
    const double* mean = means + n * norm.groups;
    const float* rstd = rstds + n * norm.groups;
    sums.fill(cut, norm, mean, rstd, weight, bias);
    with_kind(after, result, [&](auto kind) {
      walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
        constexpr int V = vectors(), L = lanes();
        using F = typename Lanes<L>::f;
        const Factors<V, L> mean(sums.mean + lane), scale(sums.scale + lane), shift(sums.shift + lane);
        F sum[V] = {}, product[V] = {};
        for (int64_t row = 0; row < rows; ++row, start += cut.span)
          unroll<V>([&](auto v) {
            const int64_t at = start + v * L;
            const F off = load<L>(from + at) - mean.of[v], y = off * scale.of[v] + shift.of[v];
            F value = load<L>(above + at);
            if constexpr (kind() == Kind::kAdded) {
              value = load<L>(result + at) > 0.0f ? value : F{};
              store<L>(passed + at, value);
            } else {
              value = kind() == Kind::kSwish ? value * gate(y, 1.0f / 3) : y <= floor ? F{} : value;
            }
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
      if (passed) above = passed;
      float* to_weight = parameters + n * 2 * norm.channels;
      sums.differentiate(cut, norm, mean, rstd, weight, to_weight, to_weight + norm.channels);
      walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
        constexpr int V = vectors(), L = lanes();
        using F = typename Lanes<L>::f;
        const Factors<V, L> mean(sums.mean + lane), scale(sums.scale + lane), shift(sums.shift + lane);
        const Factors<V, L> slope(sums.slope + lane), offset(sums.offset + lane);
        for (int64_t row = 0; row < rows; ++row, start += cut.span)
          unroll<V>([&](auto v) {
            const int64_t at = start + v * L;
            const F off = load<L>(from + at) - mean.of[v], y = off * scale.of[v] + shift.of[v];
            F value = load<L>(above + at);
            if constexpr (kind() == Kind::kSwish) value *= gate(y, 1.0f / 3);
            if constexpr (kind() == Kind::kFloor) value = y <= floor ? F{} : value;
            store<L>(to + at, value * scale.of[v] + (off * slope.of[v] + offset.of[v]));
          });
      });
    });
  });
  return status;
}

}  // namespace
}  // namespace diastole

#define DIASTOLE_GROUPNORM(SUFFIX, T)                                                                                \
  DIASTOLE_EXPORT int diastole_normalise_##SUFFIX(const T* x, const T* added, const float* weight,                   \
                                                  const float* bias, T* out, double* means, float* rstds,            \
                                                  int64_t images, int64_t pixels, int64_t channels, int64_t groups,  \
                                                  double eps, int after, int threads) {                               \
    return diastole::normalise(x, added, weight, bias, out, means, rstds, {images, pixels, channels, groups}, eps,   \
                               after, threads);                                                                      \
  }                                                                                                                  \
  DIASTOLE_EXPORT int diastole_differentiate_##SUFFIX(                                                               \
      const T* gradient, const T* x, const T* kept, const float* weight, const float* bias, const double* means,     \
      const float* rstds, T* out, T* to_added, float* parameters, int64_t images, int64_t pixels, int64_t channels,  \
      int64_t groups, int after, int threads) {                                                                      \
    return diastole::differentiate(gradient, x, kept, weight, bias, means, rstds, out, to_added, parameters,         \
                                   {images, pixels, channels, groups}, after, threads);                              \
  }

DIASTOLE_KERNELS(DIASTOLE_GROUPNORM)

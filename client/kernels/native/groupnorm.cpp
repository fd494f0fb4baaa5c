// GroupNorm of channels-last maps, with or without ReLU behind it; forward and backward read main memory once each.
//
// An image stays in the cache between the pass that sums and the pass that writes. Its pixels are taken in *spans* of
// whole vectors that repeat the order of channels (two pixels of 12 channels in three vectors of eight lanes), so any
// number of channels keeps all lanes busy; what is left after the last whole span is taken value by value.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lanes.h"
#include "parallel.h"

namespace diastole {
namespace {

constexpr int64_t kRows = 32;  // Spans that are summed in single precision before they join a sum in double.

struct Norm {
  int64_t images, pixels, channels, groups;

  int64_t each() const { return channels / groups; }
  int64_t values() const { return pixels * channels; }
  int64_t group(int64_t lane) const { return lane % channels / each(); }
};

// How an image is cut into spans of `vectors` (or a multiple) times kLanes values.
struct Cut {
  int64_t vectors = 4, span, rows, rest;

  explicit Cut(const Norm& norm) {
    for (;; vectors /= 2) {
      span = std::lcm(norm.channels, vectors * kLanes);
      if (vectors == 1 || span <= norm.values()) break;
    }
    rows = norm.values() / span;
    rest = norm.values() - rows * span;
  }
  int64_t count(int64_t lane) const { return rows + (lane < rest); }
};

// Call body(vectors, lanes, start, rows, lane) for blocks that cover an image: `rows` times `vectors * lanes` values
// from `start`, a span apart; `lane` is their place in the span.
template <int V, class Body>
DIASTOLE_INLINE void walk_spans(const Cut& cut, Body&& body) {
  for (int64_t row = 0; row < cut.rows; row += kRows)
    for (int64_t lane = 0; lane < cut.span; lane += V * kLanes)
      body(std::integral_constant<int, V>{}, std::integral_constant<int, kLanes>{}, row * cut.span + lane,
           std::min(kRows, cut.rows - row), lane);
}

template <class Body>
DIASTOLE_INLINE void walk(const Cut& cut, Body&& body) {
  if (cut.vectors == 4) walk_spans<4>(cut, body);
  if (cut.vectors == 2) walk_spans<2>(cut, body);
  if (cut.vectors == 1) walk_spans<1>(cut, body);
  const std::integral_constant<int, 1> one{};
  for (int64_t lane = 0; lane < cut.rest; ++lane) body(one, one, cut.rows * cut.span + lane, int64_t{1}, lane);
}

// Scratch memory of one image: for each lane of a span two sums and five factors, for each group two sums.
struct Sums {
  Scratch memory;
  double *first, *second, *of_group, *second_of_group;
  float *mean, *scale, *shift, *slope, *offset;

  Sums(const Cut& cut, const Norm& norm) : memory(9 * cut.span + 4 * norm.groups) {
    if (!memory.get()) return;
    first = reinterpret_cast<double*>(memory.get());
    second = first + cut.span;
    of_group = second + cut.span;
    second_of_group = of_group + norm.groups;
    mean = reinterpret_cast<float*>(second_of_group + norm.groups);
    scale = mean + cut.span;
    shift = scale + cut.span;
    slope = shift + cut.span;
    offset = slope + cut.span;
    std::fill_n(first, 2 * cut.span + 2 * norm.groups, 0.0);
  }
  explicit operator bool() const { return memory.get(); }

  // A value less `mean`, times `scale`, plus `shift` is the result; `shift` makes up for the rounding of `mean`.
  void fill(const Cut& cut, const Norm& norm, const double* means, const float* rstds, const float* weight,
            const float* bias) {
    for (int64_t lane = 0; lane < cut.span; ++lane) {
      const int64_t channel = lane % norm.channels, group = norm.group(lane);
      mean[lane] = static_cast<float>(means[group]);
      scale[lane] = weight ? rstds[group] * weight[channel] : rstds[group];
      shift[lane] = static_cast<float>((bias ? bias[channel] : 0.0) - lost(means[group]) * scale[lane]);
    }
  }

  static double lost(double mean) { return mean - static_cast<float>(mean); }
};

// Mean (`first`) and sum of squared differences (`second`) of each lane. In a block differences are from its first value,
// which is never more than sqrt(kRows) deviations from its mean; blocks are joined as by Chan, Golub and LeVeque (1979).
template <class T>
void moments(const T* x, const Cut& cut, const Sums& sums) {
  walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
    constexpr int V = vectors(), L = lanes();
    using F = typename Lanes<L>::f;
    F origin[V], sum[V] = {}, square[V] = {};
    const T* at = x + start;
    unroll<V>([&](auto v) { origin[v] = load<L>(at + v * L); });
    for (int64_t row = 1; row < rows; ++row)
      unroll<V>([&](auto v) {
        const F off = load<L>(at + row * cut.span + v * L) - origin[v];
        sum[v] += off;
        square[v] += off * off;
      });
    const double before = static_cast<double>((start - lane) / cut.span), share = rows / (before + rows);
    for (int i = 0; i < V * L; ++i) {
      const double mean = static_cast<double>(sum[i / L][i % L]) / rows;
      const double off = origin[i / L][i % L] + mean - sums.first[lane + i];
      sums.first[lane + i] += off * share;
      sums.second[lane + i] += std::max(0.0, square[i / L][i % L] - rows * mean * mean) + off * off * before * share;
    }
  });
}

template <bool Relu, class T>
int normalise(const T* x, const float* weight, const float* bias, T* out, double* means, float* rstds, const Norm& norm,
              double eps, int threads) {
  const Cut cut(norm);
  const double count = static_cast<double>(norm.each() * norm.pixels);
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    if (!sums) {
      status = 1;
      return;
    }
    const T* from = x + n * norm.values();
    T* to = out + n * norm.values();
    double* mean = means + n * norm.groups;
    float* rstd = rstds + n * norm.groups;
    moments(from, cut, sums);
    for (int64_t lane = 0; lane < cut.span; ++lane)
      sums.of_group[norm.group(lane)] += cut.count(lane) * sums.first[lane] / count;
    for (int64_t lane = 0; lane < cut.span; ++lane) {
      const double off = sums.first[lane] - sums.of_group[norm.group(lane)];
      sums.second_of_group[norm.group(lane)] += sums.second[lane] + cut.count(lane) * off * off;
    }
    for (int64_t g = 0; g < norm.groups; ++g) {
      mean[g] = sums.of_group[g];
      rstd[g] = static_cast<float>(1.0 / std::sqrt(sums.second_of_group[g] / count + eps));
    }
    sums.fill(cut, norm, mean, rstd, weight, bias);
    walk(cut, [&](auto vectors, auto lanes, int64_t start, int64_t rows, int64_t lane) {
      constexpr int V = vectors(), L = lanes();
      using F = typename Lanes<L>::f;
      for (int64_t row = 0; row < rows; ++row, start += cut.span)
        unroll<V>([&](auto v) {
          const int64_t i = lane + v * L;
          F y = (load<L>(from + start + v * L) - load<L>(sums.mean + i)) * load<L>(sums.scale + i) +
                load<L>(sums.shift + i);
          if (Relu) y = y <= 0.0f ? F{} : y;
          store<L>(to + start + v * L, y);
        });
    });
  });
  return status;
}

// With g the gradient of the output and h = (x - mean) / deviation, the gradient of x is
// (weight g - mean(weight g) - h mean(weight g h)) / deviation, with means over a group. What comes through ReLU is
// computed again. `parameters` gets the gradients of weight and bias for each image, [images, 2, channels].
template <bool Relu, class T>
int differentiate(const T* gradient, const T* x, const float* weight, const float* bias, const double* means,
                  const float* rstds, T* out, float* parameters, const Norm& norm, int threads) {
  const Cut cut(norm);
  const double count = static_cast<double>(norm.each() * norm.pixels);
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
      if constexpr (!Relu) return value;
      return off * load<L>(sums.scale + lane) + load<L>(sums.shift + lane) <= 0.0f ? F{} : value;
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
      for (int i = 0; i < V * L; ++i) {
        sums.first[lane + i] += sum[i / L][i % L];
        sums.second[lane + i] += product[i / L][i % L];
      }
    });
    float *to_weight = parameters + n * 2 * norm.channels, *to_bias = to_weight + norm.channels;
    for (int64_t c = 0; c < norm.channels; ++c) {
      double sum = 0.0, product = 0.0;
      for (int64_t lane = c; lane < cut.span; lane += norm.channels) {
        sum += sums.first[lane];
        product += sums.second[lane];
      }
      const int64_t g = c / norm.each();
      product -= Sums::lost(mean[g]) * sum;
      const double factor = weight ? weight[c] : 1.0;
      to_bias[c] = static_cast<float>(sum);
      to_weight[c] = static_cast<float>(product * rstd[g]);
      sums.of_group[g] += factor * sum;
      sums.second_of_group[g] += factor * product;
    }
    for (int64_t lane = 0; lane < cut.span; ++lane) {
      const int64_t g = norm.group(lane);
      const double inverse = rstd[g], slope = -inverse * inverse * inverse * sums.second_of_group[g] / count;
      sums.slope[lane] = static_cast<float>(slope);
      sums.offset[lane] = static_cast<float>(-inverse * sums.of_group[g] / count - Sums::lost(mean[g]) * slope);
    }
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
    return (relu ? diastole::normalise<true, T> : diastole::normalise<false, T>)(                                    \
        x, weight, bias, out, means, rstds, {images, pixels, channels, groups}, eps, threads);                       \
  }                                                                                                                  \
  DIASTOLE_EXPORT int diastole_differentiate_##SUFFIX(const T* gradient, const T* x, const float* weight,            \
                                                      const float* bias, const double* means, const float* rstds,    \
                                                      T* out, float* parameters, int64_t images, int64_t pixels,     \
                                                      int64_t channels, int64_t groups, int relu, int threads) {     \
    return (relu ? diastole::differentiate<true, T> : diastole::differentiate<false, T>)(                            \
        gradient, x, weight, bias, means, rstds, out, parameters, {images, pixels, channels, groups}, threads);      \
  }

DIASTOLE_GROUPNORM(f32, float)
DIASTOLE_GROUPNORM(bf16, diastole::Bf16)

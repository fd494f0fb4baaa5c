// Statistics of groups of channels in channels-last maps, and their share in gradients.
//
// An image stays in the cache between the pass that sums and the pass that writes. Its pixels are taken in *spans* of
// whole vectors that repeat the order of channels (two pixels of 12 channels in three vectors of eight lanes), so any
// number of channels keeps all lanes busy; what is left after the last whole span is taken value by value.
#pragma once

#include "lanes.h"
#include "parallel.h"

namespace diastole {

constexpr int64_t kRows = 64;  // Spans that are summed in single precision before they join a sum in double.
constexpr int kVectors = 2;    // Taken at a time: with what is multiplied and added they fit into 16 registers.

struct Norm {
  int64_t images, pixels, channels, groups;

  int64_t each() const { return channels / groups; }
  int64_t values() const { return pixels * channels; }
};

// The least common multiple.
inline int64_t common(int64_t a, int64_t b) {
  int64_t product = a * b;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return product / a;
}

// How an image is cut into spans of a multiple of kVectors times kLanes values.
struct Cut {
  int64_t span, rows, rest;

  explicit Cut(const Norm& norm)
      : span(common(norm.channels, kVectors * kLanes)), rows(norm.values() / span), rest(norm.values() - rows * span) {}
  int64_t count(int64_t lane) const { return rows + (lane < rest); }
};

// Call body(lane, channel, group) for the lanes of a span; it counts, because division is slow.
template <class Body>
DIASTOLE_INLINE void over_lanes(const Cut& cut, const Norm& norm, Body&& body) {
  const int64_t each = norm.each();
  for (int64_t lane = 0; lane < cut.span;)
    for (int64_t group = 0, channel = 0; group < norm.groups; ++group)
      for (int64_t i = 0; i < each; ++i, ++channel, ++lane) body(lane, channel, group);
}

// Call body(vectors, lanes, start, rows, lane) for blocks that cover an image: `rows` times `vectors * lanes` values
// from `start`, a span apart; `lane` is their place in the span.
template <class Body>
DIASTOLE_INLINE void walk(const Cut& cut, Body&& body) {
  for (int64_t row = 0; row < cut.rows; row += kRows)
    for (int64_t lane = 0; lane < cut.span; lane += kVectors * kLanes)
      body(std::integral_constant<int, kVectors>{}, std::integral_constant<int, kLanes>{}, row * cut.span + lane,
           lesser(kRows, cut.rows - row), lane);
  const std::integral_constant<int, 1> one{};
  for (int64_t lane = 0; lane < cut.rest; ++lane) body(one, one, cut.rows * cut.span + lane, int64_t{1}, lane);
}

// Factors of the lanes of a block, which stay in registers.
template <int V, int L>
struct Factors {
  typename Lanes<L>::f of[V];

  DIASTOLE_INLINE explicit Factors(const float* from) {
    unroll<V>([&](auto v) { of[v] = load<L>(from + v * L); });
  }
};

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
    memset(first, 0, (2 * cut.span + 2 * norm.groups) * sizeof(double));
  }
  explicit operator bool() const { return memory.get(); }

  // A value less `mean`, times `scale`, plus `shift` is the result; `shift` makes up for the rounding of `mean`.
  void fill(const Cut& cut, const Norm& norm, const double* means, const float* rstds, const float* weight,
            const float* bias) {
    over_lanes(cut, norm, [&](int64_t lane, int64_t channel, int64_t group) {
      mean[lane] = static_cast<float>(means[group]);
      scale[lane] = weight ? rstds[group] * weight[channel] : rstds[group];
      shift[lane] = static_cast<float>((bias ? bias[channel] : 0.0) - lost(means[group]) * scale[lane]);
    });
  }

  // Finish what a forward pass needs: from the moments of lanes the mean and 1 / deviation of each group, and factors.
  void finish(const Cut& cut, const Norm& norm, double eps, const float* weight, const float* bias, double* means,
              float* rstds) {
    const double count = static_cast<double>(norm.each() * norm.pixels);
    over_lanes(cut, norm, [&](int64_t lane, int64_t, int64_t g) { of_group[g] += cut.count(lane) * first[lane]; });
    for (int64_t g = 0; g < norm.groups; ++g) of_group[g] /= count;
    over_lanes(cut, norm, [&](int64_t lane, int64_t, int64_t g) {
      const double off = first[lane] - of_group[g];
      second_of_group[g] += second[lane] + cut.count(lane) * off * off;
    });
    for (int64_t g = 0; g < norm.groups; ++g) {
      means[g] = of_group[g];
      rstds[g] = static_cast<float>(1.0 / __builtin_sqrt(second_of_group[g] / count + eps));
    }
    fill(cut, norm, means, rstds, weight, bias);
  }

  // From the sums over pixels of the gradient (`first`) and of its product with the value less `mean` (`second`): the
  // gradients of weight and bias, and for each lane `slope` and `offset` of what the input's gradient gets for the mean
  // and the deviation.
  void differentiate(const Cut& cut, const Norm& norm, const double* means, const float* rstds, const float* weight,
                     float* to_weight, float* to_bias) {
    const double count = static_cast<double>(norm.each() * norm.pixels);
    const int64_t each = norm.each();
    for (int64_t c = 0, g = 0; c < norm.channels; ++c) {
      double sum = 0.0, product = 0.0;
      for (int64_t lane = c; lane < cut.span; lane += norm.channels) {
        sum += first[lane];
        product += second[lane];
      }
      if (c && c % each == 0) ++g;
      product -= lost(means[g]) * sum;
      const double factor = weight ? weight[c] : 1.0;
      to_bias[c] = static_cast<float>(sum);
      to_weight[c] = static_cast<float>(product * rstds[g]);
      of_group[g] += factor * sum;
      second_of_group[g] += factor * product;
    }
    for (int64_t g = 0; g < norm.groups; ++g) {
      const double inverse = rstds[g], steep = -inverse * inverse * inverse * second_of_group[g] / count;
      of_group[g] = -inverse * of_group[g] / count - lost(means[g]) * steep;
      second_of_group[g] = steep;
    }
    over_lanes(cut, norm, [&](int64_t lane, int64_t, int64_t g) {
      slope[lane] = static_cast<float>(second_of_group[g]);
      offset[lane] = static_cast<float>(of_group[g]);
    });
  }

 private:
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
    float from[V * L], total[V * L], squares[V * L];
    memcpy(from, origin, sizeof from);
    memcpy(total, sum, sizeof total);
    memcpy(squares, square, sizeof squares);
    const double inverse = 1.0 / rows;
    for (int i = 0; i < V * L; ++i) {
      const double mean = total[i] * inverse, off = from[i] + mean - sums.first[lane + i];
      sums.first[lane + i] += off * share;
      const double within = squares[i] - rows * mean * mean;
      sums.second[lane + i] += (within > 0.0 ? within : 0.0) + off * off * before * share;
    }
  });
}

}  // namespace diastole

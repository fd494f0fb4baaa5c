// GroupNorm, ReLU and max-pooling over 2x2 squares of channels-last maps in one: of the map between, nothing is written.
//
// Bytes say which of four values an output came from, as in pooling.cpp.

#include "norm.h"
#include "pool.h"

namespace diastole {
namespace {

struct Squares {
  int64_t height, width, channels;

  int64_t row() const { return width * channels; }
  int64_t outputs() const { return height / 2 * (width / 2) * channels; }
};

// Call body(lanes, at, start, channel) for vectors of all outputs of an image: `at` is their place among the outputs,
// `start` that of the first of four values. `end_of_row()` follows each row.
template <class Body, class End>
DIASTOLE_INLINE void over_squares(const Squares& s, Body&& body, End&& end_of_row) {
  int64_t at = 0;
  for (int64_t h = 0; h < s.height / 2; ++h) {
    int64_t start = 2 * h * s.row();
    for (int64_t w = 0; w < s.width / 2; ++w, at += s.channels, start += 2 * s.channels)
      over_channels(s.channels, [&](auto lanes, int64_t c) { body(lanes, at + c, start + c, c); });
    end_of_row();
  }
}

template <class T>
int normalise_pool(const T* x, const float* weight, const float* bias, T* out, uint8_t* from, double* means,
                   float* rstds, const Norm& norm, const Squares& squares, double eps, int threads) {
  const Cut cut(norm);
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    if (!sums) {
      status = 1;
      return;
    }
    const T* values = x + n * norm.values();
    moments(values, cut, sums);
    sums.finish(cut, norm, eps, weight, bias, means + n * norm.groups, rstds + n * norm.groups);
    T* to = out + n * squares.outputs();
    uint8_t* source = from + n * squares.outputs();
    over_squares(
        squares,
        [&](auto lanes, int64_t at, int64_t start, int64_t c) {
          constexpr int L = lanes();
          const auto mean = load<L>(sums.mean + c), scale = load<L>(sums.scale + c), shift = load<L>(sums.shift + c);
          pool_lanes<L, true>(
              [&](int k) {
                const T* value = values + start + k / 2 * squares.row() + k % 2 * squares.channels;
                return (load<L>(value) - mean) * scale + shift;
              },
              to + at, source + at);
        },
        [] {});
  });
  return status;
}

template <class T>
int differentiate_pool(const T* gradient, const uint8_t* from, const T* x, const float* weight, const double* means,
                       const float* rstds, T* out, float* parameters, const Norm& norm, const Squares& squares,
                       int threads) {
  const Cut cut(norm);
  std::atomic<int> status{0};
  parallel(norm.images, threads, [&](int64_t n) {
    Sums sums(cut, norm);
    Scratch row(2 * norm.channels);
    if (!sums || !row.get()) {
      status = 1;
      return;
    }
    const double* mean = means + n * norm.groups;
    const float* rstd = rstds + n * norm.groups;
    sums.fill(cut, norm, mean, rstd, weight, nullptr);
    const T* values = x + n * norm.values();
    const T* above = gradient + n * squares.outputs();
    const uint8_t* source = from + n * squares.outputs();
    T* to = out + n * norm.values();
    float *sum = row.get(), *product = sum + norm.channels;
    memset(sum, 0, 2 * norm.channels * sizeof(float));
    over_squares(
        squares,
        [&](auto lanes, int64_t at, int64_t start, int64_t c) {
          constexpr int L = lanes();
          using F = typename Lanes<L>::f;
          const typename Lanes<L>::i index = load_bytes<L>(source + at);
          F value = {};
          unroll<4>([&](auto k) {
            const F one = load<L>(values + start + k / 2 * squares.row() + k % 2 * squares.channels);
            value = index == k() ? one : value;
          });
          const F arrived = index == kNone ? F{} : load<L>(above + at);
          store<L>(sum + c, load<L>(sum + c) + arrived);
          store<L>(product + c, load<L>(product + c) + arrived * (value - load<L>(sums.mean + c)));
        },
        [&] {
          for (int64_t c = 0; c < norm.channels; ++c) {
            sums.first[c] += sum[c];
            sums.second[c] += product[c];
          }
          memset(sum, 0, 2 * norm.channels * sizeof(float));
        });
    float* to_weight = parameters + n * 2 * norm.channels;
    sums.differentiate(cut, norm, mean, rstd, weight, to_weight, to_weight + norm.channels);
    // Where nothing arrived, there still is the share of the mean and the deviation.
    const auto write = [&](auto lanes, int64_t at, auto value, int64_t c) __attribute__((always_inline)) {
      constexpr int L = lanes();
      const auto off = load<L>(values + at) - load<L>(sums.mean + c);
      store<L>(to + at, value * load<L>(sums.scale + c) + (off * load<L>(sums.slope + c) + load<L>(sums.offset + c)));
    };
    over_squares(
        squares,
        [&](auto lanes, int64_t at, int64_t start, int64_t c) {
          constexpr int L = lanes();
          using F = typename Lanes<L>::f;
          const typename Lanes<L>::i index = load_bytes<L>(source + at);
          const F arrived = load<L>(above + at);
          unroll<4>([&](auto k) {
            write(lanes, start + k / 2 * squares.row() + k % 2 * squares.channels, index == k() ? arrived : F{}, c);
          });
        },
        [] {});
    for (int64_t h = 0; h < squares.height; ++h)
      for (int64_t w = h < squares.height / 2 * 2 ? squares.width / 2 * 2 : 0; w < squares.width; ++w)
        over_channels(norm.channels, [&](auto lanes, int64_t c) {
          write(lanes, h * squares.row() + w * norm.channels + c, typename Lanes<lanes()>::f{}, c);
        });
  });
  return status;
}

}  // namespace
}  // namespace diastole

#define DIASTOLE_NORMPOOL(SUFFIX, T)                                                                                 \
  DIASTOLE_EXPORT int diastole_normalise_pool_##SUFFIX(const T* x, const float* weight, const float* bias, T* out,   \
                                                       uint8_t* from, double* means, float* rstds, int64_t images,   \
                                                       int64_t height, int64_t width, int64_t channels,              \
                                                       int64_t groups, double eps, int threads) {                    \
    return diastole::normalise_pool(x, weight, bias, out, from, means, rstds,                                        \
                                    {images, height * width, channels, groups}, {height, width, channels}, eps,      \
                                    threads);                                                                        \
  }                                                                                                                  \
  DIASTOLE_EXPORT int diastole_differentiate_pool_##SUFFIX(                                                          \
      const T* gradient, const uint8_t* from, const T* x, const float* weight, const double* means,                  \
      const float* rstds, T* out, float* parameters, int64_t images, int64_t height, int64_t width,                  \
      int64_t channels, int64_t groups, int threads) {                                                               \
    return diastole::differentiate_pool(gradient, from, x, weight, means, rstds, out, parameters,                    \
                                        {images, height * width, channels, groups}, {height, width, channels},       \
                                        threads);                                                                    \
  }

DIASTOLE_KERNELS(DIASTOLE_NORMPOOL)

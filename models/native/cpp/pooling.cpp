// Max-pooling over 2x2 squares of channels-last maps, with or without ReLU before it.
//
// Each output remembers in one byte which of its four inputs it came from, in row-major order: 0 to 3, or kNone where
// ReLU let nothing through. The backward pass needs nothing else.

#include "parallel.h"
#include "pool.h"

namespace diastole {
namespace {

struct Maps {
  int64_t images, height, width, channels;
};

template <int L, class T>
DIASTOLE_INLINE void spread_lanes(const T* gradient, const uint8_t* from, int64_t channels, T* upper, T* lower) {
  using V = Lanes<L>;
  const typename V::f value = load<L>(gradient);
  const typename V::i index = load_bytes<L>(from);
  store<L>(upper, index == 0 ? value : typename V::f{});
  store<L>(upper + channels, index == 1 ? value : typename V::f{});
  store<L>(lower, index == 2 ? value : typename V::f{});
  store<L>(lower + channels, index == 3 ? value : typename V::f{});
}

template <bool Relu, class T>
void pool(const T* x, T* out, uint8_t* from, const Maps& m, int threads) {
  const int64_t down = m.height / 2, right = m.width / 2, row = m.width * m.channels;
  parallel(m.images, threads, [&](int64_t n) {
    for (int64_t h = 0; h < down; ++h) {
      const T* upper = x + (n * m.height + 2 * h) * row;
      int64_t at = (n * down + h) * right * m.channels;
      for (int64_t w = 0; w < right; ++w, upper += 2 * m.channels, at += m.channels)
        over_channels(m.channels, [&](auto lanes, int64_t c) {
          pool_lanes<lanes(), Relu>(
              [&](int k) { return load<lanes()>(upper + k / 2 * row + k % 2 * m.channels + c); }, out + at + c,
              from + at + c);
        });
    }
  });
}

template <class T>
void spread(const T* gradient, const uint8_t* from, T* out, const Maps& m, int threads) {
  const int64_t down = m.height / 2, right = m.width / 2, row = m.width * m.channels;
  parallel(m.images, threads, [&](int64_t n) {
    for (int64_t h = 0; h < down; ++h) {
      T* upper = out + (n * m.height + 2 * h) * row;
      int64_t at = (n * down + h) * right * m.channels;
      for (int64_t w = 0; w < right; ++w, upper += 2 * m.channels, at += m.channels)
        over_channels(m.channels, [&](auto lanes, int64_t c) {
          spread_lanes<lanes()>(gradient + at + c, from + at + c, m.channels, upper + c, upper + row + c);
        });
      if (m.width % 2) {
        memset(upper, 0, m.channels * sizeof(T));
        memset(upper + row, 0, m.channels * sizeof(T));
      }
    }
    if (m.height % 2) memset(out + (n * m.height + m.height - 1) * row, 0, row * sizeof(T));
  });
}

}  // namespace
}  // namespace diastole

#define DIASTOLE_POOLING(SUFFIX, T)                                                                                  \
  DIASTOLE_EXPORT int diastole_pool_##SUFFIX(const T* x, T* out, uint8_t* from, int64_t images, int64_t height,      \
                                             int64_t width, int64_t channels, int relu, int threads) {               \
    (relu ? diastole::pool<true, T> : diastole::pool<false, T>)(x, out, from, {images, height, width, channels},     \
                                                                threads);                                            \
    return 0;                                                                                                        \
  }                                                                                                                  \
  DIASTOLE_EXPORT int diastole_spread_##SUFFIX(const T* gradient, const uint8_t* from, T* out, int64_t images,       \
                                               int64_t height, int64_t width, int64_t channels, int threads) {       \
    diastole::spread(gradient, from, out, {images, height, width, channels}, threads);                               \
    return 0;                                                                                                        \
  }

DIASTOLE_KERNELS(DIASTOLE_POOLING)

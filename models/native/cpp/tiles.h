// Matrix products whose sums stay in registers, and the shapes of the convolutions that are computed by them.
#pragma once

#include "vector.h"

namespace diastole {

// Sums in registers: kRows times kWide vectors, with kWide more for factors and one for a broadcast value.
#if DIASTOLE_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRows = 8;
#else
constexpr int kRows = 6;
#endif
constexpr int kWide = 2;
constexpr int kPanel = kWide * kLanes;

struct Shape {
  int64_t images, in, out, height, width, out_height, out_width, kernel_height, kernel_width, stride_down, stride_right,
      top, left;
};

inline int64_t panels_of(int64_t channels) { return (channels + kPanel - 1) / kPanel; }

// Call f(first, integral_constant rows) for all of `count`, in as few steps as there are.
template <class F>
DIASTOLE_INLINE void in_tiles(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) f(i, std::integral_constant<int, kRows>{});
  if (i + 4 <= count) f(i, std::integral_constant<int, 4>{}), i += 4;
  if (i + 2 <= count) f(i, std::integral_constant<int, 2>{}), i += 2;
  for (; i < count; ++i) f(i, std::integral_constant<int, 1>{});
}

}  // namespace diastole

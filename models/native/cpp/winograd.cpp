// 3x3 convolution of channels-last images at stride 1 by F(2x2, 3x3), and its two gradients: 16 multiplications for four
// outputs where a plain convolution takes 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// arXiv 1509.09308, sections 4.1 and 4.4).
//
// Inputs are cut into tiles of 4x4 that overlap by two. A tile becomes 16 values for each channel; each of the 16 is
// multiplied on its own, as a matrix product over channels, and what comes out becomes 2x2 outputs. Some tiles are taken
// at a time, so that all of that stays in the cache. The gradient of the input is the same convolution with the kernel
// turned round; that of the weight sums, over tiles, what comes in times what comes back, both as 16 values.
#include "parallel.h"
#include "tiles.h"

namespace diastole {
namespace {

constexpr int kPoints = 16;
constexpr int64_t kFloats = 48 * 1024;  // of the values of tiles that are taken at a time, about
constexpr int64_t kLeast = 4 * kRows;   // tiles at a time, at least
constexpr int64_t kParts = 64;

int64_t padded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// The tiles of all images: of inputs 4x4 from two rows to two rows, of outputs 2x2.
struct Tiles {
  int64_t images, height, width, out_height, out_width, top, left, down, right;

  Tiles(int64_t images, int64_t height, int64_t width, int64_t top, int64_t left)
      : images(images), height(height), width(width), out_height(height + 2 * top - 2), out_width(width + 2 * left - 2),
        top(top), left(left), down((out_height + 1) / 2), right((out_width + 1) / 2) {}
  int64_t count() const { return images * down * right; }

  // How many are taken at a time, if each has so many channels going in and out.
  int64_t some(int64_t channels) const {
    const int64_t fit = kFloats / (kPoints * channels) / kRows * kRows;
    return lesser(fit > kLeast ? fit : kLeast, count());
  }
};

// Pixels of a map of which those outside are 0; a tile that is inside has no need to ask.
struct Map {
  const float* x;
  int64_t height, width, channels;
  const float* zeros;

  const float* at(int64_t image, int64_t y, int64_t w) const {
    const bool inside = y >= 0 && y < height && w >= 0 && w < width;
    return inside ? x + ((image * height + y) * width + w) * channels : zeros;
  }
};

// Call f(vector of channels, number of lanes, channel) for all.
template <class F>
DIASTOLE_INLINE void over_vectors(int64_t channels, F&& f) {
  for (int64_t c = 0; c < channels; c += kLanes) f(c, static_cast<int>(lesser(channels - c, kLanes)));
}

// Call f(get) with `get(i, j, channel, lanes)` the pixel (i, j) of the Side x Side tile that begins at (y, w).
template <int Side, class F>
DIASTOLE_INLINE void with_pixels(const Map& map, int64_t image, int64_t y, int64_t w, F&& f) {
  if (y >= 0 && y + Side <= map.height && w >= 0 && w + Side <= map.width && map.channels % kLanes == 0) {
    const float* first = map.at(image, y, w);
    const int64_t row = map.width * map.channels;
    f([&](auto i, auto j, int64_t c, int) __attribute__((always_inline)) {
      return load(first + i * row + j * map.channels + c);
    });
  } else {
    const float* pixels[Side][Side];
    for (int i = 0; i < Side; ++i)
      for (int j = 0; j < Side; ++j) pixels[i][j] = map.at(image, y + i, w + j);
    f([&](auto i, auto j, int64_t c, int lanes) __attribute__((always_inline)) {
      return load_some(pixels[i][j] + c, lanes);
    });
  }
}

// The transforms along one axis: of inputs, of outputs' gradients, and of what the products give.
template <int I, class Get>
DIASTOLE_INLINE Vec of_input(Get&& get) {
  if constexpr (I == 0) return get(std::integral_constant<int, 0>{}) - get(std::integral_constant<int, 2>{});
  if constexpr (I == 1) return get(std::integral_constant<int, 1>{}) + get(std::integral_constant<int, 2>{});
  if constexpr (I == 2) return get(std::integral_constant<int, 2>{}) - get(std::integral_constant<int, 1>{});
  if constexpr (I == 3) return get(std::integral_constant<int, 1>{}) - get(std::integral_constant<int, 3>{});
}

template <int I, class Get>
DIASTOLE_INLINE Vec of_gradient(Get&& get) {
  if constexpr (I == 0) return get(std::integral_constant<int, 0>{});
  if constexpr (I == 1) return get(std::integral_constant<int, 0>{}) + get(std::integral_constant<int, 1>{});
  if constexpr (I == 2) return get(std::integral_constant<int, 0>{}) - get(std::integral_constant<int, 1>{});
  if constexpr (I == 3) return -get(std::integral_constant<int, 1>{});
}

template <int I, class Get>
DIASTOLE_INLINE Vec to_output(Get&& get) {
  const Vec a = get(std::integral_constant<int, 1>{}), b = get(std::integral_constant<int, 2>{});
  if constexpr (I == 0) return get(std::integral_constant<int, 0>{}) + a + b;
  if constexpr (I == 1) return a - b - get(std::integral_constant<int, 3>{});
}

// A weight of three taps becomes four values, and the gradients of four values become those of three taps.
template <int I>
DIASTOLE_INLINE Vec of_weight(const Vec* w) {
  if constexpr (I == 0) return w[0];
  if constexpr (I == 1) return 0.5f * (w[0] + w[1] + w[2]);
  if constexpr (I == 2) return 0.5f * (w[0] - w[1] + w[2]);
  if constexpr (I == 3) return w[2];
}

template <int I>
DIASTOLE_INLINE Vec to_weight(const Vec* u) {
  if constexpr (I == 0) return u[0] + 0.5f * (u[1] + u[2]);
  if constexpr (I == 1) return 0.5f * (u[1] - u[2]);
  if constexpr (I == 2) return u[3] + 0.5f * (u[1] + u[2]);
}

// Sums of `Rows` rows of `from` times a panel.
template <int Rows, int Wide>
void multiply(const float* from, int64_t row, int64_t deep, const float* panel, float* out, int64_t out_row) {
  Vec sums[Rows][Wide] = {};
  const float* at[Rows];
  unroll<Rows>([&](auto r) { at[r] = from + r * row; });
  for (int64_t k = 0; k < deep; ++k, panel += kPanel) {
    Vec factors[Wide];
    unroll<Wide>([&](auto v) { factors[v] = load(panel + v * kLanes); });
    unroll<Rows>([&](auto r) {
      const Vec value = splat(at[r][k]);
      unroll<Wide>([&](auto v) { sums[r][v] += value * factors[v]; });
    });
  }
  unroll<Rows>([&](auto r) { unroll<Wide>([&](auto v) { store(out + r * out_row + v * kLanes, sums[r][v]); }); });
}

// Add, to the sums of `Rows` channels that come back, their products with a panel of those that came in.
template <int Rows, int Wide>
void correlate(const float* back, int64_t row, int64_t count, const float* panel, float* total) {
  Vec sums[Rows][Wide] = {};
  for (int64_t t = 0; t < count; ++t, panel += kPanel, back += row) {
    Vec factors[Wide];
    unroll<Wide>([&](auto v) { factors[v] = load(panel + v * kLanes); });
    unroll<Rows>([&](auto r) {
      const Vec value = splat(back[r]);
      unroll<Wide>([&](auto v) { sums[r][v] += value * factors[v]; });
    });
  }
  unroll<Rows>([&](auto r) {
    unroll<Wide>([&](auto v) {
      float* to = total + r * kPanel + v * kLanes;
      store(to, load(to) + sums[r][v]);
    });
  });
}

// Weights [out][3][3][in] as [point][panel][deep][kPanel] of the channels that come out, `plane` from point to point;
// `turned` for the gradient of the input, which comes out in the channels of `in`.
void pack(const float* weight, int64_t in, int64_t out, bool turned, float* to, int64_t plane) {
  const int64_t deep = turned ? out : in, wide = turned ? in : out, panels = panels_of(wide);
  const int64_t deep_step = turned ? 9 * in : 1, wide_step = turned ? 1 : 9 * in;
  const auto taken = [&](const float* from, int lanes) {
    if (wide_step == 1) return load_some(from, lanes);
    alignas(DIASTOLE_VECTOR_BYTES) float values[kLanes] = {};
    for (int i = 0; i < lanes; ++i) values[i] = from[i * wide_step];
    return load(values);
  };
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t k = 0; k < deep; ++k)
      for (int v = 0; v < kWide; ++v, to += kLanes) {
        const int64_t channel = panel * kPanel + v * kLanes;
        const int lanes = static_cast<int>(lesser(wide - channel, kLanes));
        Vec columns[4][3] = {};
        if (lanes > 0)
          for (int j = 0; j < 3; ++j) {
            Vec taps[3];
            for (int i = 0; i < 3; ++i) {
              const int tap = turned ? 8 - (3 * i + j) : 3 * i + j;
              taps[i] = taken(weight + channel * wide_step + k * deep_step + tap * in, lanes);
            }
            unroll<4>([&](auto i) { columns[i][j] = of_weight<i>(taps); });
          }
        unroll<4>([&](auto i) {
          unroll<4>([&](auto j) { store(to + (4 * i + j) * plane, of_weight<j>(columns[i])); });
        });
      }
}

int convolve(const float* x, const float* weight, float* out, const Tiles& tiles, int64_t in, int64_t channels,
             bool turned, int threads) {
  const int64_t panels = panels_of(channels), row = padded(in), out_row = panels * kPanel;
  const int64_t some = tiles.some(row + out_row);
  // One panel more, so that the 16 do not lie in the same set of the cache.
  const int64_t plane = some * row + kPanel, out_plane = some * out_row + kPanel;
  const int64_t factors_plane = (panels * in + 1) * kPanel;
  const Scratch packed(kPoints * factors_plane), none(row);
  if (!packed.get() || !none.get()) return 1;
  memset(none.get(), 0, row * sizeof(float));
  pack(weight, turned ? channels : in, turned ? in : channels, turned, packed.get(),
       factors_plane);
  const Map map{x, tiles.height, tiles.width, in, none.get()};
  const int64_t groups = (tiles.count() + some - 1) / some, parts = lesser(groups, kParts);
  std::atomic<int> failed{0};
  parallel(parts, threads, [&](int64_t part) {
    const Scratch before(kPoints * plane), after(kPoints * out_plane);
    if (!before.get() || !after.get()) return failed.store(1);
    for (int64_t group = part * groups / parts; group < (part + 1) * groups / parts; ++group) {
      const int64_t first = group * some, count = lesser(some, tiles.count() - first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t image = (first + t) / (tiles.down * tiles.right), place = (first + t) % (tiles.down * tiles.right);
        const int64_t y = place / tiles.right * 2 - tiles.top, w = place % tiles.right * 2 - tiles.left;
        with_pixels<4>(map, image, y, w, [&](auto&& get) __attribute__((always_inline)) {
          over_vectors(in, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            float* to = before.get() + t * row + c;
            unroll<4>([&](auto i) __attribute__((always_inline)) {
              Vec columns[4];
              unroll<4>([&](auto j) __attribute__((always_inline)) {
                columns[j] = of_input<i>([&](auto k) __attribute__((always_inline)) { return get(k, j, c, lanes); });
              });
              unroll<4>([&](auto j) __attribute__((always_inline)) {
                store(to + (4 * i + j) * plane,
                      of_input<j>([&](auto k) __attribute__((always_inline)) { return columns[k]; }));
              });
            });
          });
        });
      }
      for (int point = 0; point < kPoints; ++point)
        for (int64_t panel = 0; panel < panels; ++panel) {
          const float* factors = packed.get() + point * factors_plane + panel * in * kPanel;
          const bool narrow = channels - panel * kPanel <= kLanes;
          in_tiles(count, [&](int64_t t, auto rows) {
            const auto call = narrow ? multiply<rows, 1> : multiply<rows, kWide>;
            call(before.get() + point * plane + t * row, row, in, factors,
                 after.get() + point * out_plane + t * out_row + panel * kPanel, out_row);
          });
        }
      for (int64_t t = 0; t < count; ++t) {
        const int64_t image = (first + t) / (tiles.down * tiles.right), place = (first + t) % (tiles.down * tiles.right);
        const int64_t y = place / tiles.right * 2, w = place % tiles.right * 2;
        float* to = out + ((image * tiles.out_height + y) * tiles.out_width + w) * channels;
        const bool low = y + 1 < tiles.out_height, wide = w + 1 < tiles.out_width;
        over_vectors(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          const float* from = after.get() + t * out_row + c;
          Vec rows[2][4];
          unroll<4>([&](auto j) __attribute__((always_inline)) {
            const auto get = [&](auto i) __attribute__((always_inline)) { return load(from + (4 * i + j) * out_plane); };
            rows[0][j] = to_output<0>(get);
            rows[1][j] = to_output<1>(get);
          });
          unroll<2>([&](auto i) __attribute__((always_inline)) {
            if (i && !low) return;
            const auto get = [&](auto j) __attribute__((always_inline)) { return rows[i][j]; };
            float* at = to + i * tiles.out_width * channels + c;
            store_some(at, to_output<0>(get), lanes);
            if (wide) store_some(at + channels, to_output<1>(get), lanes);
          });
        });
      }
    }
  });
  return failed.load();
}

int grad_weight(const float* gradient, const float* x, float* out, const Shape& s, int threads) {
  const Tiles tiles(s.images, s.height, s.width, s.top, s.left);
  const int64_t panels = panels_of(s.in), back = padded(s.out), some = tiles.some(panels * kPanel + back);
  const int64_t plane = panels * some * kPanel + kPanel, back_plane = some * back + kPanel;
  const int64_t sums_plane = (panels * s.out + 1) * kPanel, sums = kPoints * sums_plane;
  // Shares of the tiles, whatever the number of threads: the order of the sums is fixed.
  const int64_t groups = (tiles.count() + some - 1) / some, shares = lesser((groups + 7) / 8, 4);
  const int64_t most = back > padded(s.in) ? back : padded(s.in);
  const Scratch totals(shares * sums), none(most);
  if (!totals.get() || !none.get()) return 1;
  memset(none.get(), 0, most * sizeof(float));
  const Map map{x, s.height, s.width, s.in, none.get()}, outer{gradient, s.out_height, s.out_width, s.out, none.get()};
  std::atomic<int> failed{0};
  parallel(shares, threads, [&](int64_t share) {
    const Scratch before(kPoints * plane), behind(kPoints * back_plane);
    if (!before.get() || !behind.get()) return failed.store(1);
    float* total = totals.get() + share * sums;
    memset(total, 0, sums * sizeof(float));
    for (int64_t group = share * groups / shares; group < (share + 1) * groups / shares; ++group) {
      const int64_t first = group * some, count = lesser(some, tiles.count() - first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t image = (first + t) / (tiles.down * tiles.right), place = (first + t) % (tiles.down * tiles.right);
        const int64_t y = place / tiles.right * 2, w = place % tiles.right * 2;
        with_pixels<4>(map, image, y - s.top, w - s.left, [&](auto&& get) __attribute__((always_inline)) {
          over_vectors(s.in, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            float* to = before.get() + (c / kPanel * some + t) * kPanel + c % kPanel;
            unroll<4>([&](auto i) __attribute__((always_inline)) {
              Vec columns[4];
              unroll<4>([&](auto j) __attribute__((always_inline)) {
                columns[j] = of_input<i>([&](auto k) __attribute__((always_inline)) { return get(k, j, c, lanes); });
              });
              unroll<4>([&](auto j) __attribute__((always_inline)) {
                store(to + (4 * i + j) * plane,
                      of_input<j>([&](auto k) __attribute__((always_inline)) { return columns[k]; }));
              });
            });
          });
        });
        with_pixels<2>(outer, image, y, w, [&](auto&& get) __attribute__((always_inline)) {
          over_vectors(s.out, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            float* to = behind.get() + t * back + c;
            unroll<4>([&](auto i) __attribute__((always_inline)) {
              Vec columns[2];
              unroll<2>([&](auto j) __attribute__((always_inline)) {
                columns[j] = of_gradient<i>([&](auto k) __attribute__((always_inline)) { return get(k, j, c, lanes); });
              });
              unroll<4>([&](auto j) __attribute__((always_inline)) {
                store(to + (4 * i + j) * back_plane,
                      of_gradient<j>([&](auto k) __attribute__((always_inline)) { return columns[k]; }));
              });
            });
          });
        });
      }
      for (int point = 0; point < kPoints; ++point)
        for (int64_t panel = 0; panel < panels; ++panel) {
          const float* factors = before.get() + point * plane + panel * some * kPanel;
          float* to = total + point * sums_plane + panel * s.out * kPanel;
          const bool narrow = s.in - panel * kPanel <= kLanes;
          in_tiles(s.out, [&](int64_t c, auto rows) {
            const auto call = narrow ? correlate<rows, 1> : correlate<rows, kWide>;
            call(behind.get() + point * back_plane + c, back, count, factors, to + c * kPanel);
          });
        }
    }
  });
  if (failed.load()) return 1;
  for (int64_t c = 0; c < s.out; ++c)
    over_vectors(s.in, [&](int64_t k, int lanes) {
      const int64_t at = (k / kPanel * s.out + c) * kPanel + k % kPanel;
      Vec columns[3][4];
      unroll<4>([&](auto j) {
        Vec points[4] = {};
        for (int64_t share = 0; share < shares; ++share)
          unroll<4>([&](auto i) {
            points[i] += load(totals.get() + share * sums + (4 * i + j) * sums_plane + at);
          });
        unroll<3>([&](auto i) { columns[i][j] = to_weight<i>(points); });
      });
      unroll<3>([&](auto i) {
        unroll<3>([&](auto j) {
          store_some(out + (c * 9 + 3 * i + j) * s.in + k, to_weight<j>(columns[i]), lanes);
        });
      });
    });
  return 0;
}

}  // namespace
}  // namespace diastole

// Images are [image][row][column][channel], weights and their gradients [out][row][column][in]. `shape` points at the
// thirteen numbers of `Shape`; kernels are 3x3, strides 1, and padding is at most 2.
DIASTOLE_EXPORT int diastole_winograd_forward_f32(const float* x, const float* weight, float* out,
                                                  const diastole::Shape* shape, int threads) {
  const diastole::Shape& s = *shape;
  const diastole::Tiles tiles(s.images, s.height, s.width, s.top, s.left);
  return diastole::convolve(x, weight, out, tiles, s.in, s.out, false, threads);
}

DIASTOLE_EXPORT int diastole_winograd_grad_input_f32(const float* gradient, const float* weight, float* out,
                                                     const diastole::Shape* shape, int threads) {
  const diastole::Shape& s = *shape;
  const diastole::Tiles tiles(s.images, s.out_height, s.out_width, 2 - s.top, 2 - s.left);
  return diastole::convolve(gradient, weight, out, tiles, s.out, s.in, true, threads);
}

DIASTOLE_EXPORT int diastole_winograd_grad_weight_f32(const float* gradient, const float* x, float* out,
                                                      const diastole::Shape* shape, int threads) {
  return diastole::grad_weight(gradient, x, out, *shape, threads);
}

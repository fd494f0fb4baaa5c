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

// Maps [image][row][column][channel].
struct Map {
  const float* x;
  int64_t height, width, channels;

  const float* at(int64_t image, int64_t y, int64_t w) const { return x + ((image * height + y) * width + w) * channels; }
};

// A square of pixels of which whole vectors of channels may be read: of a map, floats from row to row and to column ...
struct Inside {
  const float* first;
  int64_t row, column;
  DIASTOLE_INLINE const float* at(int i, int j) const { return first + i * row + j * column; }
};

// ... or wherever each of them is.
struct Pixels {
  const float* of[4][4];
  DIASTOLE_INLINE const float* at(int i, int j) const { return of[i][j]; }
};

// Call f(square) for the square of `Side` pixels from (y, w) on. Outside of the map are zeros; pixels that end with part
// of a vector are copied. `memory` holds as many vectors of zeros as a pixel has, and room for all pixels.
template <int Side, class F>
DIASTOLE_INLINE void with_square(const Map& map, int64_t image, int64_t y, int64_t w, float* memory, F&& f) {
  const bool whole = map.channels % kLanes == 0;
  if (whole && y >= 0 && y + Side <= map.height && w >= 0 && w + Side <= map.width)
    return f(Inside{map.at(image, y, w), map.width * map.channels, map.channels});
  Pixels pixels;
  float* copy = memory + padded(map.channels);
  for (int i = 0; i < Side; ++i)
    for (int j = 0; j < Side; ++j) {
      const bool inside = y + i >= 0 && y + i < map.height && w + j >= 0 && w + j < map.width;
      const float* from = inside ? map.at(image, y + i, w + j) : memory;
      if (inside && !whole) {
        for (int64_t c = 0; c < map.channels; c += kLanes)
          store(copy + c, load_some(from + c, static_cast<int>(lesser(map.channels - c, kLanes))));
        from = copy, copy += padded(map.channels);
      }
      pixels.of[i][j] = from;
    }
  f(pixels);
}

// Loops below are unrolled, and no closures: those took three times as long to compile.

// Along one axis, four values of an input become four; two of an output's gradient, and three taps, do as well.
DIASTOLE_INLINE void of_input(const Vec* x, Vec* y) { y[0] = x[0] - x[2], y[1] = x[1] + x[2], y[2] = x[2] - x[1], y[3] = x[1] - x[3]; }
DIASTOLE_INLINE void of_gradient(const Vec* g, Vec* y) { y[0] = g[0], y[1] = g[0] + g[1], y[2] = g[0] - g[1], y[3] = -g[1]; }
DIASTOLE_INLINE void of_weight(const Vec* w, Vec* y) {
  y[0] = w[0], y[1] = 0.5f * (w[0] + w[1] + w[2]), y[2] = 0.5f * (w[0] - w[1] + w[2]), y[3] = w[2];
}

// Along one axis, the products of four values become two outputs; those of a gradient become that of three taps.
DIASTOLE_INLINE void to_output(const Vec* p, Vec* y) { y[0] = p[0] + p[1] + p[2], y[1] = p[1] - p[2] - p[3]; }
DIASTOLE_INLINE void to_weight(const Vec* p, Vec* w) {
  w[0] = p[0] + 0.5f * (p[1] + p[2]), w[1] = 0.5f * (p[1] - p[2]), w[2] = p[3] + 0.5f * (p[1] + p[2]);
}

// A tile of an input as 16 values for each channel, `plane` floats apart; panels of channels lie `panel` floats apart.
template <class Square>
void enter(const Square& tile, int64_t channels, float* to, int64_t panel, int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    float* out = to + c / kPanel * panel + c % kPanel;
    // Rows are read again for each of the four, because 16 vectors and what is made of them do not fit into registers.
    const auto row = [&](int one, int other, bool more) __attribute__((always_inline)) {
      Vec columns[4], values[4];
      DIASTOLE_UNROLL for (int j = 0; j < 4; ++j) {
        const Vec a = load(tile.at(one, j) + c), b = load(tile.at(other, j) + c);
        columns[j] = more ? a + b : a - b;
      }
      of_input(columns, values);
      DIASTOLE_UNROLL for (int j = 0; j < 4; ++j, out += plane) store(out, values[j]);
    };
    row(0, 2, false), row(1, 2, true), row(2, 1, false), row(1, 3, false);
  }
}

// A 2x2 tile of an output's gradient as 16 values for each channel.
template <class Square>
void enter_gradient(const Square& tile, int64_t channels, float* to, int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec rows[4][2];
    DIASTOLE_UNROLL for (int j = 0; j < 2; ++j) {
      const Vec g[2] = {load(tile.at(0, j) + c), load(tile.at(1, j) + c)};
      Vec column[4];
      of_gradient(g, column);
      DIASTOLE_UNROLL for (int i = 0; i < 4; ++i) rows[i][j] = column[i];
    }
    float* out = to + c;
    DIASTOLE_UNROLL for (int i = 0; i < 4; ++i) {
      Vec values[4];
      of_gradient(rows[i], values);
      DIASTOLE_UNROLL for (int j = 0; j < 4; ++j, out += plane) store(out, values[j]);
    }
  }
}

// 16 products for each channel as a 2x2 tile of outputs, of which only `low` and `wide` ones have a second row and column.
void leave(const float* from, int64_t plane, int64_t channels, float* to, int64_t row, bool low, bool wide) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int lanes = static_cast<int>(lesser(channels - c, kLanes));
    Vec rows[2][4], values[2];
    DIASTOLE_UNROLL for (int j = 0; j < 4; ++j) {
      Vec points[4];
      DIASTOLE_UNROLL for (int i = 0; i < 4; ++i) points[i] = load(from + c + (4 * i + j) * plane);
      to_output(points, values);
      rows[0][j] = values[0], rows[1][j] = values[1];
    }
    to_output(rows[0], values);
    store_some(to + c, values[0], lanes);
    if (wide) store_some(to + c + channels, values[1], lanes);
    if (!low) continue;
    to_output(rows[1], values);
    store_some(to + c + row, values[0], lanes);
    if (wide) store_some(to + c + row + channels, values[1], lanes);
  }
}

// Sums of `Rows` rows of `from` times a panel.
template <int Rows, int Wide>
void multiply(const float* from, int64_t row, int64_t deep, const float* panel, float* out, int64_t out_row) {
  Vec sums[Rows][Wide] = {};
  const float* at[Rows];
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) at[r] = from + r * row;
  for (int64_t k = 0; k < deep; ++k, panel += kPanel) {
    Vec factors[Wide];
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) factors[v] = load(panel + v * kLanes);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(at[r][k]);
      DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) sums[r][v] += value * factors[v];
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r)
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) store(out + r * out_row + v * kLanes, sums[r][v]);
}

// Add, to the sums of `Rows` channels that come back, their products with a panel of those that came in.
template <int Rows, int Wide>
void correlate(const float* back, int64_t row, int64_t count, const float* panel, float* total) {
  Vec sums[Rows][Wide] = {};
  for (int64_t t = 0; t < count; ++t, panel += kPanel, back += row) {
    Vec factors[Wide];
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) factors[v] = load(panel + v * kLanes);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(back[r]);
      DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) sums[r][v] += value * factors[v];
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r)
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) {
      float* to = total + r * kPanel + v * kLanes;
      store(to, load(to) + sums[r][v]);
    }
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
        Vec taps[9] = {}, rows[4][3], four[4];
        if (lanes > 0)
          for (int tap = 0; tap < 9; ++tap)
            taps[turned ? 8 - tap : tap] = taken(weight + channel * wide_step + k * deep_step + tap * in, lanes);
        DIASTOLE_UNROLL for (int j = 0; j < 3; ++j) {
          const Vec column[3] = {taps[j], taps[3 + j], taps[6 + j]};
          of_weight(column, four);
          DIASTOLE_UNROLL for (int i = 0; i < 4; ++i) rows[i][j] = four[i];
        }
        DIASTOLE_UNROLL for (int i = 0; i < 4; ++i) {
          of_weight(rows[i], four);
          DIASTOLE_UNROLL for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * plane, four[j]);
        }
      }
}

int convolve(const float* x, const float* weight, float* out, const Tiles& tiles, int64_t in, int64_t channels,
             bool turned, int threads) {
  const int64_t panels = panels_of(channels), row = padded(in), out_row = panels * kPanel;
  const int64_t some = tiles.some(row + out_row);
  // One panel more, so that the 16 do not lie in the same set of the cache.
  const int64_t plane = some * row + kPanel, out_plane = some * out_row + kPanel;
  const int64_t factors_plane = (panels * in + 1) * kPanel;
  const Scratch packed(kPoints * factors_plane);
  if (!packed.get()) return 1;
  pack(weight, turned ? channels : in, turned ? in : channels, turned, packed.get(), factors_plane);
  const Map map{x, tiles.height, tiles.width, in};
  const int64_t groups = (tiles.count() + some - 1) / some, parts = lesser(groups, kParts);
  std::atomic<int> failed{0};
  parallel(parts, threads, [&](int64_t part) {
    const Scratch before(kPoints * plane), after(kPoints * out_plane), copy((kPoints + 1) * row);
    if (!before.get() || !after.get() || !copy.get()) return failed.store(1);
    memset(copy.get(), 0, row * sizeof(float));
    for (int64_t group = part * groups / parts; group < (part + 1) * groups / parts; ++group) {
      const int64_t first = group * some, count = lesser(some, tiles.count() - first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t image = (first + t) / (tiles.down * tiles.right), place = (first + t) % (tiles.down * tiles.right);
        const int64_t y = place / tiles.right * 2 - tiles.top, w = place % tiles.right * 2 - tiles.left;
        with_square<4>(map, image, y, w, copy.get(), [&](const auto& tile) {
          enter(tile, in, before.get() + t * row, kPanel, plane);
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
        leave(after.get() + t * out_row, out_plane, channels, to, tiles.out_width * channels, low, wide);
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
  const Scratch totals(shares * sums);
  if (!totals.get()) return 1;
  const Map map{x, s.height, s.width, s.in}, outer{gradient, s.out_height, s.out_width, s.out};
  std::atomic<int> failed{0};
  parallel(shares, threads, [&](int64_t share) {
    const Scratch before(kPoints * plane), behind(kPoints * back_plane);
    const Scratch copy((kPoints + 1) * padded(s.in)), outer_copy(5 * back);
    if (!before.get() || !behind.get() || !copy.get() || !outer_copy.get()) return failed.store(1);
    memset(copy.get(), 0, padded(s.in) * sizeof(float));
    memset(outer_copy.get(), 0, back * sizeof(float));
    float* total = totals.get() + share * sums;
    memset(total, 0, sums * sizeof(float));
    for (int64_t group = share * groups / shares; group < (share + 1) * groups / shares; ++group) {
      const int64_t first = group * some, count = lesser(some, tiles.count() - first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t image = (first + t) / (tiles.down * tiles.right), place = (first + t) % (tiles.down * tiles.right);
        const int64_t y = place / tiles.right * 2, w = place % tiles.right * 2;
        with_square<4>(map, image, y - s.top, w - s.left, copy.get(), [&](const auto& tile) {
          enter(tile, s.in, before.get() + t * kPanel, some * kPanel, plane);
        });
        with_square<2>(outer, image, y, w, outer_copy.get(), [&](const auto& tile) {
          enter_gradient(tile, s.out, behind.get() + t * back, back_plane);
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
    for (int64_t k = 0; k < s.in; k += kLanes) {
      const float* from = totals.get() + (k / kPanel * s.out + c) * kPanel + k % kPanel;
      Vec points[kPoints] = {}, rows[3][4], three[3];
      for (int64_t share = 0; share < shares; ++share)
        for (int i = 0; i < kPoints; ++i) points[i] += load(from + share * sums + i * sums_plane);
      DIASTOLE_UNROLL for (int j = 0; j < 4; ++j) {
        const Vec column[4] = {points[j], points[4 + j], points[8 + j], points[12 + j]};
        to_weight(column, three);
        DIASTOLE_UNROLL for (int i = 0; i < 3; ++i) rows[i][j] = three[i];
      }
      const int lanes = static_cast<int>(lesser(s.in - k, kLanes));
      DIASTOLE_UNROLL for (int i = 0; i < 3; ++i) {
        to_weight(rows[i], three);
        for (int j = 0; j < 3; ++j) store_some(out + (c * 9 + 3 * i + j) * s.in + k, three[j], lanes);
      }
    }
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

// Convolution of channels-last images in window order, and its two gradients: any kernel, stride up to 8, any padding.
//
// For each row of outputs, the rows of inputs that it needs are laid out column by column, so that the window of an
// output is one contiguous range and neighbouring windows overlap in memory (Lu et al., "Im2win: Memory Efficient
// Convolution on SIMD Architectures", arXiv 2306.14320; channels last as in arXiv 2408.00278). Only some rows are laid
// out at a time, so that they stay in the cache; the rest is a matrix product. The gradient of the input is the same
// convolution of the gradient of the output, once for each phase of the stride.
#include "axis.h"
#include "parallel.h"
#include "tiles.h"

namespace diastole {
namespace {

constexpr int64_t kDeep = 384;   // terms of a sum between two visits to memory
constexpr int64_t kGroup = 48;   // outputs whose windows are laid out at once, at least
constexpr int64_t kSums = 32 * 1024;  // floats of sums of gradients that a part has, about
constexpr int64_t kParts = 64;

// Windows of some outputs: laid out in memory of its own, or where they are if they lie contiguous there.
class Windows {
 public:
  Windows(const float* x, int64_t height, int64_t width, int64_t channels, const Class& down, const Class& right)
      : x_(x), height_(height), width_(width), channels_(channels), down_(down), right_(right),
        span_(right.count ? (right.count - 1) * right.stride + right.taps : 0),
        in_place_(down.taps == 1 && right.source >= 0 && right.source + span_ <= width && down.source >= 0 &&
                  down.source + (down.count - 1) * down.stride < height) {}

  // Rows of outputs at once.
  int64_t rows() const { return right_.count ? (kGroup + right_.count - 1) / right_.count : 1; }
  int64_t length() const { return down_.taps * right_.taps * channels_; }
  size_t floats() const { return in_place_ ? 0 : rows() * span_ * down_.taps * channels_; }

  // Point `windows` at those of `count` rows of outputs, from row `row` of all images' rows on.
  void lay(int64_t row, int64_t count, float* memory, const float** windows) const {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t image = (row + r) / down_.count, top = down_.source + (row + r) % down_.count * down_.stride;
      const float* from = x_ + image * height_ * width_ * channels_;
      const float* start;
      if (in_place_) {
        start = from + (top * width_ + right_.source) * channels_;
      } else {
        float* to = memory + r * span_ * down_.taps * channels_;
        start = to;
        // Of few channels, four values are copied: those behind a pixel's are written over by the next pixel's.
        const int64_t channels = channels_, line = width_ * channels, all = height_ * line, taps = down_.taps;
        const int64_t last = channels <= 4 ? all - 4 : -1;
        for (int64_t w = right_.source; w < right_.source + span_; ++w) {
          const bool there = w >= 0 && w < width_;
          int64_t at = top * line + w * channels;
          for (int64_t y = 0; y < taps; ++y, to += channels, at += line) {
            const bool inside = there && at >= 0 && at < all;
            if (inside && at <= last)
              memcpy(to, from + at, 4 * sizeof(float));
            else
              copy(inside ? from + at : nullptr, to);
          }
        }
      }
      const int64_t step = right_.stride * channels_ * (in_place_ ? 1 : down_.taps);
      for (int64_t i = 0; i < right_.count; ++i) *windows++ = start + i * step;
    }
  }

 private:
  void copy(const float* from, float* to) const {
    int64_t c = 0;
    for (; c + kLanes <= channels_; c += kLanes) store(to + c, from ? load(from + c) : Vec{});
    for (; c < channels_; ++c) to[c] = from ? from[c] : 0;
  }

  const float* x_;
  int64_t height_, width_, channels_;
  Class down_, right_;
  int64_t span_;
  bool in_place_;
};

// Sums of `Rows` outputs over a part of their windows; `lanes` of `Wide` vectors are written, and added to if `more`.
template <int Rows, int Wide>
void multiply(const float* const* windows, int64_t at, int64_t deep, const float* panel, float* const* outs,
              int64_t channel, int lanes, bool more) {
  Vec sums[Rows][Wide] = {};
  const float* from[Rows];
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) from[r] = windows[r] + at;
  if (more)
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) sums[r][v] = load_some(outs[r] + channel + v * kLanes, lanes - v * kLanes);
    }
  for (int64_t k = 0; k < deep; ++k, panel += kPanel) {
    Vec factors[Wide];
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) factors[v] = load(panel + v * kLanes);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(from[r][k]);
      DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) sums[r][v] += value * factors[v];
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) store_some(outs[r] + channel + v * kLanes, sums[r][v], lanes - v * kLanes);
  }
}

// Add, to the gradients of `Rows` taps, those of `count` outputs, which lie `step` floats apart.
template <int Rows, int Wide>
void correlate(const float* const* windows, int64_t at, int64_t count, const float* gradients, int64_t step,
               float* total) {
  Vec sums[Rows][Wide] = {};
  for (int64_t j = 0; j < count; ++j, gradients += step) {
    Vec factors[Wide];
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) factors[v] = load(gradients + v * kLanes);
    const float* from = windows[j] + at;
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(from[r]);
      DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) sums[r][v] += value * factors[v];
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) {
      float* to = total + r * kPanel + v * kLanes;
      store(to, load(to) + sums[r][v]);
    }
  }
}

// One class of outputs: every `down.step`-th row and `right.step`-th column. `tap(v, u)` is where the weights
// [in][out] of the tap `v` columns and `u` rows into the window are.
template <class Tap>
int convolve(const float* x, int64_t height, int64_t width, int64_t in, float* out, int64_t out_height,
             int64_t out_width, int64_t channels, int64_t images, const Class& down, const Class& right, int threads,
             Tap&& tap) {
  const Windows windows(x, height, width, in, down, right);
  const int64_t panels = panels_of(channels), length = windows.length(), rows = images * down.count;
  const int64_t groups = (rows + windows.rows() - 1) / windows.rows(), parts = lesser(groups, kParts);
  const Scratch packed(panels * length * kPanel);
  if (!packed.get()) return 1;
  float* to = packed.get();
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t v = 0; v < right.taps; ++v)
      for (int64_t u = 0; u < down.taps; ++u) {
        const float* from = tap(v, u) + panel * kPanel;
        const int lanes = static_cast<int>(lesser(channels - panel * kPanel, kPanel));
        for (int64_t c = 0; c < in; ++c, from += channels, to += kPanel)
          for (int i = 0; i < kPanel; i += kLanes)
            store(to + i, lanes > i ? load_some(from + i, lanes - i) : Vec{});
      }
  std::atomic<int> failed{0};
  parallel(parts, threads, [&](int64_t part) {
    const Scratch scratch(windows.floats());
    const size_t most = windows.rows() * right.count * sizeof(float*) / sizeof(float);
    const Scratch pointers(2 * most);
    if (!scratch.get() || !pointers.get()) return failed.store(1);
    const float** from = reinterpret_cast<const float**>(pointers.get());
    float** to = reinterpret_cast<float**>(pointers.get() + most);
    for (int64_t group = part * groups / parts; group < (part + 1) * groups / parts; ++group) {
      const int64_t row = group * windows.rows(), some = lesser(windows.rows(), rows - row);
      windows.lay(row, some, scratch.get(), from);
      for (int64_t r = row, j = 0; r < row + some; ++r) {
        const int64_t y = r / down.count * out_height + down.first + r % down.count * down.step;
        for (int64_t i = 0; i < right.count; ++i)
          to[j++] = out + (y * out_width + right.first + i * right.step) * channels;
      }
      // Once where no tap meets an output: it is 0.
      for (int64_t at = 0; at == 0 || at < length; at += kDeep)
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t channel = panel * kPanel;
          const int lanes = static_cast<int>(lesser(channels - channel, kPanel));
          const float* weights = packed.get() + (panel * length + at) * kPanel;
          const int64_t deep = lesser(length - at, kDeep);
          in_tiles(some * right.count, [&](int64_t j, auto tile) {
            const auto call = lanes > kLanes ? multiply<tile, kWide> : multiply<tile, 1>;
            call(from + j, at, deep, weights, to + j, channel, lanes, at > 0);
          });
        }
    }
  });
  return failed.load();
}

int forward(const float* x, const float* weight, float* out, const Shape& s, int threads) {
  const Axis down = forward_axis(s.out_height, s.kernel_height, s.stride_down, s.top);
  const Axis right = forward_axis(s.out_width, s.kernel_width, s.stride_right, s.left);
  return convolve(x, s.height, s.width, s.in, out, s.out_height, s.out_width, s.out, s.images, down.of[0], right.of[0],
                  threads, [&](int64_t v, int64_t u) { return weight + (v * s.kernel_height + u) * s.in * s.out; });
}

int grad_input(const float* gradient, const float* weight, float* out, const Shape& s, int threads) {
  const Axis down = backward_axis(s.height, s.kernel_height, s.stride_down, s.top);
  const Axis right = backward_axis(s.width, s.kernel_width, s.stride_right, s.left);
  for (int64_t i = 0; i < down.classes; ++i)
    for (int64_t j = 0; j < right.classes; ++j) {
      const Class &v = down.of[i], &h = right.of[j];
      if (!v.count || !h.count) continue;
      const auto tap = [&](int64_t column, int64_t row) {
        return weight + (backward_tap(right, h.tap + column, s.stride_right) * s.kernel_height +
                         backward_tap(down, v.tap + row, s.stride_down)) * s.in * s.out;
      };
      if (convolve(gradient, s.out_height, s.out_width, s.out, out, s.height, s.width, s.in, s.images, v, h, threads,
                   tap))
        return 1;
    }
  return 0;
}

int grad_weight(const float* gradient, const float* x, float* out, const Shape& s, int threads) {
  const Class down = forward_axis(s.out_height, s.kernel_height, s.stride_down, s.top).of[0];
  const Class right = forward_axis(s.out_width, s.kernel_width, s.stride_right, s.left).of[0];
  const Windows windows(x, s.height, s.width, s.in, down, right);
  const int64_t panels = panels_of(s.out), length = windows.length();
  // A part takes all channels of an output, which lie in a row, unless sums over them are too many for the cache.
  const int64_t band = lesser(panels, kSums / (length * kPanel) + 1), bands = (panels + band - 1) / band;
  // Shares of the images, as many as keep all cores busy, whatever their number: the order of the sums is fixed.
  const int64_t shares = lesser((15 + bands) / bands, s.images);
  const Scratch totals(shares * panels * length * kPanel);
  if (!totals.get()) return 1;
  std::atomic<int> failed{0};
  parallel(shares * bands, threads, [&](int64_t part) {
    const int64_t share = part / bands, first = part % bands * band, end_panel = lesser(first + band, panels);
    const int64_t most = windows.rows() * right.count;
    const Scratch scratch(windows.floats()), pointers(most * sizeof(float*) / sizeof(float)), outer(most * kPanel);
    if (!scratch.get() || !pointers.get() || !outer.get()) return failed.store(1);
    const float** from = reinterpret_cast<const float**>(pointers.get());
    float* totals_of_share = totals.get() + share * panels * length * kPanel;
    memset(totals_of_share + first * length * kPanel, 0, (end_panel - first) * length * kPanel * sizeof(float));
    const int64_t end = (share + 1) * s.images / shares * down.count;
    for (int64_t row = share * s.images / shares * down.count; row < end; row += windows.rows()) {
      const int64_t some = lesser(windows.rows(), end - row), count = some * right.count;
      windows.lay(row, some, scratch.get(), from);
      for (int64_t panel = first; panel < end_panel; ++panel) {
        const int64_t channel = panel * kPanel;
        const int lanes = static_cast<int>(lesser(s.out - channel, kPanel));
        const float* gradients = gradient + row * right.count * s.out + channel;
        int64_t step = s.out;
        if (lanes % kLanes) {
          for (int64_t j = 0; j < count; ++j)
            for (int i = 0; i < lanes; i += kLanes)
              store(outer.get() + j * kPanel + i, load_some(gradients + j * step + i, lanes - i));
          gradients = outer.get(), step = kPanel;
        }
        in_tiles(length, [&](int64_t k, auto tile) {
          const auto call = lanes > kLanes ? correlate<tile, kWide> : correlate<tile, 1>;
          call(from, k, count, gradients, step, totals_of_share + (panel * length + k) * kPanel);
        });
      }
    }
  });
  if (failed.load()) return 1;
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t k = 0; k < length; ++k)
      for (int v = 0; v < kWide; ++v) {
        Vec sum = {};
        for (int64_t share = 0; share < shares; ++share)
          sum += load(totals.get() + ((share * panels + panel) * length + k) * kPanel + v * kLanes);
        const int64_t channel = panel * kPanel + v * kLanes;
        if (channel < s.out)
          store_some(out + k * s.out + channel, sum, static_cast<int>(lesser(s.out - channel, kLanes)));
      }
  return 0;
}

}  // namespace
}  // namespace diastole

// Images are [image][row][column][channel], weights and their gradients [column][row][in][out], for the gradient of the
// input [column][row][out][in]. `shape` points at the thirteen numbers of `Shape`.
DIASTOLE_EXPORT int diastole_window_forward_f32(const float* x, const float* weight, float* out,
                                                const diastole::Shape* shape, int threads) {
  return diastole::forward(x, weight, out, *shape, threads);
}

DIASTOLE_EXPORT int diastole_window_grad_input_f32(const float* gradient, const float* weight, float* out,
                                                   const diastole::Shape* shape, int threads) {
  return diastole::grad_input(gradient, weight, out, *shape, threads);
}

DIASTOLE_EXPORT int diastole_window_grad_weight_f32(const float* gradient, const float* x, float* out,
                                                    const diastole::Shape* shape, int threads) {
  return diastole::grad_weight(gradient, x, out, *shape, threads);
}

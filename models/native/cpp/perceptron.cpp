// Two 1x1 convolutions of channels-last maps with GELU between them, plus what is added to them: the second half of a
// ConvNeXt's block; forward, and all gradients at once.
//
// Some pixels are taken at a time, so that all that is made of them stays in the cache; of the wide map between the two,
// only what went into GELU is written, for the gradients. While it is worked on, a map lies in panels of kPanel channels,
// [panel][pixel][kPanel], zeros behind the last channel: whatever is multiplied then lies in a row.
#include "normal.h"
#include "parallel.h"
#include "tiles.h"

namespace diastole {
namespace {

constexpr int64_t kPixels = 3072 / kPanel;  // taken at a time
constexpr int64_t kDeep = 64 / kPanel;      // panels between two visits to sums over channels
constexpr int64_t kPlane = kPixels * kPanel;
constexpr int64_t kParts = 64, kShares = 8;

struct Sizes {
  int64_t pixels, outside, inside;  // channels

  int64_t tiles() const { return (pixels + kPixels - 1) / kPixels; }
  int64_t outer() const { return panels_of(outside); }
  int64_t inner() const { return panels_of(inside); }
};

// Begin with `start`, `step` floats a row (0 for the same in each), and add `deep` channels of `Rows` pixels times a panel.
template <int Rows>
void multiply(const float* from, int64_t deep, const float* panel, const float* start, int64_t step, float* out) {
  Vec sums[Rows][kWide];
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) { DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) sums[r][v] = load(start + r * step + v * kLanes); }
  for (; deep > 0; deep -= kPanel, from += kPlane)
    for (int64_t k = 0, some = lesser(deep, kPanel); k < some; ++k, panel += kPanel) {
      Vec factors[kWide];
      DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) factors[v] = load(panel + v * kLanes);
      DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
        const Vec value = splat(from[r * kPanel + k]);
        DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) sums[r][v] += value * factors[v];
      }
    }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) { DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) store(out + r * kPanel + v * kLanes, sums[r][v]); }
}

void multiply(const float* from, int64_t deep, const float* panel, const float* start, int64_t step, float* out,
              int64_t count) {
  in_tiles(count, [&](int64_t row, auto rows) {
    multiply<rows>(from + row * kPanel, deep, panel, start + row * step, step, out + row * kPanel);
  });
}

// Add, to the sums of `Rows` channels of one panel, `row` floats apart, their products with another over `count` pixels.
template <int Rows>
void correlate(const float* one, const float* other, int64_t count, float* total, int64_t row) {
  Vec sums[Rows][kWide] = {};
  for (int64_t p = 0; p < count; ++p, one += kPanel, other += kPanel) {
    Vec factors[kWide];
    DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) factors[v] = load(other + v * kLanes);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(one[r]);
      DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) sums[r][v] += value * factors[v];
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
    DIASTOLE_UNROLL for (int v = 0; v < kWide; ++v) {
      float* to = total + r * row + v * kLanes;
      store(to, load(to) + sums[r][v]);
    }
  }
}

// Bring `count` pixels into panels, and back with what is added, if anything.
void lay(const float* from, int64_t channels, int64_t count, float* to) {
  for (int64_t c = 0; c < channels; c += kPanel, to += kPlane)
    for (int64_t p = 0; p < count; ++p)
      for (int v = 0; v < kPanel; v += kLanes)
        store(to + p * kPanel + v, load_some(from + p * channels + c + v, static_cast<int>(lesser(channels - c - v, kLanes))));
}

void bring_back(const float* from, const float* added, int64_t channels, int64_t count, float* to) {
  for (int64_t c = 0; c < channels; c += kPanel, from += kPlane)
    for (int64_t p = 0; p < count; ++p)
      for (int v = 0; v < kPanel; v += kLanes) {
        const int lanes = static_cast<int>(lesser(channels - c - v, kLanes));
        const int64_t at = p * channels + c + v;
        const Vec value = load(from + p * kPanel + v);
        store_some(to + at, added && lanes > 0 ? value + load_some(added + at, lanes) : value, lanes);
      }
}

// A matrix of `deep` times `wide`, of given steps, as [panel of wide][deep][kPanel]; a vector is one of `deep` 1.
void pack(const float* matrix, int64_t deep, int64_t deep_step, int64_t wide, int64_t wide_step, float* to) {
  for (int64_t panel = 0; panel < wide; panel += kPanel)
    for (int64_t k = 0; k < deep; ++k)
      for (int64_t i = panel; i < panel + kPanel; ++i)
        *to++ = matrix && i < wide ? matrix[k * deep_step + i * wide_step] : 0.0f;
}

int forward(const float* x, const float* added, const float* widen, const float* bias, const float* narrow,
            const float* last, float* kept, float* out, const Sizes& s, int threads) {
  const int64_t outer = s.outer(), inner = s.inner(), parts = lesser(s.tiles(), kParts);
  const Scratch packed(inner * kPanel * (s.outside + 1) + outer * kPanel * (s.inside + 1));
  if (!packed.get()) return 1;
  float *first = packed.get(), *second = first + inner * kPanel * s.outside;
  float *biases = second + outer * kPanel * s.inside, *lasts = biases + inner * kPanel;
  pack(widen, s.outside, 1, s.inside, s.outside, first);
  pack(narrow, s.inside, 1, s.outside, s.inside, second);
  pack(bias, 1, 0, s.inside, 1, biases);
  pack(last, 1, 0, s.outside, 1, lasts);
  std::atomic<int> failed{0};
  parallel(parts, threads, [&](int64_t part) {
    const Scratch scratch((2 * outer + kDeep) * kPlane);
    if (!scratch.get()) return failed.store(1);
    float *in = scratch.get(), *sums = in + outer * kPlane, *active = sums + outer * kPlane;
    for (int64_t tile = part * s.tiles() / parts; tile < (part + 1) * s.tiles() / parts; ++tile) {
      const int64_t pixel = tile * kPixels, count = lesser(kPixels, s.pixels - pixel);
      lay(x + pixel * s.outside, s.outside, count, in);
      for (int64_t block = 0; block < inner; block += kDeep) {
        const int64_t some = lesser(kDeep, inner - block), deep = lesser(some * kPanel, s.inside - block * kPanel);
        for (int64_t i = 0; i < some; ++i) {
          float* wide = kept + (tile * inner + block + i) * kPlane;
          multiply(in, s.outside, first + (block + i) * s.outside * kPanel, biases + (block + i) * kPanel, 0, wide, count);
          for (int64_t at = 0; at < count * kPanel; at += kLanes) {
            const auto value = load<kLanes>(wide + at);
            store<kLanes>(active + i * kPlane + at, value * Normal<kLanes>(value).below);
          }
        }
        for (int64_t c = 0; c < outer; ++c) {
          float* sum = sums + c * kPlane;
          multiply(active, deep, second + (c * s.inside + block * kPanel) * kPanel, block ? sum : lasts + c * kPanel,
                   block ? kPanel : 0, sum, count);
        }
      }
      bring_back(sums, added ? added + pixel * s.outside : nullptr, s.outside, count, out + pixel * s.outside);
    }
  });
  return failed.load();
}

// Sums over a share of the pixels: gradients of both weights, in panels of their last axis, and of both biases.
struct Totals {
  int64_t outer, inner;
  float *widen, *narrow, *bias, *last;

  static int64_t floats(const Sizes& s) {
    const int64_t outer = s.outer() * kPanel, inner = s.inner() * kPanel;
    return 2 * outer * inner + outer + inner;
  }
  Totals(float* memory, const Sizes& s) : outer(s.outer() * kPanel), inner(s.inner() * kPanel) {
    widen = memory, narrow = widen + inner * outer, bias = narrow + outer * inner, last = bias + inner;
  }
};

void add_rows(const float* panel, int64_t count, float* sum) {
  for (int v = 0; v < kPanel; v += kLanes) {
    Vec total = {};
    for (int64_t p = 0; p < count; ++p) total += load(panel + p * kPanel + v);
    store(sum + v, load(sum + v) + total);
  }
}

int backward(const float* gradient, const float* x, const float* kept, const float* widen, const float* narrow,
             float* to_x, float* to_widen, float* to_bias, float* to_narrow, float* to_last, const Sizes& s,
             int threads) {
  const int64_t outer = s.outer(), inner = s.inner(), shares = lesser(s.tiles(), kShares), each = Totals::floats(s);
  const Scratch packed(inner * kPanel * s.outside + outer * kPanel * s.inside), sums(shares * each);
  const Scratch zeros(kPanel);
  if (!packed.get() || !sums.get() || !zeros.get()) return 1;
  float *first = packed.get(), *second = first + inner * kPanel * s.outside;
  pack(narrow, s.outside, s.inside, s.inside, 1, first);
  pack(widen, s.inside, s.outside, s.outside, 1, second);
  memset(zeros.get(), 0, kPanel * sizeof(float));
  std::atomic<int> failed{0};
  // A fixed number of shares, whatever that of threads: the order of the sums is fixed.
  parallel(shares, threads, [&](int64_t share) {
    const Scratch scratch((3 * outer + 2 * kDeep) * kPlane);
    if (!scratch.get()) return failed.store(1);
    float *in = scratch.get(), *above = in + outer * kPlane, *back = above + outer * kPlane;
    float *active = back + outer * kPlane, *wide = active + kDeep * kPlane;
    const Totals total(sums.get() + share * each, s);
    memset(total.widen, 0, each * sizeof(float));
    for (int64_t tile = share * s.tiles() / shares; tile < (share + 1) * s.tiles() / shares; ++tile) {
      const int64_t pixel = tile * kPixels, count = lesser(kPixels, s.pixels - pixel);
      lay(x + pixel * s.outside, s.outside, count, in);
      lay(gradient + pixel * s.outside, s.outside, count, above);
      for (int64_t c = 0; c < outer; ++c) add_rows(above + c * kPlane, count, total.last + c * kPanel);
      for (int64_t block = 0; block < inner; block += kDeep) {
        const int64_t some = lesser(kDeep, inner - block), deep = lesser(some * kPanel, s.inside - block * kPanel);
        for (int64_t i = 0; i < some; ++i) {
          const int64_t channel = (block + i) * kPanel;
          const float* before = kept + (tile * inner + block + i) * kPlane;
          float *one = wide + i * kPlane, *result = active + i * kPlane;
          multiply(above, s.outside, first + channel * s.outside, zeros.get(), 0, one, count);
          for (int64_t at = 0; at < count * kPanel; at += kLanes) {
            const auto value = load<kLanes>(before + at);
            const Normal<kLanes> normal(value);
            store<kLanes>(result + at, value * normal.below);
            store<kLanes>(one + at, load<kLanes>(one + at) * (normal.below + value * normal.density));
          }
          add_rows(one, count, total.bias + channel);
          for (int64_t c = 0; c < outer; ++c) {
            in_tiles(lesser(kPanel, s.inside - channel), [&](int64_t row, auto rows) {
              correlate<rows>(one + row, in + c * kPlane, count,
                              total.widen + (channel + row) * total.outer + c * kPanel, total.outer);
            });
            in_tiles(lesser(kPanel, s.outside - c * kPanel), [&](int64_t row, auto rows) {
              correlate<rows>(above + c * kPlane + row, result, count,
                              total.narrow + (c * kPanel + row) * total.inner + channel, total.inner);
            });
          }
        }
        for (int64_t c = 0; c < outer; ++c) {
          float* sum = back + c * kPlane;
          multiply(wide, deep, second + (c * s.inside + block * kPanel) * kPanel, block ? sum : zeros.get(),
                   block ? kPanel : 0, sum, count);
        }
      }
      bring_back(back, nullptr, s.outside, count, to_x + pixel * s.outside);
    }
  });
  if (failed.load()) return 1;
  for (int64_t share = 1; share < shares; ++share)
    for (int64_t i = 0; i < each; i += kLanes) {
      float* sum = sums.get() + i;
      store(sum, load(sum) + load(sum + share * each));
    }
  const Totals total(sums.get(), s);
  for (int64_t i = 0; i < s.inside; ++i)
    memcpy(to_widen + i * s.outside, total.widen + i * total.outer, s.outside * sizeof(float));
  for (int64_t o = 0; o < s.outside; ++o)
    memcpy(to_narrow + o * s.inside, total.narrow + o * total.inner, s.inside * sizeof(float));
  memcpy(to_bias, total.bias, s.inside * sizeof(float));
  memcpy(to_last, total.last, s.outside * sizeof(float));
  return 0;
}

}  // namespace
}  // namespace diastole

// Floats that `kept` must hold, in multiples of 1,024.
DIASTOLE_EXPORT int diastole_perceptron_kept_f32(int64_t pixels, int64_t inside) {
  const diastole::Sizes s{pixels, 1, inside};
  return static_cast<int>((s.tiles() * s.inner() * diastole::kPlane + 1023) / 1024);
}

// Maps are [pixel][outside], `widen` [inside][outside] and `narrow` [outside][inside]; `added` and biases may be null.
DIASTOLE_EXPORT int diastole_perceptron_f32(const float* x, const float* added, const float* widen, const float* bias,
                                            const float* narrow, const float* last, float* kept, float* out,
                                            int64_t pixels, int64_t outside, int64_t inside, int threads) {
  return diastole::forward(x, added, widen, bias, narrow, last, kept, out, {pixels, outside, inside}, threads);
}

DIASTOLE_EXPORT int diastole_perceptron_backward_f32(const float* gradient, const float* x, const float* kept,
                                                     const float* widen, const float* narrow, float* to_x,
                                                     float* to_widen, float* to_bias, float* to_narrow, float* to_last,
                                                     int64_t pixels, int64_t outside, int64_t inside, int threads) {
  return diastole::backward(gradient, x, kept, widen, narrow, to_x, to_widen, to_bias, to_narrow, to_last,
                            {pixels, outside, inside}, threads);
}

// Depthwise convolution of channels-last images and its two gradients: k = 3, 5, 7, stride 1 or 2.
//
// A unit of work is an image and as many channels as a vector has lanes. A ring of k zero-padded rows of it, as float32
// and contiguous, is kept; registers hold 8 outputs and the k taps of a row, and the inputs slide past them (after
// Snytsar, "Accelerating Machine Learning Primitives on Commodity Hardware", arXiv 2310.05218, but across channels).
#include "axis.h"
#include "parallel.h"

namespace diastole {
namespace {

constexpr int kTile = 8;
constexpr int64_t kParts = 64;

struct Shape {
  int64_t images, channels, height, width, out_height, out_width, kernel, stride, top, left;
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
};

// The latest rows of one image and block of channels, as vectors, with zeros on the left and on the right.
template <class T>
class Ring {
 public:
  // Of a power of two of slots, which need no division.
  static int64_t slots(int64_t rows) { return rows == 1 ? 1 : rows == 3 ? 4 : 8; }
  static size_t floats(int64_t rows, int64_t length) { return (slots(rows) + 1) * length * kLanes; }

  // `length` is in vectors; a row's first value stands at `left`.
  Ring(float* memory, int64_t rows, int64_t length, int64_t left)
      : memory_(memory), slots_(slots(rows)), length_(length), left_(left) {
    memset(memory, 0, floats(rows, length) * sizeof(float));
  }

  void begin(const T* image, int64_t height, int64_t width, int64_t channels, int lanes) {
    image_ = image, height_ = height, width_ = width, channels_ = channels, lanes_ = lanes, next_ = 0;
  }

  // A row, zeros where the image has none; asked for in rising order, `rows` of them at a time.
  const float* row(int64_t y) {
    if (y < 0 || y >= height_) return memory_ + slots_ * length_ * kLanes;
    for (; next_ <= y; ++next_)
      if (next_ > y - slots_) fill(next_);
    return slot(y);
  }

 private:
  float* slot(int64_t y) { return memory_ + (y & (slots_ - 1)) * length_ * kLanes; }

  void fill(int64_t y) {
    const T* from = image_ + y * width_ * channels_;
    float* to = slot(y) + left_ * kLanes;
    if (lanes_ == kLanes)
      for (int64_t x = 0; x < width_; ++x) store(to + x * kLanes, load(from + x * channels_));
    else
      for (int64_t x = 0; x < width_; ++x) store(to + x * kLanes, load_some(from + x * channels_, lanes_));
  }

  float* memory_;
  int64_t slots_, length_, left_;
  const T* image_ = nullptr;
  int64_t height_ = 0, width_ = 0, channels_ = 0, next_ = 0;
  int lanes_ = 0;
};

// What outputs of one row are made from: `count` rows, from vector `at` on, times taps, `step` floats a row.
struct Source {
  const float* rows[7];
  int64_t count, at;
  const float* taps;
  int64_t step;
};

// Outputs of one row: `tiles` times `Tile` of them, `step` floats apart, each from `Taps` neighbours in every row.
template <int Tile, int Taps, int Stride>
void slide(const Source& from, float* out, int64_t step, int64_t tiles) {
  for (int64_t at = from.at; tiles > 0; --tiles, at += Tile * Stride, out += Tile * step) {
    Vec sums[Tile] = {};
    for (int64_t r = 0; r < from.count; ++r) {
      const float* row = from.rows[r] + at * kLanes;
      const float* weights = from.taps + r * from.step;
      Vec tap[Taps];
      DIASTOLE_UNROLL for (int t = 0; t < Taps; ++t) tap[t] = load(weights + t * kLanes);
      // Each value is read once, and added to the outputs that it is a neighbour of.
      DIASTOLE_UNROLL for (int i = 0; i < (Tile - 1) * Stride + Taps; ++i) {
        const Vec value = load(row + i * kLanes);
        DIASTOLE_UNROLL for (int t = 0; t < Taps; ++t) {
          const int before = i - t, j = before / Stride;
          if (before >= 0 && before % Stride == 0 && j < Tile) sums[j] += value * tap[t];
        }
      }
    }
    DIASTOLE_UNROLL for (int j = 0; j < Tile; ++j) store(out + j * step, sums[j]);
  }
}

using Slide = void (*)(const Source&, float*, int64_t, int64_t);

// Of tiles of 1, 4 and 8.
template <int Taps, int Stride>
constexpr Slide kSlides[] = {slide<1, Taps, Stride>, slide<4, Taps, Stride>, slide<kTile, Taps, Stride>};

const Slide* slides(int64_t taps, int64_t stride) {
  if (stride == 2) return taps == 3 ? kSlides<3, 2> : taps == 5 ? kSlides<5, 2> : kSlides<7, 2>;
  switch (taps) {
    case 1: return kSlides<1, 1>;
    case 2: return kSlides<2, 1>;
    case 3: return kSlides<3, 1>;
    case 4: return kSlides<4, 1>;
    case 5: return kSlides<5, 1>;
    default: return kSlides<7, 1>;
  }
}

// One class of outputs of one row: whole vectors of floats are written in place, others through a buffer.
template <class T>
void line(const Slide* slides, Source from, int64_t stride, T* out, int64_t step, int64_t count, int lanes) {
  const int64_t size = count >= kTile ? kTile : count >= 4 ? 4 : 1;
  const Slide slide = slides[size / 4];
  if constexpr (sizeof(T) == sizeof(float)) {
    if (lanes == kLanes) {
      slide(from, out, step, count / size);
      // The last tile begins early enough to be whole: what it shares with the one before is the same.
      from.at += (count - size) * stride;
      if (count % size) slide(from, out + (count - size) * step, step, 1);
      return;
    }
  }
  const int64_t start = from.at;
  for (int64_t done = 0; done < count; done += size) {
    const int64_t first = done + size <= count ? done : count - size;
    alignas(64) float buffer[kTile * kLanes];
    from.at = start + first * stride;
    slide(from, buffer, kLanes, 1);
    for (int j = 0; j < size; ++j) store_some(out + (first + j) * step, load(buffer + j * kLanes), lanes);
  }
}

// Sum, for every output, its sources times its taps; `packed` is [block][row of taps][tap][lane].
template <class T>
int convolve(const T* x, const float* packed, T* out, int64_t images, int64_t channels, int64_t kernel,
             const Axis& down, int64_t height, int64_t out_height, const Axis& right, int64_t width, int64_t out_width,
             int threads) {
  const int64_t blocks = (channels + kLanes - 1) / kLanes, units = images * blocks;
  const int64_t parts = units < kParts ? units : kParts;
  const int64_t left = kernel - 1;
  int64_t length = left + width;
  for (int64_t k = 0; k < right.classes; ++k) {
    const Class& c = right.of[k];
    const int64_t end = left + c.source + (c.count - 1) * c.stride + c.taps;
    if (end > length) length = end;
  }
  const Slide* by_tile[2] = {};
  for (int64_t k = 0; k < right.classes; ++k) by_tile[k] = slides(right.of[k].taps, right.of[k].stride);
  std::atomic<int> failed{0};
  parallel(parts, threads, [&](int64_t part) {
    const Scratch scratch(Ring<T>::floats(kernel, length));
    if (!scratch.get()) return failed.store(1);
    Ring<T> ring(scratch.get(), kernel, length, left);
    for (int64_t unit = part * units / parts; unit < (part + 1) * units / parts; ++unit) {
      const int64_t image = unit / blocks, block = unit % blocks, channel = block * kLanes;
      const int lanes = static_cast<int>(channels - channel < kLanes ? channels - channel : kLanes);
      const float* taps = packed + block * kernel * kernel * kLanes;
      ring.begin(x + image * height * width * channels + channel, height, width, channels, lanes);
      for (int64_t y = 0; y < out_height; ++y) {
        const Class& v = down.at(y);
        const int64_t source = v.source + ((y - v.first) >> (v.step - 1)) * v.stride;
        const int64_t before = source < 0 ? -source : 0;
        const int64_t inside = height - source < v.taps ? height - source : v.taps;
        Source from{{}, inside - before, 0, nullptr, kernel * kLanes};
        for (int64_t r = before; r < inside; ++r) from.rows[r - before] = ring.row(source + r);
        T* start = out + (image * out_height + y) * out_width * channels + channel;
        for (int64_t k = 0; k < right.classes; ++k) {
          const Class& h = right.of[k];
          from.at = left + h.source;
          from.taps = taps + ((v.tap + before) * kernel + h.tap) * kLanes;
          line(by_tile[k], from, h.stride, start + h.first * channels, h.step * channels, h.count, lanes);
        }
      }
    }
  });
  return failed.load();
}

// Lay taps [tap][channel] out as [block][tap][lane], in another order of taps.
template <class Order>
void pack(const float* taps, float* packed, const Shape& s, Order&& order) {
  for (int64_t block = 0; block < s.blocks(); ++block)
    for (int64_t place = 0; place < s.kernel * s.kernel; ++place, packed += kLanes) {
      const int64_t channel = block * kLanes, left = s.channels - channel;
      const float* from = taps + order(place) * s.channels + channel;
      store(packed, load_some(from, left < kLanes ? static_cast<int>(left) : kLanes));
    }
}

template <class T>
int forward(const T* x, const float* taps, T* out, const Shape& s, int threads) {
  const Scratch packed(s.blocks() * s.kernel * s.kernel * kLanes);
  if (!packed.get()) return 1;
  pack(taps, packed.get(), s, [](int64_t place) { return place; });
  return convolve(x, packed.get(), out, s.images, s.channels, s.kernel,
                  forward_axis(s.out_height, s.kernel, s.stride, s.top), s.height, s.out_height,
                  forward_axis(s.out_width, s.kernel, s.stride, s.left), s.width, s.out_width, threads);
}

template <class T>
int grad_input(const T* gradient, const float* taps, T* out, const Shape& s, int threads) {
  const Scratch packed(s.blocks() * s.kernel * s.kernel * kLanes);
  if (!packed.get()) return 1;
  const Axis down = backward_axis(s.height, s.kernel, s.stride, s.top);
  const Axis right = backward_axis(s.width, s.kernel, s.stride, s.left);
  pack(taps, packed.get(), s, [&](int64_t place) {
    return backward_tap(down, place / s.kernel, s.stride) * s.kernel +
           backward_tap(right, place % s.kernel, s.stride);
  });
  return convolve(gradient, packed.get(), out, s.images, s.channels, s.kernel, down, s.out_height, s.height, right,
                  s.out_width, s.width, threads);
}

// Add, to the gradients of `Rows` rows of `Taps` taps, those of one row of outputs: `count` of them, a multiple of Tile.
template <int Rows, int Taps, int Stride, int Tile>
DIASTOLE_INLINE void gather(const float* const* rows, const float* gradient, int64_t count, float* sums) {
  Vec sum[Rows][Taps];
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r)
    DIASTOLE_UNROLL for (int t = 0; t < Taps; ++t) sum[r][t] = load(sums + (r * Taps + t) * kLanes);
  for (int64_t at = 0; at < count; at += Tile) {
    Vec outer[Tile];
    DIASTOLE_UNROLL for (int j = 0; j < Tile; ++j) outer[j] = load(gradient + (at + j) * kLanes);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const float* row = rows[r] + at * Stride * kLanes;
      DIASTOLE_UNROLL for (int i = 0; i < (Tile - 1) * Stride + Taps; ++i) {
        const Vec value = load(row + i * kLanes);
        DIASTOLE_UNROLL for (int t = 0; t < Taps; ++t) {
          const int before = i - t, j = before / Stride;
          if (before >= 0 && before % Stride == 0 && j < Tile) sum[r][t] += value * outer[j];
        }
      }
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r)
    DIASTOLE_UNROLL for (int t = 0; t < Taps; ++t) store(sums + (r * Taps + t) * kLanes, sum[r][t]);
}

// As many rows at once as there are registers: fewer than 8 sums would wait for each other. Rows before `first` and from
// `end` on are zeros.
template <int Taps, int Stride>
void gather_all(const float* const* rows, const float* gradient, int64_t count, float* sums, int first, int end) {
  constexpr int tile = Taps == 7 ? 8 : 4;
  constexpr int together = Taps == 3 ? 3 : Taps == 5 ? 2 : 1;
  const int64_t whole = count / tile * tile;
  constexpr int last = Taps % together;
  for (int r = 0; r + together <= Taps; r += together)
    if (r < end && r + together > first) gather<together, Taps, Stride, tile>(rows + r, gradient, whole, sums + r * Taps * kLanes);
  if constexpr (last > 0)
    if (Taps > first && Taps - last < end) gather<last, Taps, Stride, tile>(rows + Taps - last, gradient, whole, sums + (Taps - last) * Taps * kLanes);
  if (whole < count) {
    const float* rest[Taps];
    for (int r = 0; r < Taps; ++r) rest[r] = rows[r] + whole * Stride * kLanes;
    for (int r = first; r < end; ++r)
      gather<1, Taps, Stride, 4>(rest + r, gradient + whole * kLanes, count - whole, sums + r * Taps * kLanes);
  }
}

template <class T>
int grad_weight(const T* gradient, const T* x, float* out, const Shape& s, int threads) {
  const auto gather = s.kernel == 3   ? (s.stride == 1 ? gather_all<3, 1> : gather_all<3, 2>)
                      : s.kernel == 5 ? (s.stride == 1 ? gather_all<5, 1> : gather_all<5, 2>)
                                      : (s.stride == 1 ? gather_all<7, 1> : gather_all<7, 2>);
  const int64_t taps = s.kernel * s.kernel, blocks = s.blocks();
  // Shares of the images, as many as keep all cores busy, whatever their number: the order of the sums is fixed. All
  // channels of an image come before the next image, because neighbours lie in one line of the cache.
  const int64_t shares = s.images < 16 ? s.images : 16;
  const int64_t padded = (s.out_width + 3) / 4 * 4;
  int64_t length = s.left + s.width;
  if ((padded - 1) * s.stride + s.kernel > length) length = (padded - 1) * s.stride + s.kernel;
  const Scratch totals(shares * blocks * taps * kLanes);
  if (!totals.get()) return 1;
  std::atomic<int> failed{0};
  parallel(shares, threads, [&](int64_t share) {
    const size_t inputs = Ring<T>::floats(s.kernel, length), outers = Ring<T>::floats(1, padded);
    const Scratch scratch(inputs + outers + taps * kLanes);
    if (!scratch.get()) return failed.store(1);
    Ring<T> ring(scratch.get(), s.kernel, length, s.left), outer(scratch.get() + inputs, 1, padded, 0);
    float* sums = scratch.get() + inputs + outers;
    float* total = totals.get() + share * blocks * taps * kLanes;
    memset(total, 0, blocks * taps * kLanes * sizeof(float));
    const int64_t end = (share + 1) * s.images / shares * blocks;
    for (int64_t unit = share * s.images / shares * blocks; unit < end; ++unit) {
      const int64_t image = unit / blocks, block = unit % blocks, channel = block * kLanes;
      const int lanes = static_cast<int>(s.channels - channel < kLanes ? s.channels - channel : kLanes);
      // Sums of one image at a time: what is added up in a row is short, and rounding stays small.
      memset(sums, 0, taps * kLanes * sizeof(float));
      ring.begin(x + image * s.height * s.width * s.channels + channel, s.height, s.width, s.channels, lanes);
      outer.begin(gradient + image * s.out_height * s.out_width * s.channels + channel, s.out_height, s.out_width,
                  s.channels, lanes);
      for (int64_t y = 0; y < s.out_height; ++y) {
        const float* rows[7];
        const int64_t source = y * s.stride - s.top;
        for (int64_t r = 0; r < s.kernel; ++r) rows[r] = ring.row(source + r);
        const int64_t below = s.height - source < s.kernel ? s.height - source : s.kernel;
        gather(rows, outer.row(y), padded, sums, source < 0 ? static_cast<int>(-source) : 0, static_cast<int>(below));
      }
      for (int64_t t = 0; t < taps; ++t) {
        float* to = total + (block * taps + t) * kLanes;
        store(to, load(to) + load(sums + t * kLanes));
      }
    }
  });
  if (failed.load()) return 1;
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t t = 0; t < taps; ++t) {
      Vec sum = {};
      for (int64_t share = 0; share < shares; ++share)
        sum += load(totals.get() + ((share * blocks + block) * taps + t) * kLanes);
      const int64_t channel = block * kLanes, left = s.channels - channel;
      store_some(out + t * s.channels + channel, sum, left < kLanes ? static_cast<int>(left) : kLanes);
    }
  return 0;
}

}  // namespace
}  // namespace diastole

// Images are [image][row][column][channel], taps and their gradients float32 [tap][channel]. `shape` points at the ten
// numbers of `Shape`.
#define DIASTOLE_DEPTHWISE(suffix, type)                                                                               \
  DIASTOLE_EXPORT int diastole_depthwise_forward_##suffix(const type* x, const float* taps, type* out,                 \
                                                          const diastole::Shape* shape, int threads) {                 \
    return diastole::forward(x, taps, out, *shape, threads);                                                           \
  }                                                                                                                    \
  DIASTOLE_EXPORT int diastole_depthwise_grad_input_##suffix(const type* gradient, const float* taps, type* out,       \
                                                             const diastole::Shape* shape, int threads) {              \
    return diastole::grad_input(gradient, taps, out, *shape, threads);                                                 \
  }                                                                                                                    \
  DIASTOLE_EXPORT int diastole_depthwise_grad_weight_##suffix(const type* gradient, const type* x, float* out,         \
                                                              const diastole::Shape* shape, int threads) {             \
    return diastole::grad_weight(gradient, x, out, *shape, threads);                                                   \
  }
DIASTOLE_KERNELS(DIASTOLE_DEPTHWISE)

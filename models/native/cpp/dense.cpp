// A dense layer of few examples and many weights, and its two gradients. Weights are read, and their gradients written,
// from end to end once; examples are taken some inputs at a time, which stay in the cache.
#include "parallel.h"

namespace diastole {
namespace {

constexpr int64_t kInputs = 512;  // at a time
constexpr int64_t kShare = 32;    // outputs

DIASTOLE_INLINE float total(Vec value) {
  float lanes[kLanes], sum = 0.0f;
  store(lanes, value);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Add to `Rows` outputs of `Some` examples what `count` of their inputs make.
template <int Rows, int Some>
void multiply(const float* x, const float* weight, int64_t row, int64_t count, float* out, int64_t out_row) {
  Vec sums[Some][Rows] = {};
  const auto add = [&](int64_t i, auto&& read) __attribute__((always_inline)) {
    Vec values[Some];
    DIASTOLE_UNROLL for (int n = 0; n < Some; ++n) values[n] = read(x + n * row + i);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec factor = read(weight + r * row + i);
      DIASTOLE_UNROLL for (int n = 0; n < Some; ++n) sums[n][r] += values[n] * factor;
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, [](const float* from) { return load(from); });
  if (i < count) add(i, [&](const float* from) { return load_few(from, static_cast<int>(count - i)); });
  DIASTOLE_UNROLL for (int n = 0; n < Some; ++n)
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) out[n * out_row + r] += total(sums[n][r]);
}

// Add to the gradients of inputs of `Some` examples what `Rows` outputs bring back.
template <int Rows, int Some>
void bring_back(const float* gradient, int64_t out_row, const float* weight, int64_t row, int64_t count, float* out) {
  Vec factors[Some][Rows];
  DIASTOLE_UNROLL for (int n = 0; n < Some; ++n)
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) factors[n][r] = splat(gradient[n * out_row + r]);
  const auto add = [&](int64_t i, int lanes) __attribute__((always_inline)) {
    Vec weights[Rows];
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) weights[r] = load_some(weight + r * row + i, lanes);
    DIASTOLE_UNROLL for (int n = 0; n < Some; ++n) {
      Vec sum = load_some(out + n * row + i, lanes);
      DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) sum += factors[n][r] * weights[r];
      store_some(out + n * row + i, sum, lanes);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, kLanes);
  if (i < count) add(i, static_cast<int>(count - i));
}

// `factor` times the gradients of `Wide` vectors of the weights of `Rows` outputs; they are added to `out`, or written.
template <int Rows, int Wide>
DIASTOLE_INLINE void correlate(const float* gradient, int64_t out_row, const float* x, int64_t row, int64_t examples,
                               float factor, bool add, float* out, int lanes) {
  Vec sums[Rows][Wide] = {};
  for (int64_t n = 0; n < examples; ++n, gradient += out_row, x += row) {
    Vec values[Wide];
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) values[v] = load_some(x + v * kLanes, lanes);
    DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec value = splat(gradient[r]);
      DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) sums[r][v] += values[v] * value;
    }
  }
  DIASTOLE_UNROLL for (int r = 0; r < Rows; ++r)
    DIASTOLE_UNROLL for (int v = 0; v < Wide; ++v) {
      float* to = out + r * row + v * kLanes;
      const Vec found = sums[r][v] * factor;
      store_some(to, add ? load_some(to, lanes) + found : found, lanes);
    }
}

template <int Rows>
void correlate_all(const float* gradient, int64_t out_row, const float* x, int64_t row, int64_t examples, int64_t count,
                   float factor, bool add, float* out) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes)
    correlate<Rows, 2>(gradient, out_row, x + i, row, examples, factor, add, out + i, kLanes);
  for (; i < count; i += kLanes)
    correlate<Rows, 1>(gradient, out_row, x + i, row, examples, factor, add, out + i,
                       static_cast<int>(lesser(count - i, kLanes)));
}

// Call f(first, integral_constant size) for all of `count`, by the given sizes, of which the last is 1.
template <int Most, int... Less, class F>
DIASTOLE_INLINE void in_groups(int64_t count, F&& f, int64_t first = 0) {
  for (; first + Most <= count; first += Most) f(first, std::integral_constant<int, Most>{});
  if constexpr (sizeof...(Less) > 0) in_groups<Less...>(count, f, first);
}

}  // namespace
}  // namespace diastole

// `x` is [example][in], `weight` [out][in] and `out` [example][out], to which is added.
DIASTOLE_EXPORT int diastole_dense_forward_f32(const float* x, const float* weight, float* out, int64_t examples,
                                               int64_t in, int64_t outs, int threads) {
  using namespace diastole;
  parallel((outs + kShare - 1) / kShare, threads, [&](int64_t share) {
    const int64_t first = share * kShare, some = lesser(kShare, outs - first);
    for (int64_t i = 0; i < in; i += kInputs)
      in_groups<4, 1>(some, [&](int64_t o, auto rows) {
        in_groups<3, 2, 1>(examples, [&](int64_t n, auto group) {
          multiply<rows, group>(x + n * in + i, weight + (first + o) * in + i, in, lesser(kInputs, in - i),
                                out + n * outs + first + o, outs);
        });
      });
  });
  return 0;
}

// To `out` [example][in] is added.
DIASTOLE_EXPORT int diastole_dense_grad_input_f32(const float* gradient, const float* weight, float* out,
                                                  int64_t examples, int64_t in, int64_t outs, int threads) {
  using namespace diastole;
  parallel((in + kInputs - 1) / kInputs, threads, [&](int64_t share) {
    const int64_t i = share * kInputs;
    in_groups<4, 1>(outs, [&](int64_t o, auto rows) {
      in_groups<2, 1>(examples, [&](int64_t n, auto group) {
        bring_back<rows, group>(gradient + n * outs + o, outs, weight + o * in + i, in, lesser(kInputs, in - i),
                                out + n * in + i);
      });
    });
  });
  return 0;
}

// `factor` times the gradient is written, or added to what is there.
DIASTOLE_EXPORT int diastole_dense_grad_weight_f32(const float* gradient, const float* x, float* out, int64_t examples,
                                                   int64_t in, int64_t outs, float factor, int add, int threads) {
  using namespace diastole;
  parallel((in + kInputs - 1) / kInputs, threads, [&](int64_t share) {
    const int64_t i = share * kInputs;
    in_groups<4, 1>(outs, [&](int64_t o, auto rows) {
      correlate_all<rows>(gradient + o, outs, x + i, in, examples, lesser(kInputs, in - i), factor, add,
                          out + o * in + i);
    });
  });
  return 0;
}

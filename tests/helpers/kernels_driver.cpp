// A program that runs every kernel of ours on random shapes, in memory of exactly the size that it may use, and compares
// it with plain loops. To be built with a sanitizer, run under valgrind, or built for another processor.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define KERNEL(name) extern "C" int diastole_##name(const void*, const void*, void*, const int64_t*, int);
KERNEL(depthwise_forward_f32)
KERNEL(depthwise_grad_input_f32)
KERNEL(depthwise_grad_weight_f32)
KERNEL(depthwise_forward_bf16)
KERNEL(depthwise_grad_input_bf16)
KERNEL(depthwise_grad_weight_bf16)
KERNEL(window_forward_f32)
KERNEL(window_grad_input_f32)
KERNEL(window_grad_weight_f32)
KERNEL(winograd_forward_f32)
KERNEL(winograd_grad_input_f32)
KERNEL(winograd_grad_weight_f32)

// Those for both types; tensors of the type are `void`.
#define KERNELS(type)                                                                                                  \
  extern "C" {                                                                                                         \
  int diastole_normalise_##type(const void*, const void*, const float*, const float*, void*, double*, float*, int64_t, \
                                int64_t, int64_t, int64_t, double, int, int);                                          \
  int diastole_differentiate_##type(const void*, const void*, const void*, const float*, const float*, const double*,  \
                                    const float*, void*, void*, float*, int64_t, int64_t, int64_t, int64_t, int, int); \
  int diastole_normalise_pool_##type(const void*, const float*, const float*, void*, uint8_t*, double*, float*,        \
                                     int64_t, int64_t, int64_t, int64_t, int64_t, double, int);                        \
  int diastole_differentiate_pool_##type(const void*, const uint8_t*, const void*, const float*, const double*,        \
                                         const float*, void*, float*, int64_t, int64_t, int64_t, int64_t, int64_t,     \
                                         int);                                                                         \
  int diastole_pool_##type(const void*, void*, uint8_t*, int64_t, int64_t, int64_t, int64_t, int, int);                \
  int diastole_spread_##type(const void*, const uint8_t*, void*, int64_t, int64_t, int64_t, int64_t, int);             \
  int diastole_gelu_##type(const void*, void*, int64_t, int);                                                          \
  int diastole_gelu_backward_##type(const void*, const void*, void*, int64_t, int);                                    \
  }
KERNELS(f32)
KERNELS(bf16)

extern "C" {
int diastole_perceptron_kept_f32(int64_t, int64_t);
int diastole_perceptron_f32(const float*, const float*, const float*, const float*, const float*, const float*, float*,
                            float*, int64_t, int64_t, int64_t, int);
int diastole_perceptron_backward_f32(const float*, const float*, const float*, const float*, const float*, float*,
                                     float*, float*, float*, float*, int64_t, int64_t, int64_t, int);
int diastole_dense_forward_f32(const float*, const float*, float*, int64_t, int64_t, int64_t, int);
int diastole_dense_grad_input_f32(const float*, const float*, float*, int64_t, int64_t, int64_t, int);
int diastole_dense_grad_weight_f32(const float*, const float*, float*, int64_t, int64_t, int64_t, float, int, int);
int diastole_fold(uint64_t*, uint64_t*, const float*, const float*, const int64_t*, const int64_t*, int64_t, double,
                  float, int64_t);
}

static uint64_t state = 1;
static int64_t below(int64_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(n));
}

static float* floats(int64_t n) {
  float* made = static_cast<float*>(malloc(n * sizeof(float)));
  // Halves of small integers: exact in bfloat16, and sums of them in float32.
  for (int64_t i = 0; i < n; ++i) made[i] = static_cast<float>(below(17) - 8) / 2;
  return made;
}

static uint16_t* halves(const float* from, int64_t n) {
  uint16_t* made = static_cast<uint16_t*>(malloc(n * sizeof(uint16_t)));
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, from + i, 4);
    made[i] = static_cast<uint16_t>(bits >> 16);
  }
  return made;
}

static int wrong = 0;
static void compare(const char* what, const float* found, const double* expected, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (std::fabs(found[i] - expected[i]) > 1e-3) {
      printf("%s: %g instead of %g at %lld\n", what, found[i], expected[i], static_cast<long long>(i));
      ++wrong;
      return;
    }
}

// `plain`: 3x3 at stride 1, which the winograd kernel takes too.
static void trial(bool dense, bool plain) {
  const int64_t kh = plain ? 3 : dense ? 1 + below(5) : 3 + 2 * below(3), kw = plain || !dense ? kh : 1 + below(5);
  const int64_t sh = plain ? 1 : 1 + below(dense ? 3 : 2), sw = plain || !dense ? sh : 1 + below(3);
  const int64_t top = below(kh), left = below(kw), n = 1 + below(3), in = 1 + below(35), out = dense ? 1 + below(35) : in;
  const int64_t h = (kh > 2 * top ? kh - 2 * top : 1) + below(11), w = (kw > 2 * left ? kw - 2 * left : 1) + below(11);
  const int64_t oh = (h + 2 * top - kh) / sh + 1, ow = (w + 2 * left - kw) / sw + 1;
  const int64_t depthwise[] = {n, in, h, w, oh, ow, kh, sh, top, left};
  const int64_t window[] = {n, in, out, h, w, oh, ow, kh, kw, sh, sw, top, left};
  const int64_t inputs = n * h * w * in, outputs = n * oh * ow * out, weights = kh * kw * (dense ? in * out : in);
  float *x = floats(inputs), *g = floats(outputs), *k = floats(weights), *turned = floats(weights);
  float *y = floats(outputs), *dx = floats(inputs), *dk = floats(weights);
  double* ys = static_cast<double*>(calloc(outputs, sizeof(double)));
  double* dxs = static_cast<double*>(calloc(inputs, sizeof(double)));
  double* dks = static_cast<double*>(calloc(weights, sizeof(double)));
  for (int64_t b = 0; b < n; ++b)
    for (int64_t i = 0; i < oh; ++i)
      for (int64_t j = 0; j < ow; ++j)
        for (int64_t u = 0; u < kh; ++u)
          for (int64_t v = 0; v < kw; ++v) {
            const int64_t row = i * sh - top + u, column = j * sw - left + v;
            if (row < 0 || row >= h || column < 0 || column >= w) continue;
            for (int64_t o = 0; o < out; ++o)
              for (int64_t c = dense ? 0 : o; c < (dense ? in : o + 1); ++c) {
                const int64_t at = ((b * h + row) * w + column) * in + c, to = ((b * oh + i) * ow + j) * out + o;
                const int64_t tap = dense ? ((v * kh + u) * in + c) * out + o : (u * kw + v) * in + c;
                ys[to] += static_cast<double>(x[at]) * k[tap];
                dxs[at] += static_cast<double>(g[to]) * k[tap];
                dks[tap] += static_cast<double>(g[to]) * x[at];
              }
          }
  int failed = 0;
  if (dense) {
    for (int64_t t = 0; t < kh * kw; ++t)
      for (int64_t c = 0; c < in; ++c)
        for (int64_t o = 0; o < out; ++o) turned[(t * out + o) * in + c] = k[(t * in + c) * out + o];
    failed |= diastole_window_forward_f32(x, k, y, window, 2);
    failed |= diastole_window_grad_input_f32(g, turned, dx, window, 2);
    failed |= diastole_window_grad_weight_f32(g, x, dk, window, 2);
  } else {
    failed |= diastole_depthwise_forward_f32(x, k, y, depthwise, 2);
    failed |= diastole_depthwise_grad_input_f32(g, k, dx, depthwise, 2);
    failed |= diastole_depthwise_grad_weight_f32(g, x, dk, depthwise, 2);
  }
  compare("output", y, ys, outputs);
  compare("gradient of the input", dx, dxs, inputs);
  compare("gradient of the weight", dk, dks, weights);
  if (plain) {
    const auto other = [&](int64_t tap, int64_t c, int64_t o) { return (o * 9 + tap % 3 * 3 + tap / 3) * in + c; };
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t c = 0; c < in; ++c)
        for (int64_t o = 0; o < out; ++o) turned[other(t, c, o)] = k[(t * in + c) * out + o];
    failed |= diastole_winograd_forward_f32(x, turned, y, window, 2);
    failed |= diastole_winograd_grad_input_f32(g, turned, dx, window, 2);
    failed |= diastole_winograd_grad_weight_f32(g, x, turned, window, 2);
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t c = 0; c < in; ++c)
        for (int64_t o = 0; o < out; ++o) dk[(t * in + c) * out + o] = turned[other(t, c, o)];
    compare("output of 3x3", y, ys, outputs);
    compare("gradient of the input of 3x3", dx, dxs, inputs);
    compare("gradient of the weight of 3x3", dk, dks, weights);
  }
  if (!dense) {
    uint16_t *hx = halves(x, inputs), *hg = halves(g, outputs), *hy = halves(y, outputs), *hdx = halves(dx, inputs);
    failed |= diastole_depthwise_forward_bf16(hx, k, hy, depthwise, 2);
    failed |= diastole_depthwise_grad_input_bf16(hg, k, hdx, depthwise, 2);
    failed |= diastole_depthwise_grad_weight_bf16(hg, hx, dk, depthwise, 2);
    compare("gradient of the weight in bfloat16", dk, dks, weights);
    free(hx), free(hg), free(hy), free(hdx);
  }
  wrong += failed;
  free(x), free(g), free(k), free(turned), free(y), free(dx), free(dk), free(ys), free(dxs), free(dks);
}

// Tensors of one of the two types, each in memory of exactly its size.
struct Tensors {
  bool half;
  void* all[32];
  int count = 0;

  void* made(const float* from, int64_t n) {
    void* to = half ? static_cast<void*>(halves(from, n)) : malloc(n * sizeof(float));
    if (!half) __builtin_memcpy(to, from, n * sizeof(float));
    return all[count++] = to;
  }
  float value(const void* from, int64_t i) const {
    if (!half) return static_cast<const float*>(from)[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, 4);
    return wide;
  }
  void near(const char* what, const void* found, const double* expected, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const double allowed = half ? 0.02 * (1 + std::fabs(expected[i])) : 1e-3 * (1 + std::fabs(expected[i]));
      if (std::fabs(value(found, i) - expected[i]) <= allowed) continue;
      printf("%s%s: %g instead of %g at %lld\n", what, half ? " in bfloat16" : "", value(found, i), expected[i],
             static_cast<long long>(i));
      ++wrong;
      return;
    }
  }
  ~Tensors() {
    while (count) free(all[--count]);
  }
};

#define CALL(half, name, ...) ((half) ? diastole_##name##_bf16(__VA_ARGS__) : diastole_##name##_f32(__VA_ARGS__))

// GroupNorm and what may follow, with and without pooling, pooling alone, GELU.
static void norms(bool half) {
  const int64_t groups = 1 + below(3), channels = groups * (1 + below(12)), n = 1 + below(3), h = 2 + below(9);
  const int64_t w = 2 + below(9), pixels = h * w, each = channels / groups, values = n * pixels * channels;
  const int64_t oh = h / 2, ow = w / 2, pooled = n * oh * ow * channels;
  const int after = static_cast<int>(below(2));
  const bool sum = below(2) != 0;
  Tensors t{half, {}};
  float *drawn = floats(values), *more = floats(values), *outer = floats(values), *factor = floats(channels);
  float *shift = floats(channels), *rstd = floats(n * groups), *parameters = floats(n * 2 * channels);
  double* mean = static_cast<double*>(malloc(n * groups * sizeof(double)));
  void *x = t.made(drawn, values), *added = t.made(more, values), *g = t.made(outer, values);
  void *y = t.made(drawn, values), *dx = t.made(drawn, values), *passed = t.made(drawn, values);
  void *small = t.made(drawn, pooled), *above = t.made(outer, pooled), *active = t.made(drawn, values);
  uint8_t* from = static_cast<uint8_t*>(malloc(pooled));
  double* plain = static_cast<double*>(malloc(values * sizeof(double)));   // normalised
  double* result = static_cast<double*>(malloc(values * sizeof(double)));  // and what follows
  double* back = static_cast<double*>(malloc(values * sizeof(double)));
  const auto at = [&](int64_t b, int64_t p, int64_t c) { return (b * pixels + p) * channels + c; };
  // The gradient of the input, from that of the normalised map before its factor, which is in `result`.
  const auto differentiate = [&] {
    for (int64_t b = 0; b < n; ++b)
      for (int64_t k = 0; k < groups; ++k) {
        double first = 0, second = 0;
        for (int64_t p = 0; p < pixels; ++p)
          for (int64_t c = k * each; c < (k + 1) * each; ++c) {
            const double one = result[at(b, p, c)] * factor[c];
            first += one / (pixels * each), second += one * plain[at(b, p, c)] / (pixels * each);
          }
        for (int64_t p = 0; p < pixels; ++p)
          for (int64_t c = k * each; c < (k + 1) * each; ++c) {
            const int64_t i = at(b, p, c);
            back[i] = (result[i] * factor[c] - first - plain[i] * second) * rstd[b * groups + k];
          }
      }
  };
  int failed = CALL(half, normalise, x, sum ? added : nullptr, factor, shift, y, mean, rstd, n, pixels, channels, groups,
                    0.25, after, 2);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t k = 0; k < groups; ++k) {
      double first = 0, second = 0;
      for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = k * each; c < (k + 1) * each; ++c) first += drawn[at(b, p, c)] / (pixels * each);
      for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = k * each; c < (k + 1) * each; ++c) {
          const double off = drawn[at(b, p, c)] - first;
          second += off * off / (pixels * each);
        }
      for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = k * each; c < (k + 1) * each; ++c)
          plain[at(b, p, c)] = (drawn[at(b, p, c)] - first) / std::sqrt(second + 0.25);
    }
  for (int64_t i = 0; i < values; ++i) {
    const int64_t c = i % channels;
    result[i] = plain[i] * factor[c] + shift[c] + (sum ? more[i] : 0);
    if (after && result[i] < 0) result[i] = 0;
  }
  t.near("GroupNorm", y, result, values);
  failed |= CALL(half, differentiate, g, x, sum && after ? y : nullptr, factor, shift, mean, rstd, dx,
                 sum && after ? passed : nullptr, parameters, n, pixels, channels, groups, after, 2);
  // What ReLU lets through is told by the output that was found, which is rounded.
  for (int64_t i = 0; i < values; ++i) result[i] = !after || t.value(y, i) > 0 ? outer[i] : 0;
  differentiate();
  t.near("gradient of GroupNorm", dx, back, values);
  // Pooled, with ReLU: the byte says which of four it was, or 4.
  failed |= CALL(half, normalise_pool, x, factor, shift, small, from, mean, rstd, n, h, w, channels, groups, 0.25, 2);
  failed |= CALL(half, differentiate_pool, above, from, x, factor, mean, rstd, dx, parameters, n, h, w, channels, groups,
                 2);
  double* most = static_cast<double*>(malloc(pooled * sizeof(double)));
  for (int64_t i = 0; i < values; ++i) result[i] = 0;
  const auto corner = [&](int64_t i, int k) {
    const int64_t c = i % channels, column = i / channels % ow, row = i / channels / ow % oh, b = i / channels / ow / oh;
    return at(b, (2 * row + k / 2) * w + 2 * column + k % 2, c);
  };
  for (int64_t i = 0; i < pooled; ++i) {
    most[i] = 0;
    for (int k = 0; k < 4; ++k) {
      const double one = plain[corner(i, k)] * factor[i % channels] + shift[i % channels];
      if (one > most[i]) most[i] = one;
    }
    if (from[i] < 4) result[corner(i, from[i])] = t.value(above, i);
  }
  t.near("GroupNorm and pooling", small, most, pooled);
  differentiate();
  t.near("gradient of GroupNorm and pooling", dx, back, values);
  failed |= CALL(half, pool, x, small, from, n, h, w, channels, after, 2);
  failed |= CALL(half, spread, above, from, dx, n, h, w, channels, 2);
  for (int64_t i = 0; i < values; ++i) result[i] = 0;
  for (int64_t i = 0; i < pooled; ++i) {
    most[i] = after ? 0 : -1e9;
    for (int k = 0; k < 4; ++k) most[i] = drawn[corner(i, k)] > most[i] ? drawn[corner(i, k)] : most[i];
    if (from[i] < 4) result[corner(i, from[i])] = t.value(above, i);
  }
  t.near("pooling", small, most, pooled);
  t.near("gradient of pooling", dx, result, values);
  failed |= CALL(half, gelu, x, active, values, 2);
  failed |= CALL(half, gelu_backward, g, x, dx, values, 2);
  for (int64_t i = 0; i < values; ++i) {
    const double share = 0.5 * std::erfc(-drawn[i] * std::sqrt(0.5));
    result[i] = drawn[i] * share;
    back[i] = outer[i] * (share + drawn[i] * std::exp(-0.5 * drawn[i] * drawn[i]) / std::sqrt(2 * std::acos(-1.0)));
  }
  t.near("GELU", active, result, values);
  t.near("gradient of GELU", dx, back, values);
  wrong += failed;
  free(drawn), free(more), free(outer), free(factor), free(shift), free(rstd), free(parameters), free(mean), free(from);
  free(plain), free(result), free(back), free(most);
}

// Two 1x1 convolutions with GELU between them: forward against plain loops, gradients along one direction against
// differences.
static void perceptron() {
  const int64_t pixels = 1 + below(70), outside = 1 + below(35), inside = 1 + below(70);
  float *x = floats(pixels * outside), *added = floats(pixels * outside), *widen = floats(inside * outside);
  float *bias = floats(inside), *narrow = floats(outside * inside), *last = floats(outside);
  float *kept = floats(1024 * static_cast<int64_t>(diastole_perceptron_kept_f32(pixels, inside)));
  float *y = floats(pixels * outside), *g = floats(pixels * outside), *dx = floats(pixels * outside);
  float *dwiden = floats(inside * outside), *dbias = floats(inside), *dnarrow = floats(outside * inside);
  float* dlast = floats(outside);
  const auto smaller = [](float* values, int64_t n, float by) {
    for (int64_t i = 0; i < n; ++i) values[i] *= by;
  };
  smaller(widen, inside * outside, 0.05f), smaller(narrow, outside * inside, 0.05f);
  double* ys = static_cast<double*>(malloc(pixels * outside * sizeof(double)));
  const auto plain = [&](double step) {
    double loss = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t o = 0; o < outside; ++o) ys[p * outside + o] = added[p * outside + o] + last[o] + step * last[o];
      for (int64_t i = 0; i < inside; ++i) {
        double sum = bias[i] * (1 + step);
        for (int64_t o = 0; o < outside; ++o)
          sum += static_cast<double>(x[p * outside + o]) * (1 + step) * widen[i * outside + o] * (1 + step);
        const double active = sum * 0.5 * std::erfc(-sum * std::sqrt(0.5));
        for (int64_t o = 0; o < outside; ++o) ys[p * outside + o] += active * narrow[o * inside + i] * (1 + step);
      }
      for (int64_t o = 0; o < outside; ++o) loss += g[p * outside + o] * ys[p * outside + o];
    }
    return loss;
  };
  wrong += diastole_perceptron_f32(x, added, widen, bias, narrow, last, kept, y, pixels, outside, inside, 2);
  wrong += diastole_perceptron_backward_f32(g, x, kept, widen, narrow, dx, dwiden, dbias, dnarrow, dlast, pixels, outside,
                                            inside, 2);
  double found = 0, size = 1;
  const auto along = [&](const float* gradient, const float* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i) found += static_cast<double>(gradient[i]) * values[i], size += std::fabs(gradient[i] * values[i]);
  };
  along(dx, x, pixels * outside), along(dwiden, widen, inside * outside), along(dbias, bias, inside);
  along(dnarrow, narrow, outside * inside), along(dlast, last, outside);
  const double slope = (plain(1e-5) - plain(-1e-5)) / 2e-5;
  if (std::fabs(found - slope) > 1e-4 * size) printf("perceptron: slope %g instead of %g\n", found, slope), ++wrong;
  plain(0);
  compare("perceptron", y, ys, pixels * outside);
  free(x), free(added), free(widen), free(bias), free(narrow), free(last), free(kept), free(y), free(g), free(dx);
  free(dwiden), free(dbias), free(dnarrow), free(dlast), free(ys);
}

// A dense layer and its two gradients.
static void dense() {
  const int64_t n = 1 + below(9), in = 1 + below(1100), out = 1 + below(40);
  float *x = floats(n * in), *weight = floats(out * in), *g = floats(n * out), *y = floats(n * out);
  float *dx = floats(n * in), *dw = floats(out * in), *more = floats(out * in);
  double* ys = static_cast<double*>(malloc(n * out * sizeof(double)));
  double* dxs = static_cast<double*>(malloc(n * in * sizeof(double)));
  double* dws = static_cast<double*>(calloc(out * in, sizeof(double)));
  double* sums = static_cast<double*>(malloc(out * in * sizeof(double)));
  for (int64_t i = 0; i < n * out; ++i) ys[i] = y[i];
  for (int64_t i = 0; i < n * in; ++i) dxs[i] = dx[i];
  for (int64_t b = 0; b < n; ++b)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) {
        ys[b * out + o] += static_cast<double>(x[b * in + i]) * weight[o * in + i];
        dxs[b * in + i] += static_cast<double>(g[b * out + o]) * weight[o * in + i];
        dws[o * in + i] += static_cast<double>(g[b * out + o]) * x[b * in + i];
      }
  for (int64_t i = 0; i < out * in; ++i) sums[i] = more[i] - 0.5 * dws[i];
  wrong += diastole_dense_forward_f32(x, weight, y, n, in, out, 2);
  wrong += diastole_dense_grad_input_f32(g, weight, dx, n, in, out, 2);
  wrong += diastole_dense_grad_weight_f32(g, x, dw, n, in, out, 1.0f, 0, 2);
  wrong += diastole_dense_grad_weight_f32(g, x, more, n, in, out, -0.5f, 1, 2);
  compare("dense", y, ys, n * out), compare("gradient of the input of dense", dx, dxs, n * in);
  compare("gradient of the weight of dense", dw, dws, out * in), compare("step of dense", more, sums, out * in);
  free(x), free(weight), free(g), free(y), free(dx), free(dw), free(more), free(ys), free(dxs), free(dws), free(sums);
}

// The sums of a block of a larger tensor.
static void fold() {
  const int64_t sizes[] = {1 + below(3), 1 + below(4), 1 + below(40)};
  const int64_t strides[] = {(sizes[1] + below(2)) * (sizes[2] + below(3)), sizes[2] + below(3), 1};
  const int64_t all = (sizes[0] - 1) * strides[0] + (sizes[1] - 1) * strides[1] + sizes[2];
  const int64_t count = sizes[0] * sizes[1] * sizes[2];
  uint64_t *coarse = static_cast<uint64_t*>(calloc(all, 8)), *fine = static_cast<uint64_t*>(calloc(all, 8));
  float *reference = floats(all), *values = floats(count);
  if (diastole_fold(coarse, fine, reference, values, sizes, strides, 3, 4.0, 100.0f, 0)) ++wrong;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i / sizes[2] / sizes[1] * strides[0] + i / sizes[2] % sizes[1] * strides[1] + i % sizes[2];
    const int64_t expected = static_cast<int64_t>(4 * (values[i] - reference[at]));
    // Rows may overlap where strides are short; then a sum has several terms.
    if (strides[0] >= sizes[1] * strides[1] && static_cast<int64_t>(coarse[at]) != expected) ++wrong;
  }
  free(coarse), free(fine), free(reference), free(values);
}

int main(int count, char** words) {
  const int trials = count > 1 ? atoi(words[1]) : 100;
  for (int i = 0; i < trials; ++i) {
    trial(i % 3 != 1, i % 3 == 2);
    norms(i % 2);
    if (i % 4 == 0) perceptron();
    fold();
    dense();
  }
  printf("%d shapes, %d wrong\n", trials, wrong);
  return wrong != 0;
}

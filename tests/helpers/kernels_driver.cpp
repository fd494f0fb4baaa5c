// A program that runs every convolution of ours on random shapes, in memory of exactly the size that it may use, and
// compares it with plain loops. To be built with a sanitizer, run under valgrind, or built for another processor.
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

int main(int count, char** words) {
  const int trials = count > 1 ? atoi(words[1]) : 100;
  for (int i = 0; i < trials; ++i) trial(i % 3 != 1, i % 3 == 2);
  printf("%d shapes, %d wrong\n", trials, wrong);
  return wrong != 0;
}

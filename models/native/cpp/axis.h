// Which sources a position of an output is made from, along one axis of a convolution or of its input gradient.
#pragma once

#include "vector.h"

namespace diastole {

// The largest stride.
constexpr int kStrides = 8;

// Every `step`-th position of an axis: the position `first + i * step` is the sum of `taps` sources, the first of which
// is `source + i * stride`, times the taps that begin at `tap`.
struct Class {
  int64_t first, step, count, source, stride, tap, taps;
};

struct Axis {
  int64_t classes, shift;
  Class of[kStrides];
  const Class& at(int64_t position) const { return of[(position + shift) % classes]; }
};

// Where the values of an output come from.
inline Axis forward_axis(int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
  return {1, 0, {{0, 1, out, -padding, stride, 0, kernel}}};
}

// Where the gradient of an input comes from: the taps of its phase, which is its place between strides, reversed.
inline Axis backward_axis(int64_t in, int64_t kernel, int64_t stride, int64_t padding) {
  Axis axis{stride, padding, {}};
  int64_t tap = 0;
  for (int64_t phase = 0; phase < stride; ++phase) {
    const int64_t first = ((phase - padding) % stride + stride) % stride;
    const int64_t taps = (kernel - phase + stride - 1) / stride;
    const int64_t count = first < in ? (in - first + stride - 1) / stride : 0;
    axis.of[phase] = {first, stride, count, (first + padding) / stride - (taps - 1), 1, tap, taps};
    tap += taps;
  }
  return axis;
}

// The tap of the kernel that lies at a place of the packed order of `backward_axis`.
inline int64_t backward_tap(const Axis& axis, int64_t place, int64_t stride) {
  int64_t phase = 0;
  while (phase + 1 < stride && place >= axis.of[phase + 1].tap) ++phase;
  return phase + stride * (axis.of[phase].taps - 1 - (place - axis.of[phase].tap));
}

}  // namespace diastole

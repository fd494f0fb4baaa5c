// The largest of four vectors, and a byte for each lane that says which it was.
#pragma once

#include "lanes.h"

namespace diastole {

constexpr int kNone = 4;  // The byte where ReLU let nothing through.

// `value(k)` is the k-th of four, in row-major order. Of equal ones the first counts, of NaNs the last, as in torch.
template <int L, bool Relu, class Value, class T>
DIASTOLE_INLINE void pool_lanes(Value&& value, T* out, uint8_t* from) {
  using V = Lanes<L>;
  typename V::f best = value(0);
  typename V::i index = {};
  unroll<3>([&](auto k) {
    const typename V::f one = value(k + 1);
    const typename V::i take = (one > best) | (one != one);
    best = take ? one : best;
    index = take ? typename V::i{} + (k + 1) : index;
  });
  if (Relu) {
    const typename V::i none = best <= 0.0f;
    best = none ? typename V::f{} : best;
    index = none ? typename V::i{} + kNone : index;
  }
  store<L>(out, best);
  store_bytes<L>(from, index);
}

}  // namespace diastole

// The normal distribution, vector by vector, as GELU needs it.
#pragma once

#include "lanes.h"

namespace diastole {

// e to a power of at most 0; below -87 as of -87.
template <class F, class I>
DIASTOLE_INLINE F exponential(F x) {
  x = x < -87.0f ? F{} - 87.0f : x;
  const I whole = __builtin_convertvector(x * 1.44269504f - 0.5f, I);
  const F n = __builtin_convertvector(whole, F), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * (F)((whole + 127) << 23);
}

// The normal distribution's function, and its density. Abramowitz and Stegun, 7.1.26: off by at most 1e-7.
template <int L>
struct Normal {
  using F = typename Lanes<L>::f;
  F below, density;

  DIASTOLE_INLINE explicit Normal(F x) {
    const F size = x < 0.0f ? -x : x, e = exponential<F, typename Lanes<L>::i>(-0.5f * x * x);
    const F t = 1.0f / (1.0f + 0.231641887f * size);
    F p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const F tail = 0.5f * p * t * e;
    below = x < 0.0f ? tail : 1.0f - tail;
    density = 0.398942280f * e;
  }
};

}  // namespace diastole

// Vectors of a number of lanes that is chosen where they are used, and bytes in place of their integers.
#pragma once

#include <type_traits>

#include "vector.h"

namespace diastole {

template <int L>
struct Lanes {
  typedef float f __attribute__((vector_size(4 * L)));
  typedef int32_t i __attribute__((vector_size(4 * L)));
  typedef uint32_t u __attribute__((vector_size(4 * L)));
  typedef uint16_t h __attribute__((vector_size(2 * L)));
  typedef uint8_t b __attribute__((vector_size(L)));
};

// GCC 12 converts between integers of other widths lane by lane, so the vectors of x86 need its builtins. The header that
// has names for them takes a second to parse.
#if defined(__GNUC__) && !defined(__clang__)
#if defined(__AVX512F__)
#define DIASTOLE_GCC_512
#endif
#if defined(__AVX2__)
#define DIASTOLE_GCC_256
#endif
#endif

typedef char Bytes16 __attribute__((vector_size(16)));
typedef int64_t Longs2 __attribute__((vector_size(16)));
typedef short Shorts8 __attribute__((vector_size(16)));
typedef short Shorts16 __attribute__((vector_size(32)));
typedef int Ints4 __attribute__((vector_size(16)));
typedef int Ints16 __attribute__((vector_size(64)));

template <int L>
DIASTOLE_INLINE typename Lanes<L>::u words(typename Lanes<L>::h v) {
#ifdef DIASTOLE_GCC_512
  if constexpr (L == 16) return (typename Lanes<L>::u)__builtin_ia32_pmovzxwd512_mask((Shorts16)v, Ints16{}, -1);
#endif
#ifdef DIASTOLE_GCC_256
  if constexpr (L == 8) return (typename Lanes<L>::u)__builtin_ia32_pmovzxwd256((Shorts8)v);
#endif
  return __builtin_convertvector(v, typename Lanes<L>::u);
}

#ifdef DIASTOLE_GCC_256
// The lower 16 bits of 8 words below 65536.
DIASTOLE_INLINE Shorts8 packed(typename Lanes<8>::u v) {
  Ints4 parts[2];
  memcpy(parts, &v, sizeof v);
  return (Shorts8)__builtin_ia32_packusdw128(parts[0], parts[1]);
}
#endif

template <int L>
DIASTOLE_INLINE typename Lanes<L>::h halves(typename Lanes<L>::u v) {
#ifdef DIASTOLE_GCC_512
  if constexpr (L == 16) return (typename Lanes<L>::h)__builtin_ia32_pmovdw512_mask((Ints16)v, Shorts16{}, -1);
#endif
#ifdef DIASTOLE_GCC_256
  if constexpr (L == 8) return (typename Lanes<L>::h)packed(v);
#endif
  return __builtin_convertvector(v, typename Lanes<L>::h);
}

template <int L>
DIASTOLE_INLINE typename Lanes<L>::f load(const float* from) {
  typename Lanes<L>::f v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <int L>
DIASTOLE_INLINE void store(float* to, typename Lanes<L>::f v) {
  memcpy(to, &v, sizeof v);
}

template <int L>
DIASTOLE_INLINE typename Lanes<L>::f load(const Bf16* from) {
  typename Lanes<L>::h v;
  memcpy(&v, from, sizeof v);
  return (typename Lanes<L>::f)(words<L>(v) << 16);
}

template <int L>
DIASTOLE_INLINE void store(Bf16* to, typename Lanes<L>::f v) {
  using U = typename Lanes<L>::u;
  const U bits = (U)v;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const typename Lanes<L>::h half = halves<L>(v == v ? rounded : U{} + 0x7fc0);
  memcpy(to, &half, sizeof half);
}

template <int L>
DIASTOLE_INLINE typename Lanes<L>::i load_bytes(const uint8_t* from) {
  typename Lanes<L>::b v;
  memcpy(&v, from, sizeof v);
#ifdef DIASTOLE_GCC_512
  if constexpr (L == 16) return (typename Lanes<L>::i)__builtin_ia32_pmovzxbd512_mask((Bytes16)v, Ints16{}, -1);
#endif
#ifdef DIASTOLE_GCC_256
  if constexpr (L == 8) {
    // Not by way of memory: two halves that are read as a whole wait for both to be written.
    return (typename Lanes<L>::i)__builtin_ia32_pmovzxbd256((Bytes16)Longs2{(int64_t)v, 0});
  }
#endif
  return __builtin_convertvector(v, typename Lanes<L>::i);
}

template <int L>
DIASTOLE_INLINE void store_bytes(uint8_t* to, typename Lanes<L>::i v) {
#ifdef DIASTOLE_GCC_512
  if constexpr (L == 16) {
    const Bytes16 bytes = __builtin_ia32_pmovdb512_mask((Ints16)v, Bytes16{}, -1);
    memcpy(to, &bytes, sizeof bytes);
    return;
  }
#endif
#ifdef DIASTOLE_GCC_256
  if constexpr (L == 8) {
    const Shorts8 half = packed((typename Lanes<8>::u)v);
    const Bytes16 bytes = (Bytes16)__builtin_ia32_packuswb128(half, half);
    memcpy(to, &bytes, 8);
    return;
  }
#endif
  const typename Lanes<L>::b bytes = __builtin_convertvector(v, typename Lanes<L>::b);
  memcpy(to, &bytes, sizeof bytes);
}

// Call body(lanes, channel) for all channels, with as many lanes as fit.
template <class Body>
DIASTOLE_INLINE void over_channels(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(std::integral_constant<int, kLanes>{}, c);
  if constexpr (kLanes > 8)
    for (; c + 8 <= channels; c += 8) body(std::integral_constant<int, 8>{}, c);
  if constexpr (kLanes > 4)
    for (; c + 4 <= channels; c += 4) body(std::integral_constant<int, 4>{}, c);
  for (; c < channels; ++c) body(std::integral_constant<int, 1>{}, c);
}

}  // namespace diastole

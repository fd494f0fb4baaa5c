// Vectors of a number of lanes that is chosen where they are used, and bytes in place of their integers.
#pragma once

#include <type_traits>

#include "vector.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace diastole {

template <int L>
struct Lanes {
  typedef float f __attribute__((vector_size(4 * L)));
  typedef int32_t i __attribute__((vector_size(4 * L)));
  typedef uint32_t u __attribute__((vector_size(4 * L)));
  typedef uint16_t h __attribute__((vector_size(2 * L)));
  typedef uint8_t b __attribute__((vector_size(L)));
};

// GCC 12 converts between integers of other widths lane by lane, so the vectors of x86 need intrinsics.
template <int L>
DIASTOLE_INLINE typename Lanes<L>::u words(typename Lanes<L>::h v) {
#ifdef __AVX512F__
  if constexpr (L == 16) return (typename Lanes<L>::u)_mm512_cvtepu16_epi32((__m256i)v);
#endif
#ifdef __AVX2__
  if constexpr (L == 8) return (typename Lanes<L>::u)_mm256_cvtepu16_epi32((__m128i)v);
#endif
  return __builtin_convertvector(v, typename Lanes<L>::u);
}

template <int L>
DIASTOLE_INLINE typename Lanes<L>::h halves(typename Lanes<L>::u v) {
#ifdef __AVX512F__
  if constexpr (L == 16) return (typename Lanes<L>::h)_mm512_cvtepi32_epi16((__m512i)v);
#endif
#ifdef __AVX2__
  if constexpr (L == 8)
    return (typename Lanes<L>::h)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)v),
                                                  _mm256_extracti128_si256((__m256i)v, 1));
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
#ifdef __AVX512F__
  if constexpr (L == 16) return (typename Lanes<L>::i)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#endif
#ifdef __AVX2__
  if constexpr (L == 8) return (typename Lanes<L>::i)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#endif
  typename Lanes<L>::b v;
  memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, typename Lanes<L>::i);
}

template <int L>
DIASTOLE_INLINE void store_bytes(uint8_t* to, typename Lanes<L>::i v) {
#ifdef __AVX512F__
  if constexpr (L == 16) return _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#endif
#ifdef __AVX2__
  if constexpr (L == 8) {
    const __m128i half = (__m128i)halves<8>((typename Lanes<8>::u)v);
    return _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(half, half));
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

// Vectors of floats as wide as the processor's registers, and how they are read and written.
//
// One source serves every instruction set: DIASTOLE_VECTOR_BYTES is 64 for AVX-512, 32 for AVX2 and 16 for NEON, and
// the compiler lowers wider vectors where a processor has none. bfloat16 is stored as its 16 bits; all arithmetic is
// float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#ifndef DIASTOLE_VECTOR_BYTES
#if defined(__AVX512F__)
#define DIASTOLE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DIASTOLE_VECTOR_BYTES 32
#else
#define DIASTOLE_VECTOR_BYTES 16
#endif
#endif

// What Python may call: kernels return 0, or 1 where memory ran out.
#define DIASTOLE_EXPORT extern "C" __attribute__((visibility("default")))
// Kernels for several types of tensors: a library has those for one, so that nobody waits for the others to be compiled.
#ifdef DIASTOLE_BF16
#define DIASTOLE_KERNELS(DEFINE) DEFINE(bf16, diastole::Bf16)
#else
#define DIASTOLE_KERNELS(DEFINE) DEFINE(f32, float)
#endif
// Accumulators stay in registers only if everything round them is inlined.
#define DIASTOLE_INLINE inline __attribute__((always_inline))

namespace diastole {

constexpr int kLanes = DIASTOLE_VECTOR_BYTES / 4;

typedef float Vec __attribute__((vector_size(DIASTOLE_VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(DIASTOLE_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(DIASTOLE_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(DIASTOLE_VECTOR_BYTES / 2)));

// The same bytes at any address: tensors are aligned to 4 (or 2) bytes only.
typedef float LooseVec __attribute__((vector_size(DIASTOLE_VECTOR_BYTES), aligned(4), may_alias));
typedef uint16_t LooseHalves __attribute__((vector_size(DIASTOLE_VECTOR_BYTES / 2), aligned(2), may_alias));

// bfloat16: the upper half of a float32.
struct Bf16 {
  uint16_t bits;
};

// Minus 0, which compilers drop; plus 0 they must compute, because it turns -0 into 0.
DIASTOLE_INLINE Vec splat(float value) { return value - Vec{}; }

DIASTOLE_INLINE Vec widen(Halves halves) { return reinterpret_cast<Vec>(__builtin_convertvector(halves, Words) << 16); }

// Round to nearest, ties to even; NaN stays NaN (quiet).
DIASTOLE_INLINE Halves narrow(Vec value) {
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = reinterpret_cast<Words>(value != value);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Halves);
}

DIASTOLE_INLINE float widen(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

DIASTOLE_INLINE Bf16 narrow(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>(value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

DIASTOLE_INLINE float get(const float* from) { return *from; }
DIASTOLE_INLINE float get(const Bf16* from) { return widen(*from); }
DIASTOLE_INLINE void put(float* to, float value) { *to = value; }
DIASTOLE_INLINE void put(Bf16* to, float value) { *to = narrow(value); }

// A whole vector.
DIASTOLE_INLINE Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
DIASTOLE_INLINE Vec load(const Bf16* from) { return widen(static_cast<Halves>(*reinterpret_cast<const LooseHalves*>(from))); }
DIASTOLE_INLINE void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }
DIASTOLE_INLINE void store(Bf16* to, Vec value) { *reinterpret_cast<LooseHalves*>(to) = narrow(value); }

// Not inlined: there would be much to compile, and most calls are for whole vectors.
template <class T>
__attribute__((noinline)) Vec load_few(const T* from, int count) {
  alignas(DIASTOLE_VECTOR_BYTES) float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = get(from + i);
  return load(lanes);
}

template <class T>
__attribute__((noinline)) void store_few(T* to, Vec value, int count) {
  alignas(DIASTOLE_VECTOR_BYTES) float lanes[kLanes];
  store(lanes, value);
  for (int i = 0; i < count; ++i) put(to + i, lanes[i]);
}

// The first `count` lanes; the others are 0 when read and untouched when written.
template <class T>
DIASTOLE_INLINE Vec load_some(const T* from, int count) {
  return count >= kLanes ? load(from) : load_few(from, count);
}

template <class T>
DIASTOLE_INLINE void store_some(T* to, Vec value, int count) {
  if (count >= kLanes) return store(to, value);
  store_few(to, value, count);
}

// Of the standard library's <algorithm>, <cmath> and <numeric>, which take half a second to parse.
inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

DIASTOLE_INLINE float sum(Vec value) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += value[i];
  return total;
}

// Before a loop of a constant number of turns: vectors that it keeps in an array stay in registers. It takes half as long
// to compile as `unroll` below, which works for any body.
#if defined(__clang__)
#define DIASTOLE_UNROLL _Pragma("unroll")
#else
#define DIASTOLE_UNROLL _Pragma("GCC unroll 32")
#endif

// Call f(integral_constant 0), f(1), ...
template <class F, int... I>
DIASTOLE_INLINE void unroll(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
DIASTOLE_INLINE void unroll(F&& f) {
  unroll(std::make_integer_sequence<int, N>{}, static_cast<F&&>(f));
}

}  // namespace diastole

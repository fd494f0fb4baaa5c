// The exact accumulator's inner loop: `Accumulator._add` of models/accumulator.py, in one pass and to the same bits.

#include "vector.h"

namespace diastole {

// As wide as `rounded` can name a register; memory is the limit, so wider vectors would gain nothing.
#if defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kDoubles = kBytes / 8;

typedef double Doubles __attribute__((vector_size(kBytes)));
typedef uint64_t Wholes __attribute__((vector_size(kBytes)));
typedef uint64_t LooseWholes __attribute__((vector_size(kBytes), aligned(8), may_alias));
typedef float LooseFloats __attribute__((vector_size(kBytes / 2), aligned(4), may_alias));
typedef float Floats __attribute__((vector_size(kBytes / 2)));
typedef int32_t Flags __attribute__((vector_size(kBytes / 2)));

// What is added, and whether every value was within the limit; a value that is not a number never is.
struct Terms {
  double scale;
  float limit;
  Flags near;
};

// A number below 2^51 plus this is the number rounded, ties to even, in the lowest bits of the sum.
constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
constexpr double kFinePerCoarse = 1099511627776.0;  // 2^40

// A product that the compiler does not fuse with a sum: fused, it would be rounded once where the reference rounds twice.
template <typename T>
DIASTOLE_INLINE T rounded(T product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#else
  asm("" : "+w"(product));
#endif
  return product;
}

DIASTOLE_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return bits;
}

template <bool kUndo>
DIASTOLE_INLINE void fold_one(uint64_t* coarse, uint64_t* fine, float reference, float value, Terms& terms) {
  const double term = rounded((static_cast<double>(value) - reference) * terms.scale);
  const double sum = term + kRounder;
  const double rest = rounded((term - (sum - kRounder)) * kFinePerCoarse);
  const uint64_t wholes = bits_of(sum) - bits_of(kRounder);
  const uint64_t parts = bits_of(rest + kRounder) - bits_of(kRounder);
  *coarse += kUndo ? -wholes : wholes;
  *fine += kUndo ? -parts : parts;
  if (!(__builtin_fabsf(value) <= terms.limit)) terms.near[0] = 0;
}

// As far ahead as memory takes to answer.
constexpr int64_t kAhead = 64;
constexpr int64_t kStep = 16;  // Coordinates of two lines of a sum, and of one of values.

DIASTOLE_INLINE void fetch(const uint64_t* coarse, const uint64_t* fine, const float* reference, const float* values) {
  __builtin_prefetch(coarse, 1);
  __builtin_prefetch(coarse + kStep / 2, 1);
  __builtin_prefetch(fine, 1);
  __builtin_prefetch(fine + kStep / 2, 1);
  __builtin_prefetch(reference);
  __builtin_prefetch(values);
}

template <bool kUndo>
DIASTOLE_INLINE void fold_some(uint64_t* coarse, uint64_t* fine, const float* reference, const float* values,
                               Terms& terms) {
  const Doubles rounder = Doubles{} + kRounder;
  const Wholes bits = reinterpret_cast<Wholes>(rounder);
  const Floats given = *reinterpret_cast<const LooseFloats*>(values);
  const Floats size = reinterpret_cast<Floats>(reinterpret_cast<Flags>(given) & 0x7fffffff);
  terms.near &= size <= terms.limit;
  const Doubles origin = __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(reference), Doubles);
  const Doubles term = rounded((__builtin_convertvector(given, Doubles) - origin) * terms.scale);
  const Doubles sum = term + rounder;
  const Doubles rest = rounded((term - (sum - rounder)) * kFinePerCoarse);
  const Wholes wholes = reinterpret_cast<Wholes>(sum) - bits;
  const Wholes parts = reinterpret_cast<Wholes>(rest + rounder) - bits;
  *reinterpret_cast<LooseWholes*>(coarse) += kUndo ? -wholes : wholes;
  *reinterpret_cast<LooseWholes*>(fine) += kUndo ? -parts : parts;
}

// `next` coordinates lie from this row to the next one, of which the first lines are fetched too.
template <bool kUndo>
void fold_row(uint64_t* coarse, uint64_t* fine, const float* reference, const float* values, int64_t count,
              int64_t next, Terms& terms) {
  Terms mine = terms;
  int64_t k = 0;
  for (; k + kStep <= count; k += kStep) {
    const int64_t ahead = k + kAhead < count ? k + kAhead : k + kAhead - count + next;
    fetch(coarse + ahead, fine + ahead, reference + ahead, values + k + kAhead);
    unroll<kStep / kDoubles>([&](auto i) {
      const int64_t at = k + i() * kDoubles;
      fold_some<kUndo>(coarse + at, fine + at, reference + at, values + at, mine);
    });
  }
  for (; k + kDoubles <= count; k += kDoubles) {
    fold_some<kUndo>(coarse + k, fine + k, reference + k, values + k, mine);
  }
  for (; k < count; ++k) fold_one<kUndo>(coarse + k, fine + k, reference[k], values[k], mine);
  terms = mine;
}

template <bool kUndo>
void fold_block(uint64_t* coarse, uint64_t* fine, const float* reference, const float* values, const int64_t* sizes,
                const int64_t* strides, int64_t axes, Terms& terms) {
  if (axes == 1) return fold_row<kUndo>(coarse, fine, reference, values, sizes[0], sizes[0], terms);
  int64_t each = 1;
  for (int64_t axis = 1; axis < axes; ++axis) each *= sizes[axis];
  for (int64_t k = 0; k < sizes[0]; ++k) {
    const int64_t at = k * strides[0];
    if (axes == 2) {
      fold_row<kUndo>(coarse + at, fine + at, reference + at, values + k * each, each, strides[0], terms);
      continue;
    }
    fold_block<kUndo>(coarse + at, fine + at, reference + at, values + k * each, sizes + 1, strides + 1, axes - 1,
                      terms);
  }
}

}  // namespace diastole

// Adds (values - reference) * scale to the sums, in units of coarse and fine, or takes the same away again (`undo`).
// values: [sizes], contiguous; the others: a block of larger tensors with these strides, of which the last is 1.
// Sums are right if |(values - reference) * scale| < 2^51 everywhere, and can be undone in any case. At least one axis.
// Returns 0 if |values| <= limit everywhere, otherwise 2.
DIASTOLE_EXPORT int diastole_fold(uint64_t* coarse, uint64_t* fine, const float* reference, const float* values,
                                  const int64_t* sizes, const int64_t* strides, int64_t axes, double scale, float limit,
                                  int64_t undo) {
  diastole::Terms terms = {scale, limit, ~diastole::Flags{}};
  if (undo) {
    diastole::fold_block<true>(coarse, fine, reference, values, sizes, strides, axes, terms);
  } else {
    diastole::fold_block<false>(coarse, fine, reference, values, sizes, strides, axes, terms);
  }
  for (int lane = 0; lane < diastole::kDoubles; ++lane) {
    if (!terms.near[lane]) return 2;
  }
  return 0;
}

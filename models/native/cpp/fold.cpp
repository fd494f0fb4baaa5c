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
typedef int64_t Wholes __attribute__((vector_size(kBytes)));
typedef int64_t LooseWholes __attribute__((vector_size(kBytes), aligned(8), may_alias));
typedef float LooseFloats __attribute__((vector_size(kBytes / 2), aligned(4), may_alias));

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

DIASTOLE_INLINE void fold_one(int64_t* coarse, int64_t* fine, double reference, double value, double scale) {
  const double term = rounded((value - reference) * scale);
  const double whole = (term + kRounder) - kRounder;
  const double rest = rounded((term - whole) * kFinePerCoarse);
  *coarse += static_cast<int64_t>(whole);
  *fine += static_cast<int64_t>((rest + kRounder) - kRounder);
}

// As far ahead as memory takes to answer.
constexpr int64_t kAhead = 64;
constexpr int64_t kStep = 16;  // Coordinates of two lines of a sum, and of one of values.

DIASTOLE_INLINE void fetch(const int64_t* coarse, const int64_t* fine, const float* reference, const float* values) {
  __builtin_prefetch(coarse, 1);
  __builtin_prefetch(coarse + kStep / 2, 1);
  __builtin_prefetch(fine, 1);
  __builtin_prefetch(fine + kStep / 2, 1);
  __builtin_prefetch(reference);
  __builtin_prefetch(values);
}

DIASTOLE_INLINE void fold_some(int64_t* coarse, int64_t* fine, const float* reference, const float* values,
                               double scale) {
  const Doubles rounder = Doubles{} + kRounder;
  const Wholes bits = reinterpret_cast<Wholes>(rounder);
  const Doubles value = __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(values), Doubles);
  const Doubles origin = __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(reference), Doubles);
  const Doubles term = rounded((value - origin) * scale);
  const Doubles sum = term + rounder;
  const Doubles rest = rounded((term - (sum - rounder)) * kFinePerCoarse);
  *reinterpret_cast<LooseWholes*>(coarse) += reinterpret_cast<Wholes>(sum) - bits;
  *reinterpret_cast<LooseWholes*>(fine) += reinterpret_cast<Wholes>(rest + rounder) - bits;
}

// `next` coordinates lie from this row to the next one, of which the first lines are fetched too.
void fold_row(int64_t* coarse, int64_t* fine, const float* reference, const float* values, int64_t count, int64_t next,
              double scale) {
  int64_t k = 0;
  for (; k + kStep <= count; k += kStep) {
    const int64_t ahead = k + kAhead < count ? k + kAhead : k + kAhead - count + next;
    fetch(coarse + ahead, fine + ahead, reference + ahead, values + k + kAhead);
    unroll<kStep / kDoubles>([&](auto i) {
      const int64_t at = k + i() * kDoubles;
      fold_some(coarse + at, fine + at, reference + at, values + at, scale);
    });
  }
  for (; k + kDoubles <= count; k += kDoubles) fold_some(coarse + k, fine + k, reference + k, values + k, scale);
  for (; k < count; ++k) fold_one(coarse + k, fine + k, reference[k], values[k], scale);
}

void fold_block(int64_t* coarse, int64_t* fine, const float* reference, const float* values, const int64_t* sizes,
                const int64_t* strides, int64_t axes, double scale) {
  if (axes == 1) return fold_row(coarse, fine, reference, values, sizes[0], sizes[0], scale);
  int64_t each = 1;
  for (int64_t axis = 1; axis < axes; ++axis) each *= sizes[axis];
  for (int64_t k = 0; k < sizes[0]; ++k) {
    const int64_t at = k * strides[0];
    if (axes == 2) {
      fold_row(coarse + at, fine + at, reference + at, values + k * each, each, strides[0], scale);
      continue;
    }
    fold_block(coarse + at, fine + at, reference + at, values + k * each, sizes + 1, strides + 1, axes - 1, scale);
  }
}

}  // namespace diastole

// Adds (values - reference) * scale to the sums, in units of coarse and fine.
// values: [sizes], contiguous; the others: a block of larger tensors with these strides, of which the last is 1.
// Needs |(values - reference) * scale| < 2^51 everywhere, and at least one axis.
DIASTOLE_EXPORT int diastole_fold(int64_t* coarse, int64_t* fine, const float* reference, const float* values,
                                  const int64_t* sizes, const int64_t* strides, int64_t axes, double scale) {
  diastole::fold_block(coarse, fine, reference, values, sizes, strides, axes, scale);
  return 0;
}

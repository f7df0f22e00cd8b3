// Inner loops over rows of elements, one table per instruction set (rows.inc). Arithmetic is done
// in a compute type, float, or double where a dtype at hand is float64.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace schattor::cpu {

// How the 16-bit dtypes lie in memory; rows.inc has their conversions.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Half precision is a compute type only of chains, in whole vectors.
template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>;

// What a compute type is scaled by.
template <typename T>
using Scalar = std::conditional_t<kIsHalf<T>, float, T>;
// What a chain's iterates are added up in. Eight bits are too few for a sum of eight.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

// a x + b y. Both forms of momentum, with and without Nesterov, are one of these.
template <typename T>
struct Blend {
  T a, b;
};

// beta v + (1 - beta) g^2 as a blend of v and g^2: a sum, v + g^2, where beta is 1.
template <typename T>
Blend<T> average_of_squares(double beta) {
  return {static_cast<T>(beta), static_cast<T>(beta == 1 ? 1 : 1 - beta)};
}

// v -> ((v / correction)^root + eps)^-exponent, root 0.5 where square_root is set, else 1.
template <typename T>
struct Weighting {
  T inverse_correction, eps;
  double exponent;
  bool square_root;
};

// x -> (x shift) factor, shift a power of two: together they divide by any norm, also by one whose
// reciprocal the compute type cannot hold.
template <typename T>
struct Scaling {
  T shift, factor;
};

// Loops in the compute type T. Arrays of one call do not overlap, except that `to` may be another
// argument, but of load, store and transpose.
template <typename T, bool kHalf = kIsHalf<T>>
struct RowLoops {
  // to[i] = from[i * stride].
  void (*load)(Dtype dtype, const void* from, int64_t stride, int64_t count, T* to);
  // to[i * stride] = from[i], rounded to nearest even.
  void (*store)(const T* from, int64_t count, Dtype dtype, int64_t stride, void* to);
  // to[c * to_stride + r] = from[r * from_stride + c].
  void (*transpose)(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to,
                    int64_t to_stride);
  // to = a x + b y.
  void (*blend)(Blend<T> blend, const T* x, const T* y, int64_t count, T* to);
  // to = shift factor x.
  void (*scale)(Scaling<T> scaling, const T* x, int64_t count, T* to);
  // to = factor x, and 0 where |x| is at most least.
  void (*shrink)(T least, T factor, const T* x, int64_t count, T* to);
  // to = x y.
  void (*multiply)(const T* x, const T* y, int64_t count, T* to);
  // to = a v + b g^2.
  void (*average_squares)(Blend<T> blend, const T* v, const T* g, int64_t count, T* to);
  // to = the weighting of v, and 0 where v is not positive.
  void (*weights)(Weighting<T> weighting, const T* v, int64_t count, T* to);
  // to = w x, and NaN where v is not finite.
  void (*weigh)(const T* w, const T* v, const T* x, int64_t count, T* to);
  // sum (shift x)^2 in double, in an order given by count. Squares of floats neither over- nor
  // underflow there, so the sum is finite exactly where every x is.
  double (*squares)(double shift, const T* x, int64_t count);
  // sum x y in double, in an order given by count.
  double (*inner)(const T* x, const T* y, int64_t count);
};

// What matrices in strips need, in float between loading and storing. Counts of scale are multiples
// of a vector's lanes.
template <typename T>
struct RowLoops<T, true> {
  void (*transpose)(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to,
                    int64_t to_stride);
  void (*scale)(Scaling<float> scaling, const T* x, int64_t count, T* to);
  double (*squares)(double shift, const T* x, int64_t count);
};

struct RowKernels {
  RowLoops<float> in_float;
  RowLoops<double> in_double;
  RowLoops<Float16> in_float16{};    // empty without float16 vectors
  RowLoops<BFloat16> in_bfloat16{};  // empty without products of bfloat16 vectors

  template <typename T>
  const RowLoops<T>& in() const {
    if constexpr (std::is_same_v<T, Float16>) {
      return in_float16;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return in_bfloat16;
    } else if constexpr (std::is_same_v<T, float>) {
      return in_float;
    } else {
      return in_double;
    }
  }
};

}  // namespace schattor::cpu

// How large the chain holds its matrices: in float16 a power of two times themselves, that keeps
// products of their entries from being subnormal and every sum of them far below 65504.
//
// Whatever is added up, in any order, is at most the norms of the row and the column that meet, and
// those of X, A = X'X and B = b A + c A^2 are about 1, 1 and 3 at most, whatever the shape.
#pragma once

#include <cmath>

#include "strips.h"

namespace schattor::cpu {

template <typename T>
struct Held {
  static constexpr double kX = 1, kA = 1, kB = 1;
};
template <>
struct Held<Float16> {
  static constexpr double kX = 32, kA = 64, kB = 16;
};

// Multiplies a matrix of so many rows and such a norm by the power of two that brings the norm into
// [size, 2 size), and returns that power; 1 where the norm is zero or not finite, or T is not
// Float16.
template <typename T>
double bring_to(double size, double norm, const StripLayout& layout, int64_t rows, T* matrix,
                Team team) {
  double factor = 1;
  if constexpr (std::is_same_v<T, Float16>) {
    if (norm > 0 && std::isfinite(norm)) factor = std::ldexp(size, -std::ilogb(norm));
    if (factor != 1) scale(layout, rows, factor, matrix, matrix, team);
  }
  return factor;
}

// Brings the input to the size of X, and returns how many times itself it is then.
template <typename T>
double hold(const StripLayout& layout, int64_t rows, T* x, Team team, double* partial_sums) {
  if constexpr (std::is_same_v<T, Float16>) {
    const double norm = frobenius(layout, rows, x, team, partial_sums);
    return bring_to(Held<T>::kX, norm, layout, rows, x, team);
  }
  return 1;
}

// What is to be added to the factor of X in a X + X B, once the mean of its diagonal is taken off
// B: in float16 a sum with a term as large as the sum itself is rounded at its size all along. B
// stays as it is, and nothing is to be added, elsewhere.
template <typename T>
double center_of(const StripLayout& layout, T* matrix) {
  if constexpr (std::is_same_v<T, Float16>) return center(layout, matrix);
  return 0;
}

}  // namespace schattor::cpu

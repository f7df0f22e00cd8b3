// Norms of matrices whose squares may leave the range of their type, and the division by them.
#pragma once

#include <cmath>

#include "views.cuh"

namespace schattor::cuda {

// sum x^2. Squares of float are within the range of double; squares of double are summed in three
// ranges of their own: x 2^600 for small x, x, and x 2^-600 for large x.
template <class T>
struct Squares {
  static constexpr int kParts = sizeof(T) == sizeof(double) ? 3 : 1;
  double parts[kParts] = {};

  DEV void add(const float (&x)[kUnit]) {
    float sum = x[0] * x[0] + x[4] * x[4];
#pragma unroll
    for (int k = 1; k < 4; ++k) sum += x[k] * x[k] + x[k + 4] * x[k + 4];
    // Far from both ends of float's range nothing that matters was lost; elsewhere (rare, but for
    // zeros) each square is taken in double.
    if (sum > 0x1p-80f && sum < 0x1p100f) {
      parts[0] += sum;
    } else {
#pragma unroll
      for (int k = 0; k < kUnit; ++k) parts[0] += static_cast<double>(x[k]) * x[k];
    }
  }
  DEV void add(const double (&x)[kUnit]) {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) {
      const double size = fabs(x[k]);
      const int range = size < 0x1p-400 ? 0 : size > 0x1p400 ? 2 : 1;
      const double scaled = x[k] * (range == 0 ? 0x1p600 : range == 2 ? 0x1p-600 : 1);
#pragma unroll
      for (int j = 0; j < 3; ++j) parts[j % kParts] += range == j ? scaled * scaled : 0;
    }
  }
};

// |M|_F = root 2^exponent: a root that neither over- nor underflowed. Not finite where M is not.
struct Norm {
  double root;
  int exponent;

  DEV explicit Norm(const double (&sum)[1]) : root(sqrt(sum[0])), exponent(0) {}
  DEV explicit Norm(const double (&sum)[3]) {
    // A range beside a larger one counts where they meet; NaN in any of them stays.
    constexpr double kStep = 0x1p-600;
    if (!(sum[2] == 0)) {
      root = sqrt(sum[2] + sum[1] * kStep * kStep), exponent = 600;
    } else if (!(sum[1] == 0)) {
      root = sqrt(sum[1] + sum[0] * kStep * kStep), exponent = 0;
    } else {
      root = sqrt(sum[0]), exponent = -600;
    }
  }
  DEV bool is_finite() const { return root <= 0x1.fffffffffffffp1023; }
  // |M|_F / size, at most the largest double.
  DEV double over(double size) const {
    return fmin(ldexp(root / size, exponent), 0x1.fffffffffffffp1023);
  }
};

// size / |M|_F in two factors, since the reciprocal of a small norm may be beyond T.
template <class T>
struct Scaling {
  T power, rest;

  DEV Scaling(const Norm& norm, double size) {
    constexpr int kMost = sizeof(T) == sizeof(double) ? 1021 : 125;
    int exponent;
    const double fraction = frexp(norm.root, &exponent);
    exponent += norm.exponent;
    const int shift = min(max(-exponent, -kMost), kMost);
    power = static_cast<T>(ldexp(1.0, shift));
    rest = static_cast<T>(ldexp(size / fraction, -exponent - shift));
  }
  DEV void apply(Entries<T>& entries) const {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) entries.x[k] = entries.x[k] * power * rest;
  }
};

}  // namespace schattor::cuda

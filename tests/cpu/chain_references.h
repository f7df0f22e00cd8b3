// The chain and the squarings of one matrix, in plain loops in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "matrices.h"

namespace references {

using namespace matrices;

struct Chain {
  std::vector<double> steps, weights;
  double power;
  int64_t depth() const { return static_cast<int64_t>(weights.size()) - 1; }
};

inline Matrix chain_reference(Matrix x, int64_t rows, int64_t cols, const Chain& chain) {
  const double scale = std::sqrt(norm(gram_of(x, rows, cols)));
  Matrix sum(x.size());
  if (scale == 0) return sum;
  for (double& value : x) value /= scale;
  add(sum, chain.weights[0], x);
  for (int64_t k = 0; k < chain.depth(); ++k) {
    const double* step = &chain.steps[3 * k];
    const Matrix a = gram_of(x, rows, cols), square = times(a, a, rows, rows, rows);
    Matrix b(a.size());
    add(b, step[1], a);
    add(b, step[2], square);
    Matrix next = times(b, x, rows, rows, cols);
    add(next, step[0], x);
    x = next;
    add(sum, chain.weights[k + 1], x);
  }
  for (double& value : sum) value *= std::pow(scale, chain.power);
  return sum;
}

inline Matrix squarings_reference(const Matrix& x, int64_t rows, int64_t cols,
                                  const std::vector<double>& coefficients, double power) {
  std::vector<Matrix> powers = {gram_of(x, rows, cols)};
  if (norm(powers[0]) == 0) return Matrix(x.size());
  const int64_t count = static_cast<int64_t>(coefficients.size()) - 1;
  for (int64_t j = 1; j < count; ++j) {
    powers.push_back(times(powers[j - 1], powers[j - 1], rows, rows, rows));
  }
  const double bound = std::pow(norm(powers.back()), std::ldexp(1, -static_cast<int>(count)));
  Matrix sum(rows * rows);
  for (int64_t i = 0; i < rows; ++i) sum[i * rows + i] = coefficients[0];
  for (int64_t j = 0; j < count; ++j) {
    add(sum, coefficients[j + 1] * std::pow(bound, -std::ldexp(1, j + 1)), powers[j]);
  }
  Matrix result = times(sum, x, rows, rows, cols);
  for (double& value : result) value *= std::pow(bound, power - 1);
  return result;
}

}  // namespace references

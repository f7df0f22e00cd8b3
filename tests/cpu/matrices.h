// Matrices as vectors of doubles, and plain loops over them: the truth of the tests of products and
// chains.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace matrices {

using Matrix = std::vector<double>;  // row-major

inline std::mt19937_64 generator(11);

inline Matrix gaussian(int64_t size) {
  std::normal_distribution<double> normal;
  Matrix values(size);
  for (double& value : values) value = normal(generator);
  return values;
}

inline double norm(const Matrix& x) {
  double square = 0;
  for (double value : x) square += value * value;
  return std::sqrt(square);
}

inline void normalise(Matrix& x) {
  const double size = norm(x);
  for (double& value : x) value /= size;
}

inline double distance(const Matrix& x, const Matrix& y) {
  Matrix difference(x.size());
  for (size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - y[i];
  return norm(difference);
}

inline bool same_bits(const Matrix& x, const Matrix& y) {
  return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                    [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); });
}

// The innermost loop, which is not what is tested, goes unwatched.
__attribute__((no_sanitize("address", "undefined"))) inline void add(double* to, double factor,
                                                                     const double* x,
                                                                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * x[i];
}

// x (rows, depth) y (depth, cols)
inline Matrix times(const Matrix& x, const Matrix& y, int64_t rows, int64_t depth, int64_t cols) {
  Matrix result(rows * cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < depth; ++k) {
      add(&result[i * cols], x[i * depth + k], &y[k * cols], cols);
    }
  }
  return result;
}

inline Matrix transposed(const Matrix& x, int64_t rows, int64_t cols) {
  Matrix result(x.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) result[j * rows + i] = x[i * cols + j];
  }
  return result;
}

inline Matrix gram_of(const Matrix& x, int64_t rows, int64_t cols) {
  return times(x, transposed(x, rows, cols), rows, cols, rows);
}

inline void add(Matrix& to, double factor, const Matrix& x) {
  add(to.data(), factor, x.data(), static_cast<int64_t>(to.size()));
}

}  // namespace matrices

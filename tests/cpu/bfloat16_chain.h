// The chain as the equations say, in double or with every result rounded to bfloat16.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace bfloat16_chain {

inline uint16_t to_bfloat16(double value) {
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  if (std::isnan(narrow)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline double to_double(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

inline double rounded(double value) { return to_double(to_bfloat16(value)); }

// A chain whose steps all differ. Its first steps raise small singular values, its last ones
// settle.
struct Chain {
  std::vector<double> steps, weights;
  double power = 0;
  int64_t depth() const { return static_cast<int64_t>(weights.size()) - 1; }
};

inline Chain make_chain(int64_t depth, double power) {
  Chain chain;
  chain.power = power;
  for (int64_t k = 0; k < depth; ++k) {
    const double t = k / 8.0;  // from a steep step towards Newton-Schulz of degree 5
    chain.steps.insert(chain.steps.end(), {2.9 - t, -3.8 + 2.5 * t, 1.8 - 1.4 * t});
  }
  for (int64_t k = 0; k <= depth; ++k) chain.weights.push_back(std::pow(0.6, k) + (k == depth));
  return chain;
}

struct Matrix {
  int64_t rows, cols;
  std::vector<double> data;
  Matrix(int64_t rows, int64_t cols) : rows(rows), cols(cols), data(rows * cols) {}
  double& at(int64_t i, int64_t j) { return data[i * cols + j]; }
  double at(int64_t i, int64_t j) const { return data[i * cols + j]; }
};

// Of Frobenius norm one, rounded.
inline Matrix gaussian(int64_t rows, int64_t cols) {
  static std::mt19937 generator(11);
  std::normal_distribution<double> normal;
  Matrix matrix(rows, cols);
  double square = 0;
  for (double& entry : matrix.data) {
    entry = normal(generator);
    square += entry * entry;
  }
  for (double& entry : matrix.data) entry = rounded(entry / std::sqrt(square));
  return matrix;
}

inline Matrix product(const Matrix& left, const Matrix& right, bool transposed) {
  Matrix result(left.rows, transposed ? right.rows : right.cols);
  for (int64_t i = 0; i < left.rows; ++i) {
    for (int64_t j = 0; j < result.cols; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < left.cols; ++k) {
        sum += left.at(i, k) * (transposed ? right.at(j, k) : right.at(k, j));
      }
      result.at(i, j) = sum;
    }
  }
  return result;
}

// The chain as the equations say, everything stored in double, or rounded to bfloat16.
inline Matrix reference(const Matrix& wide, const Chain& chain, bool rounding) {
  const auto store = [rounding](double value) { return rounding ? rounded(value) : value; };
  double fourth = 0;
  for (double entry : product(wide, wide, true).data) fourth += entry * entry;
  const double tau = std::sqrt(std::sqrt(fourth));
  Matrix x = wide, mixture(wide.rows, wide.cols);
  for (double& entry : x.data) entry = store(entry / tau);
  for (int64_t k = 0;; ++k) {
    for (size_t i = 0; i < x.data.size(); ++i) mixture.data[i] += chain.weights[k] * x.data[i];
    if (k == chain.depth()) break;
    const double *step = chain.steps.data() + 3 * k, a = step[0], b = step[1], c = step[2];
    Matrix gram = product(x, x, true);
    for (double& entry : gram.data) entry = store(entry);
    Matrix factor = product(gram, gram, true);
    for (size_t i = 0; i < gram.data.size(); ++i) {
      factor.data[i] = store(b * gram.data[i] + c * factor.data[i]);
    }
    const Matrix change = product(factor, x, false);
    for (size_t i = 0; i < x.data.size(); ++i) {
      x.data[i] = store(a * x.data[i] + change.data[i]);
    }
  }
  for (double& entry : mixture.data) entry = store(std::pow(tau, chain.power) * entry);
  return mixture;
}

}  // namespace bfloat16_chain

// The chain on the host: in double, or with everything stored rounded to a dtype, its mixture and
// its sums excepted.
#pragma once

#include "wide_batches.h"

namespace chain_twin {

using namespace wide_batches;
using matrices::add;
using matrices::gram_of;
using matrices::times;

struct Chain {
  Matrix steps;  // a, b, c of each
  Matrix weights;
  double power;
  int depth() const { return static_cast<int>(weights.size()) - 1; }
};

struct Form {
  bool gram;
  std::vector<int64_t> restarts;
};

inline Matrix scaled(Matrix x, double factor) {
  for (double& value : x) value *= factor;
  return x;
}

// Roundings may be lucky in small matrices: the worst of these scales that things are stored in is
// what to expect.
constexpr double kScales[] = {1, 1.07, 1.13, 1.19, 1.31, 1.37};

// What is stored, as `scale` times what it stands for. float64 stands for no rounding.
class Rounded {
 public:
  explicit Rounded(Dtype dtype, double scale = 1) : dtype_(dtype), scale_(scale) {}
  Matrix operator()(const Matrix& x) const {
    if (dtype_ == Dtype::kFloat64) return x;
    return scaled(rounded(scaled(x, scale_), dtype_), 1 / scale_);
  }

 private:
  Dtype dtype_;
  double scale_;
};

// sum = x first + y second
inline Matrix sum_of(double first, const Matrix& x, double second, const Matrix& y) {
  Matrix sum = scaled(x, first);
  add(sum, second, y);
  return sum;
}

inline Matrix with_identity(Matrix x, double factor, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) x[i * rows + i] += factor;
  return x;
}

inline Matrix polynomial(const Chain& chain, int k, const Matrix& a, int64_t rows) {
  return sum_of(chain.steps[3 * k + 1], a, chain.steps[3 * k + 2], times(a, a, rows, rows, rows));
}

inline Matrix direct_mixture(const Matrix& input, int64_t rows, int64_t cols, const Chain& chain,
                             double tau, Rounded store) {
  Matrix sum = scaled(input, chain.weights[0] / tau), x = input;
  for (int k = 0; k < chain.depth(); ++k) {
    const double unit = k == 0 ? 1 / tau : 1;
    const Matrix a = store(scaled(gram_of(x, rows, cols), unit * unit));
    const Matrix p = store(polynomial(chain, k, a, rows));
    x = store(sum_of(unit * chain.steps[3 * k], x, unit, times(p, x, rows, rows, cols)));
    add(sum, chain.weights[k + 1], x);
  }
  return sum;
}

inline Matrix gram_mixture(const Matrix& input, int64_t rows, int64_t cols, const Chain& chain,
                           double tau, Rounded store, const std::vector<int64_t>& restarts) {
  Matrix sum = scaled(input, chain.weights[0] / tau), x = input, q, s, r;
  double unit = 1 / tau;
  bool begins = true;
  size_t restart = 0;
  for (int k = 0; k < chain.depth(); ++k) {
    const double a = chain.steps[3 * k];
    if (begins) r = store(scaled(gram_of(x, rows, cols), unit * unit));
    const Matrix b = store(polynomial(chain, k, r, rows));
    q = store(begins ? with_identity(b, a, rows) : sum_of(a, q, 1, times(q, b, rows, rows, rows)));
    if (begins) s = Matrix(q.size());
    add(s, chain.weights[k + 1], q);
    const Matrix t = store(sum_of(a, r, 1, times(r, b, rows, rows, rows)));
    r = store(sum_of(a, t, 1, times(t, b, rows, rows, rows)));
    begins = restart < restarts.size() && restarts[restart] == k + 1;
    if (begins || k + 1 == chain.depth()) add(sum, unit, times(store(s), x, rows, rows, cols));
    if (!begins) continue;
    x = store(scaled(times(q, x, rows, rows, cols), unit));
    unit = 1;
    ++restart;
  }
  return sum;
}

// What a chain whose matrices are stored in this way gives for x.
inline Matrix direction_of(const Matrix& x, int64_t rows, int64_t cols, const Chain& chain,
                           Rounded store = Rounded(Dtype::kFloat64),
                           const Form& form = {false, {}}) {
  const double tau = std::sqrt(matrices::norm(gram_of(x, rows, cols)));
  if (tau == 0) return Matrix(x.size());
  const Matrix mixture = form.gram ? gram_mixture(x, rows, cols, chain, tau, store, form.restarts)
                                   : direct_mixture(x, rows, cols, chain, tau, store);
  return store(scaled(mixture, std::pow(tau, chain.power)));
}

// V diag(lambda) V' of a symmetric matrix, by Jacobi's rotations: map(lambda) in place of lambda.
inline Matrix mapped(Matrix a, int64_t n, const std::function<double(double)>& map) {
  Matrix v = with_identity(Matrix(n * n), 1, n);
  for (int64_t turn = 0; turn < 12 * n * n; ++turn) {
    const int64_t i = turn / n % n, j = turn % n;
    if (i >= j || a[i * n + j] == 0) continue;
    const double angle = std::atan2(2 * a[i * n + j], a[j * n + j] - a[i * n + i]) / 2;
    const double c = std::cos(angle), s = std::sin(angle);
    for (int64_t k = 0; k < n; ++k) {
      const double x = a[k * n + i], y = a[k * n + j], p = v[k * n + i], q = v[k * n + j];
      a[k * n + i] = c * x - s * y, a[k * n + j] = s * x + c * y;
      v[k * n + i] = c * p - s * q, v[k * n + j] = s * p + c * q;
    }
    for (int64_t k = 0; k < n; ++k) {
      const double x = a[i * n + k], y = a[j * n + k];
      a[i * n + k] = c * x - s * y, a[j * n + k] = s * x + c * y;
    }
  }
  Matrix scaled_v = v;
  for (int64_t i = 0; i < n * n; ++i) scaled_v[i] *= map(a[i % n * (n + 1)]);
  return times(scaled_v, matrices::transposed(v, n, n), n, n, n);
}

// U s^power V' of x = U s V', by the eigenvalues of its Gram matrix.
inline Matrix exact_direction(const Matrix& x, int64_t rows, int64_t cols, double power) {
  const Matrix side = mapped(gram_of(x, rows, cols), rows,
                             [&](double square) { return std::pow(square, (power - 1) / 2); });
  return times(side, x, rows, rows, cols);
}

}  // namespace chain_twin

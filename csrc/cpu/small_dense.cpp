#include "small_dense.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace schattor::cpu {
namespace {

double dot(const double* x, const double* y, int64_t n) {
  return std::inner_product(x, x + n, y, 0.0);
}

void rotate(double* x, double* y, double cosine, double sine, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double xi = x[i], yi = y[i];
    x[i] = cosine * xi - sine * yi;
    y[i] = sine * xi + cosine * yi;
  }
}

// Makes columns k < l of B orthogonal. False where they were.
bool rotate_pair(double* b, double* p, int64_t k, int64_t l, int64_t n) {
  double *bk = b + k * n, *bl = b + l * n;
  const double kk = dot(bk, bk, n), ll = dot(bl, bl, n), kl = dot(bk, bl, n);
  const double tolerance = 4 * std::numeric_limits<double>::epsilon();
  if (!(std::abs(kl) > tolerance * std::sqrt(kk) * std::sqrt(ll))) return false;
  // The smaller root of t^2 + 2 zeta t - 1 = 0: the rotation by less than 45 degrees.
  const double zeta = (ll - kk) / (2 * kl);
  const double tangent = std::copysign(1.0, zeta) / (std::abs(zeta) + std::hypot(1.0, zeta));
  const double cosine = 1 / std::hypot(1.0, tangent), sine = cosine * tangent;
  rotate(bk, bl, cosine, sine, n);
  rotate(p + k * n, p + l * n, cosine, sine, n);
  return true;
}

// Selection sort by falling length: few columns, and each moves once.
void sort_columns(double* b, double* p, int64_t n) {
  std::vector<double> squares(n);
  for (int64_t k = 0; k < n; ++k) squares[k] = dot(b + k * n, b + k * n, n);
  for (int64_t k = 0; k < n; ++k) {
    const int64_t longest = std::max_element(squares.begin() + k, squares.end()) - squares.begin();
    if (longest == k) continue;
    std::swap(squares[k], squares[longest]);
    std::swap_ranges(b + k * n, b + (k + 1) * n, b + longest * n);
    std::swap_ranges(p + k * n, p + (k + 1) * n, p + longest * n);
  }
}

}  // namespace

double cholesky(double* a, int64_t n) {
  double smallest = 1;
  for (int64_t k = 0; k < n; ++k) {
    double* row = a + k * n;
    const double before = row[k];
    for (int64_t l = 0; l < k; ++l) {
      row[l] = (row[l] - dot(row, a + l * n, l)) / a[l * n + l];
    }
    const double pivot = before - dot(row, row, k);
    if (!(pivot > 0)) return 0;
    smallest = std::min(smallest, pivot / before);
    row[k] = std::sqrt(pivot);
  }
  return smallest;
}

void jacobi_columns(double* b, double* p, int64_t n) {
  std::fill(p, p + n * n, 0.0);
  for (int64_t k = 0; k < n; ++k) p[k * n + k] = 1;
  // Convergence is quadratic; a dozen sweeps are already rare.
  constexpr int kSweeps = 60;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    // Sorted columns converge in fewer sweeps.
    sort_columns(b, p, n);
    bool rotated = false;
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t l = k + 1; l < n; ++l) rotated |= rotate_pair(b, p, k, l, n);
    }
    if (!rotated) break;
  }
  sort_columns(b, p, n);
}

}  // namespace schattor::cpu

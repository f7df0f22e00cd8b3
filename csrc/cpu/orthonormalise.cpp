#include "orthonormalise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "small_dense.h"

namespace schattor::cpu {
namespace {

constexpr double kDoubleEpsilon = std::numeric_limits<double>::epsilon();
// Columns that the triangular solve holds in double at a time.
constexpr int64_t kSolveColumns = 64;

}  // namespace

template <class T>
void Orthonormaliser<T>::operator()(T* panel, int64_t count, int64_t length) {
  bool orthonormal = false;
  if (!cholesky_pass(panel, count, length, &orthonormal)) {
    gram_schmidt(panel, count, length);
  } else if (!orthonormal && !cholesky_pass(panel, count, length, &orthonormal)) {
    gram_schmidt(panel, count, length);
  }
}

// One pass of Cholesky QR on the vectors scaled to unit length, so that only the angles between
// them matter. False, and the panel as it was, where they are too close to dependent.
template <class T>
bool Orthonormaliser<T>::cholesky_pass(T* panel, int64_t count, int64_t length, bool* orthonormal) {
  gram_.assign(count * count, 0.0);
  inverse_lengths_.resize(count);
  for (int64_t k = 0; k < count; ++k) {
    const T* row = panel + k * length;
    const double square = kernels_.dot(row, row, length);
    if (!(square > 0)) return false;
    inverse_lengths_[k] = 1 / std::sqrt(square);
    for (int64_t l = 0; l < k; ++l) {
      gram_[k * count + l] =
          kernels_.dot(row, panel + l * length, length) * inverse_lengths_[k] * inverse_lengths_[l];
    }
    gram_[k * count + k] = 1;
  }
  // The pass leaves |Q'Q - I| of about count epsilon / pivot, from the rounding of the Gram.
  const double rounding = count * kDoubleEpsilon, pivot = cholesky(gram_.data(), count);
  if (pivot <= 64 * rounding) return false;
  *orthonormal = rounding / pivot <= 8 * double(std::numeric_limits<T>::epsilon());
  solve(panel, count, length);
  return true;
}

// Rows of L^-1 D^-1 panel, L in gram_ and 1/D in inverse_lengths_, by stretches of columns in
// double, rounded once.
template <class T>
void Orthonormaliser<T>::solve(T* panel, int64_t count, int64_t length) {
  tile_.resize(count * kSolveColumns);
  for (int64_t j = 0; j < length; j += kSolveColumns) {
    const int64_t width = std::min(kSolveColumns, length - j);
    for (int64_t k = 0; k < count; ++k) {
      T* stored = panel + k * length + j;
      double* row = tile_.data() + k * kSolveColumns;
      for (int64_t t = 0; t < width; ++t) row[t] = stored[t] * inverse_lengths_[k];
      for (int64_t l = 0; l < k; ++l) {
        const double factor = gram_[k * count + l], *other = tile_.data() + l * kSolveColumns;
        for (int64_t t = 0; t < width; ++t) row[t] -= factor * other[t];
      }
      const double inverse = 1 / gram_[k * count + k];
      for (int64_t t = 0; t < width; ++t) {
        row[t] *= inverse;
        stored[t] = static_cast<T>(row[t]);
      }
    }
  }
}

// For dependent vectors: Gram-Schmidt one by one, and unit vectors for those that leave nothing.
template <class T>
void Orthonormaliser<T>::gram_schmidt(T* panel, int64_t count, int64_t length) {
  vector_.resize(length);
  for (int64_t k = 0; k < count; ++k) {
    T* row = panel + k * length;
    std::copy(row, row + length, vector_.begin());
    if (!project(panel, k, length)) take_unit_vector(panel, k, length);
    for (int64_t t = 0; t < length; ++t) row[t] = static_cast<T>(vector_[t]);
  }
}

// Makes vector_ a unit vector orthogonal to the first k rows. False where it lay in their span up
// to rounding.
template <class T>
bool Orthonormaliser<T>::project(const T* panel, int64_t k, int64_t length) {
  const auto normalise = [&] {
    double square = 0;
    for (int64_t t = 0; t < length; ++t) square += vector_[t] * vector_[t];
    const double norm = std::sqrt(square);
    if (norm > 0) {
      for (int64_t t = 0; t < length; ++t) vector_[t] /= norm;
    }
    return norm;
  };
  if (!(normalise() > 0)) return false;
  // Twice is enough (Kahan, Parlett), and three times where the rows are rounded to float.
  double remains = 1;
  for (int pass = 0; pass < 3; ++pass) {
    for (int64_t l = 0; l < k; ++l) {
      const T* other = panel + l * length;
      double inner = 0;
      for (int64_t t = 0; t < length; ++t) inner += vector_[t] * other[t];
      for (int64_t t = 0; t < length; ++t) vector_[t] -= inner * other[t];
    }
    remains *= normalise();
    if (!(remains > 64 * double(std::numeric_limits<T>::epsilon()))) return false;
  }
  return true;
}

// The coordinate vector that the first k rows cover least: since k < length it leaves at least
// 1 / length of its square after projection.
template <class T>
void Orthonormaliser<T>::take_unit_vector(const T* panel, int64_t k, int64_t length) {
  cover_.assign(length, 0.0);
  for (int64_t l = 0; l < k; ++l) {
    const T* other = panel + l * length;
    for (int64_t t = 0; t < length; ++t) cover_[t] += double(other[t]) * other[t];
  }
  std::fill(vector_.begin(), vector_.end(), 0.0);
  vector_[std::min_element(cover_.begin(), cover_.end()) - cover_.begin()] = 1;
  project(panel, k, length);
}

template class Orthonormaliser<float>;
template class Orthonormaliser<double>;

}  // namespace schattor::cpu

// power_step by what a QR is, in double: Q'Q = I, and Q'(F Q_0) has nothing below its diagonal, for
// every instruction set, both dtypes, and factors of any rank and size.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "lists.h"
#include "matrices.h"

namespace {

using namespace schattor::cpu;
using lists::kDtype, lists::kUnit;
using matrices::Matrix;

template <typename T>
struct Stepped {
  std::vector<T> bases;
  std::vector<int64_t> orders;

  bool operator==(const Stepped& other) const {
    return bases == other.bases && orders == other.orders;
  }
};

template <typename T>
struct Case {
  // Factors X X' of X (size, rank), times a size; bases that are Gaussian, which is all that a
  // product is asked of.
  Case(int64_t batch, int64_t size, int64_t rank, double scale = 1) : batch(batch), size(size) {
    for (int64_t i = 0; i < batch; ++i) {
      const Matrix f = matrices::gram_of(matrices::gaussian(size * rank), size, rank);
      for (double value : f) factors.push_back(static_cast<T>(value * scale));
    }
    const Matrix q = matrices::gaussian(batch * size * size);
    bases.assign(q.begin(), q.end());
  }

  // Matrices first .. first + count after the call.
  Stepped<T> stepped(bool sorted, int threads, int64_t first, int64_t count) const {
    const int64_t square = size * size;
    Stepped<T> out{std::vector<T>(count * square, T{7}), std::vector<int64_t>(count * size, -1)};
    power_step(
        {count, size, kDtype<T>, factors.data() + first * square, bases.data() + first * square,
         out.bases.data(), sorted ? out.orders.data() : nullptr},
        lists::on_threads(threads));
    return out;
  }

  Matrix one(const std::vector<T>& batch_of, int64_t i) const {
    return {batch_of.begin() + i * size * size, batch_of.begin() + (i + 1) * size * size};
  }

  int64_t batch, size;
  std::vector<T> factors, bases;
};

// The columns of F Q_0 in their order, each of norm 1 or 0.
template <typename T>
Matrix columns_of(const Case<T>& c, int64_t i, const int64_t* order) {
  const int64_t n = c.size;
  const Matrix product = matrices::times(c.one(c.factors, i), c.one(c.bases, i), n, n, n);
  Matrix columns(n * n);
  for (int64_t k = 0; k < n; ++k) {
    double square = 0;
    for (int64_t r = 0; r < n; ++r) square += product[r * n + order[k]] * product[r * n + order[k]];
    for (int64_t r = 0; r < n && square > 0; ++r) {
      columns[r * n + k] = product[r * n + order[k]] / std::sqrt(square);
    }
  }
  return columns;
}

// The entries of Q'Q - I.
Matrix off_orthonormal(const Matrix& q, int64_t n) {
  Matrix gram = matrices::gram_of(matrices::transposed(q, n, n), n, n);
  for (int64_t k = 0; k < n; ++k) gram[k * n + k] -= 1;
  return gram;
}

template <typename T>
void check_order(const Case<T>& c, int64_t i, const std::vector<int64_t>& order) {
  const int64_t n = c.size;
  const Matrix basis = c.one(c.bases, i);
  const Matrix product = matrices::times(c.one(c.factors, i), basis, n, n, n);
  std::vector<double> values(n), sizes(n);
  for (int64_t k = 0; k < n * n; ++k) {
    values[k % n] += basis[k] * product[k];
    sizes[k % n] += std::fabs(basis[k] * product[k]);
  }
  const double most = *std::max_element(sizes.begin(), sizes.end());
  std::vector<int64_t> sorted(order);
  std::sort(sorted.begin(), sorted.end());
  bool each = true, descends = true;
  for (int64_t k = 0; k < n; ++k) {
    each &= sorted[k] == k;
    descends &= k == 0 || values[order[k]] <= values[order[k - 1]] + 4 * n * kUnit<T> * most;
  }
  CHECK(each && descends, "size %ld", long(n));
}

template <typename T>
void check_case(const Case<T>& c, bool sorted) {
  const int64_t n = c.size;
  const Stepped<T> got = c.stepped(sorted, 1, 0, c.batch);
  CHECK(c.stepped(sorted, 3, 0, c.batch) == got, "size %ld: 3 threads", long(n));
  if (n == 0) return;
  const double limit = (20 + 4 * std::sqrt(double(n))) * kUnit<T>;
  for (int64_t i = 0; i < c.batch; ++i) {
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), int64_t{0});
    if (sorted) {
      order.assign(got.orders.begin() + i * n, got.orders.begin() + (i + 1) * n);
      check_order(c, i, order);
    }
    const Matrix q = c.one(got.bases, i), turned = matrices::transposed(q, n, n);
    double worst = 0, below = 0;
    for (double value : off_orthonormal(q, n)) worst = std::max(worst, std::fabs(value));
    CHECK(worst <= limit, "size %ld: Q'Q off by %g units", long(n), worst / kUnit<T>);
    const Matrix r = matrices::times(turned, columns_of(c, i, order.data()), n, n, n);
    for (int64_t k = 0; k < n * n; ++k) {
      if (k / n > k % n) below = std::max(below, std::fabs(r[k]));
    }
    // Rounding of the product, by its terms, comes on top.
    CHECK(below <= (n + 4) * limit, "size %ld: %g units below the diagonal", long(n),
          below / kUnit<T>);
  }
  if (c.batch == 0) return;
  const Stepped<T> alone = c.stepped(sorted, 2, c.batch - 1, 1);
  CHECK(
      std::equal(alone.bases.begin(), alone.bases.end(), got.bases.begin() + (c.batch - 1) * n * n),
      "size %ld: batch of one", long(n));
}

template <typename T>
void sizes() {
  for (const bool sorted : {false, true}) {
    for (const int64_t n : {0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 100}) {
      check_case(Case<T>(2, n, n + 3), sorted);
    }
    check_case(Case<T>(0, 5, 5), sorted);
    check_case(Case<T>(1, 230, 240), sorted);  // one matrix for all threads
  }
}

// Columns that are zero, dependent, or whose squares a dtype cannot hold.
template <typename T>
void any_rank_and_size() {
  for (const bool sorted : {false, true}) {
    check_case(Case<T>(2, 50, 0), sorted);
    const double tiny = sizeof(T) == sizeof(double) ? 1e-300 : 1e-30;
    for (const double scale : {tiny, 1 / tiny}) check_case(Case<T>(2, 50, 60, scale), sorted);
    // Columns of very different sizes, each by its own.
    Case<T> graded(2, 50, 60);
    const double step = sizeof(T) == sizeof(double) ? 1e100 : 1e14;
    for (size_t k = 0; k < graded.bases.size(); ++k) {
      const int64_t kind = k % 50 % 3;
      graded.bases[k] *= static_cast<T>(kind == 0 ? step : kind == 1 ? 1 / step : 1);
    }
    check_case(graded, sorted);
    // What is left of dependent columns is rounding: of these Q'Q = I alone is asked.
    for (const int64_t rank : {1, 7}) {
      const Case<T> c(1, 50, rank);
      const Matrix q = c.one(c.stepped(sorted, 1, 0, 1).bases, 0);
      const double off = matrices::norm(off_orthonormal(q, 50));
      CHECK(off <= 1000 * kUnit<T>, "rank %ld: %g units", long(rank), off / kUnit<T>);
    }
  }
}

// Products below the smallest normal number have few bits, but bases have all.
template <typename T>
void subnormal() {
  const double tiny = sizeof(T) == sizeof(double) ? 1e-312 : 1e-42;
  const Case<T> c(1, 50, 60, tiny);
  const double off = matrices::norm(off_orthonormal(c.one(c.stepped(true, 1, 0, 1).bases, 0), 50));
  CHECK(off <= 1000 * kUnit<T>, "%g units", off / kUnit<T>);
}

// Columns of NaN come last, as they were, and the others descend.
template <typename T>
void columns_of_nan() {
  Case<T> c(1, 40, 50);
  for (int64_t k = 0; k < 40 * 40; ++k) {
    if (k % 40 % 3 == 1) c.bases[k] = NAN;
  }
  const std::vector<int64_t> order = c.stepped(true, 1, 0, 1).orders;
  const int64_t finite = 27;
  bool last = true;
  for (int64_t k = 0; k < 40; ++k) {
    last &= (order[k] % 3 == 1) == (k >= finite);
    last &= k <= finite || order[k] > order[k - 1];
  }
  CHECK(last, "%s", "NaN is not last");
}

// A product that is triangular already has nothing to reflect but signs.
template <typename T>
void a_diagonal_product_gives_unit_vectors() {
  Case<T> c(1, 70, 0);
  for (int64_t k = 0; k < 70 * 70; ++k) {
    const bool diagonal = k / 70 == k % 70;
    c.factors[k] = diagonal ? T(k % 7) : T{0};
    c.bases[k] = diagonal ? T{1} : T{0};
  }
  const std::vector<T> q = c.stepped(false, 1, 0, 1).bases;
  bool holds = true;
  for (int64_t k = 0; k < 70 * 70; ++k) {
    holds &= std::fabs(q[k]) == (k / 70 == k % 70 ? T{1} : T{0});
  }
  CHECK(holds, "%s", "not unit vectors");
}

// What comes from a matrix stays in it; it is sorted into some order all the same.
void not_finite() {
  Case<float> c(3, 60, 70);
  const Stepped<float> before = c.stepped(true, 1, 0, 3);
  c.factors[60 * 60 + 7] = NAN;
  const Stepped<float> after = c.stepped(true, 1, 0, 3);
  bool kept = true, told = false;
  for (int64_t k = 0; k < 3 * 60 * 60; ++k) {
    const bool second = k / (60 * 60) == 1;
    kept &= second || after.bases[k] == before.bases[k];
    told |= second && std::isnan(after.bases[k]);
  }
  std::vector<int64_t> order(after.orders.begin() + 60, after.orders.begin() + 120);
  std::sort(order.begin(), order.end());
  for (int64_t k = 0; k < 60; ++k) kept &= order[k] == k;
  CHECK(kept && told, "%s", "NaN");
}

}  // namespace

int main() {
  lists::at_each_level([] {
    sizes<float>();
    sizes<double>();
    any_rank_and_size<float>();
    any_rank_and_size<double>();
    a_diagonal_product_gives_unit_vectors<float>();
    a_diagonal_product_gives_unit_vectors<double>();
    subnormal<float>();
    subnormal<double>();
    columns_of_nan<float>();
    columns_of_nan<double>();
    not_finite();
  });
  return check::finish();
}

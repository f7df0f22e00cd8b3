// partial_svd against matrices built from known singular triples.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "lists.h"

namespace {

using schattor::cpu::Dtype;
using schattor::cpu::Parallel;
using schattor::cpu::PartialSvdArgs;

template <class T>
constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;

std::mt19937_64 generator(7);

std::vector<double> gaussian(int64_t size) {
  std::normal_distribution<double> normal;
  std::vector<double> values(size);
  for (double& value : values) value = normal(generator);
  return values;
}

// (length, count) with orthonormal columns.
std::vector<double> orthonormal(int64_t length, int64_t count) {
  std::vector<double> q = gaussian(length * count);
  for (int64_t k = 0; k < count; ++k) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t l = 0; l < k; ++l) {
        double inner = 0;
        for (int64_t i = 0; i < length; ++i) inner += q[i * count + l] * q[i * count + k];
        for (int64_t i = 0; i < length; ++i) q[i * count + k] -= inner * q[i * count + l];
      }
      double square = 0;
      for (int64_t i = 0; i < length; ++i) square += q[i * count + k] * q[i * count + k];
      for (int64_t i = 0; i < length; ++i) q[i * count + k] /= std::sqrt(square);
    }
  }
  return q;
}

template <class T>
std::vector<T> rounded(const std::vector<double>& values, double factor = 1) {
  std::vector<T> result(values.size());
  std::transform(values.begin(), values.end(), result.begin(),
                 [factor](double value) { return static_cast<T>(factor * value); });
  return result;
}

// (rows, cols) with the given singular values.
std::vector<double> with_spectrum(int64_t rows, int64_t cols, const std::vector<double>& s) {
  const std::vector<double> u = orthonormal(rows, rows), v = orthonormal(cols, rows);
  std::vector<double> x(rows * cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < rows; ++k) sum += u[i * rows + k] * s[k] * v[j * rows + k];
      x[i * cols + j] = sum;
    }
  }
  return x;
}

template <class T>
struct Triples {
  std::vector<T> u, s, v;
};

template <class T>
Triples<T> run(const std::vector<T>& wide, const std::vector<T>& start, int64_t batch, int64_t rows,
               int64_t cols, int64_t rank, int64_t iterations, const Parallel& parallel = {}) {
  Triples<T> out{std::vector<T>(batch * rows * rank), std::vector<T>(batch * rank),
                 std::vector<T>(batch * cols * rank)};
  PartialSvdArgs args{batch,       rows,         cols,         rank,         iterations,  kDtype<T>,
                      wide.data(), start.data(), out.u.data(), out.s.data(), out.v.data()};
  partial_svd(args, parallel);
  return out;
}

// max |Q'Q - I|, q (length, count).
template <class T>
double orthogonality(const T* q, int64_t length, int64_t count) {
  double worst = 0;
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t l = 0; l <= k; ++l) {
      double inner = k == l ? -1 : 0;
      for (int64_t i = 0; i < length; ++i) inner += double(q[i * count + k]) * q[i * count + l];
      // Negated so that NaN is the worst.
      if (!(std::abs(inner) <= worst)) worst = std::abs(inner);
    }
  }
  return worst;
}

// max_k |X v_k - s_k u_k|, or |X'u_k - s_k v_k|, over the first `count` triples.
template <class T>
double residual(const T* x, int64_t rows, int64_t cols, const Triples<T>& t, int64_t rank,
                bool transposed, int64_t count) {
  double worst = 0;
  const int64_t outer = transposed ? cols : rows, inner = transposed ? rows : cols;
  const std::vector<T>&from = transposed ? t.u : t.v, &to = transposed ? t.v : t.u;
  for (int64_t k = 0; k < count; ++k) {
    double square = 0;
    for (int64_t i = 0; i < outer; ++i) {
      double sum = -double(t.s[k]) * to[i * rank + k];
      for (int64_t j = 0; j < inner; ++j) {
        sum += double(transposed ? x[j * cols + i] : x[i * cols + j]) * from[j * rank + k];
      }
      square += sum * sum;
    }
    if (!(std::sqrt(square) <= worst)) worst = std::sqrt(square);
  }
  return worst;
}

// What holds for any input and start.
template <class T>
void check_triples(const char* name, const std::vector<T>& x, int64_t rows, int64_t cols,
                   const Triples<T>& t, int64_t rank, double largest) {
  const double epsilon = std::numeric_limits<T>::epsilon();
  const double scale = largest > 0 ? largest : 1;
  const double u = orthogonality(t.u.data(), rows, rank) / epsilon;
  const double v = orthogonality(t.v.data(), cols, rank) / epsilon;
  const double r = residual(x.data(), rows, cols, t, rank, false, rank) / scale / epsilon;
  CHECK(u <= rank + 10, "%s %ldx%ld rank %ld: |U'U - I| is %.3g eps", name, rows, cols, rank, u);
  CHECK(v <= rank + 10, "%s %ldx%ld rank %ld: |V'V - I| is %.3g eps", name, rows, cols, rank, v);
  CHECK(r <= 50, "%s %ldx%ld rank %ld: |X v - s u| is %.3g eps s_1", name, rows, cols, rank, r);
  CHECK(std::is_sorted(t.s.rbegin(), t.s.rend()) && t.s[rank - 1] >= 0,
        "%s %ldx%ld rank %ld: s is not descending", name, rows, cols, rank);
}

struct Shape {
  int64_t rows, cols, rank;
};
const Shape kShapes[] = {{1, 1, 1},   {1, 7, 1},     {3, 5, 2},      {5, 5, 5},   {17, 33, 4},
                         {40, 65, 8}, {33, 1100, 5}, {100, 100, 33}, {48, 49, 48}};

std::vector<double> geometric(int64_t count, double ratio) {
  std::vector<double> s(count);
  for (int64_t k = 0; k < count; ++k) s[k] = std::pow(ratio, k);
  return s;
}

// Well separated values: the iteration converges, so every triple is the matrix's own.
template <class T>
void test_separated(const Shape& shape) {
  const auto [rows, cols, rank] = shape;
  const std::vector<double> s = geometric(rows, 0.5);
  const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, s));
  const Triples<T> t = run(x, rounded<T>(gaussian(cols * rank)), 1, rows, cols, rank, 30);
  check_triples("separated", x, rows, cols, t, rank, 1);
  const double epsilon = std::numeric_limits<T>::epsilon();
  for (int64_t k = 0; k < rank; ++k) {
    CHECK(std::abs(t.s[k] - s[k]) <= 50 * epsilon, "%ldx%ld: s_%ld is %.9g, not %.9g", rows, cols,
          k, double(t.s[k]), s[k]);
  }
  const double left = residual(x.data(), rows, cols, t, rank, true, std::min<int64_t>(rank, 4));
  CHECK(left <= 400 * epsilon, "%ldx%ld: |X'u - s v| is %.3g eps", rows, cols, left / epsilon);
}

// Repeated and zero singular values, and zero matrices.
template <class T>
void test_degenerate(const Shape& shape) {
  const auto [rows, cols, rank] = shape;
  const std::vector<T> start = rounded<T>(gaussian(cols * rank));
  for (int64_t kept : {int64_t(0), int64_t(1), rows / 2, rows}) {
    std::vector<double> s(rows, 0.0);
    std::fill_n(s.begin(), kept, 1.0);
    const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, s));
    const Triples<T> t = run(x, start, 1, rows, cols, rank, 2);
    check_triples("degenerate", x, rows, cols, t, rank, kept > 0);
    const double tolerance = 50 * double(std::numeric_limits<T>::epsilon());
    for (int64_t k = 0; k < rank; ++k) {
      const double truth = k < kept ? 1 : 0;
      CHECK(std::abs(t.s[k] - truth) <= (kept > 0 ? tolerance : 0),
            "%ldx%ld of rank %ld: s_%ld is %.9g", rows, cols, kept, k, double(t.s[k]));
    }
  }
}

// Starts that lie in fewer dimensions than they should.
template <class T>
void test_starts(const Shape& shape) {
  const auto [rows, cols, rank] = shape;
  const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, geometric(rows, 0.5)));
  const std::vector<double> vector = gaussian(cols);
  for (const double other : {0.0, 1e-9, 1e-5}) {
    const std::vector<double> noise = gaussian(cols * rank);
    std::vector<T> start(cols * rank);
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t k = 0; k < rank; ++k) {
        start[j * rank + k] = static_cast<T>(vector[j] + other * noise[j * rank + k]);
      }
    }
    check_triples("one start", x, rows, cols, run(x, start, 1, rows, cols, rank, 1), rank, 1);
  }
  const std::vector<T> zeros(cols * rank, T(0));
  check_triples("zero start", x, rows, cols, run(x, zeros, 1, rows, cols, rank, 3), rank, 1);
}

// Powers of two far beyond where squares fit change nothing but s.
template <class T>
void test_scales() {
  const int64_t rows = 20, cols = 50, rank = 6;
  const std::vector<double> x = with_spectrum(rows, cols, geometric(rows, 0.7));
  const std::vector<T> start = rounded<T>(gaussian(cols * rank));
  const std::vector<T> plain = rounded<T>(x);
  const int widest = sizeof(T) == 8 ? 1000 : 100;
  const Triples<T> expected = run(plain, start, 1, rows, cols, rank, 5);
  for (int exponent : {-widest, -60, 60, widest}) {
    const double factor = std::ldexp(1.0, exponent);
    const std::vector<T> scaled = rounded<T>(x, factor);
    const Triples<T> t = run(scaled, start, 1, rows, cols, rank, 5);
    const double epsilon = std::numeric_limits<T>::epsilon();
    for (int64_t k = 0; k < rank; ++k) {
      const double ratio = t.s[k] / factor / expected.s[k];
      CHECK(std::abs(ratio - 1) <= 4 * epsilon, "2^%d: s_%ld is off by %.3g", exponent, k,
            ratio - 1);
    }
    CHECK(orthogonality(t.u.data(), rows, rank) <= 20 * epsilon, "2^%d: u", exponent);
    CHECK(orthogonality(t.v.data(), cols, rank) <= 20 * epsilon, "2^%d: v", exponent);
    // A start of any size is the same start.
    std::vector<T> far = start;
    for (T& entry : far) entry = std::ldexp(entry, exponent);
    const Triples<T> from_far = run(plain, far, 1, rows, cols, rank, 5);
    CHECK(from_far.v == expected.v, "start of 2^%d", exponent);
  }
}

// The same bits whatever the batch, the threads and their order.
template <class T>
void test_batch() {
  const int64_t batch = 5, rows = 12, cols = 31, rank = 3;
  const std::vector<T> x = rounded<T>(gaussian(batch * rows * cols));
  const std::vector<T> start = rounded<T>(gaussian(batch * cols * rank));
  const Triples<T> whole = run(x, start, batch, rows, cols, rank, 4);
  Parallel backwards;
  backwards.threads = 3;
  backwards.run = [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    for (int64_t end = count; end > 0; end -= 2) body(std::max<int64_t>(0, end - 2), end);
  };
  const Triples<T> parts = run(x, start, batch, rows, cols, rank, 4, backwards);
  CHECK(whole.u == parts.u && whole.s == parts.s && whole.v == parts.v, "parts differ");
  for (int64_t i = 0; i < batch; ++i) {
    const std::vector<T> xi(x.begin() + i * rows * cols, x.begin() + (i + 1) * rows * cols);
    const std::vector<T> si(start.begin() + i * cols * rank, start.begin() + (i + 1) * cols * rank);
    const Triples<T> one = run(xi, si, 1, rows, cols, rank, 4);
    CHECK(std::equal(one.v.begin(), one.v.end(), whole.v.begin() + i * cols * rank), "matrix %ld",
          i);
    check_triples("batch", xi, rows, cols, one, rank, one.s[0]);
  }
}

// A matrix that is not finite gives NaN, and harms no other of its batch.
template <class T>
void test_not_finite() {
  const int64_t rows = 6, cols = 9, rank = 2;
  std::vector<T> x = rounded<T>(gaussian(3 * rows * cols));
  x[rows * cols + 5] = std::numeric_limits<T>::infinity();
  x[2 * rows * cols + 1] = std::numeric_limits<T>::quiet_NaN();
  const std::vector<T> start = rounded<T>(gaussian(3 * cols * rank));
  const Triples<T> t = run(x, start, 3, rows, cols, rank, 2);
  for (int64_t i = 0; i < 3 * rank; ++i) {
    CHECK(std::isfinite(t.s[i]) == (i < rank), "s[%ld] is %g", i, double(t.s[i]));
  }
}

template <class T>
void test_all() {
  for (const Shape& shape : kShapes) {
    test_separated<T>(shape);
    test_degenerate<T>(shape);
    test_starts<T>(shape);
  }
  test_scales<T>();
  test_batch<T>();
  test_not_finite<T>();
}

}  // namespace

int main() {
  lists::at_each_level([] {
    test_all<float>();
    test_all<double>();
  });
  return check::finish();
}

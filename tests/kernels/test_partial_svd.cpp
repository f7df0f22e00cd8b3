// partial_svd against matrices built from known singular triples, on both of its paths.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "device_test.h"
#include "partial_svd_paths.h"

namespace {

using device_test::Buffer;
using schattor::cuda::Dtype;
using schattor::cuda::PartialSvdArgs;

template <class T>
constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;

// kGridSpread: as for large ranks, nothing in shared memory that may be large, and two passes of
// Cholesky QR over the grid.
enum class Path { kChosen, kSmall, kGrid, kGridSpread };

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

// (rows, cols) with the given leading singular values, the others zero; right: their vectors.
std::vector<double> with_spectrum(int64_t rows, int64_t cols, const std::vector<double>& s,
                                  std::vector<double>* right = nullptr) {
  const int64_t count = s.size();
  const std::vector<double> u = orthonormal(rows, count), v = orthonormal(cols, count);
  if (right != nullptr) *right = v;
  std::vector<double> x(rows * cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < count; ++k) sum += u[i * count + k] * s[k] * v[j * count + k];
      x[i * cols + j] = sum;
    }
  }
  return x;
}

template <class T>
struct Triples {
  std::vector<T> u, s, v;
};

struct Sizes {
  int64_t batch, rows, cols, rank, iterations;
};

template <class T>
Triples<T> solve(const std::vector<T>& wide, const std::vector<T>& start, const Sizes& sizes,
                 Path path = Path::kChosen) {
  const auto [batch, rows, cols, rank, iterations] = sizes;
  const Buffer<T> x(wide, "wide"), from(start, "start");
  const Buffer<T> u(batch * rows * rank, "u"), s(batch * rank, "s"), v(batch * cols * rank, "v");
  const PartialSvdArgs args{batch,    rows,        cols,     rank,     iterations, kDtype<T>,
                            x.data(), from.data(), u.data(), s.data(), v.data()};
  namespace svd = schattor::cuda::svd;
  const bool chosen = path == Path::kChosen, small = path == Path::kSmall;
  const size_t bytes = chosen ? partial_svd_workspace(args) : small ? 0 : svd::grid_workspace(args);
  const Buffer<unsigned char> workspace(bytes, "workspace");
  const svd::GridLimits limits =
      path == Path::kGridSpread ? svd::GridLimits{0, 0} : svd::GridLimits{};
  const cudaError_t error = chosen  ? partial_svd(args, workspace.data(), nullptr)
                            : small ? svd::small(args, nullptr)
                                    : svd::grid(args, workspace.data(), nullptr, limits);
  CHECK(error == cudaSuccess, "%ldx%ld rank %ld: error %d", rows, cols, rank, int(error));
  return {u.read(), s.read(), v.read()};
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
double residual(const T* x, const Sizes& sizes, const Triples<T>& t, bool transposed,
                int64_t count) {
  const auto [batch, rows, cols, rank, iterations] = sizes;
  const int64_t outer = transposed ? cols : rows, inner = transposed ? rows : cols;
  const std::vector<T>&from = transposed ? t.u : t.v, &to = transposed ? t.v : t.u;
  double worst = 0;
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
void check_triples(const char* name, const std::vector<T>& x, const Sizes& sizes,
                   const Triples<T>& t, double largest) {
  const auto [batch, rows, cols, rank, iterations] = sizes;
  const double epsilon = std::numeric_limits<T>::epsilon();
  const double scale = largest > 0 ? largest : 1;
  const double u = orthogonality(t.u.data(), rows, rank) / epsilon;
  const double v = orthogonality(t.v.data(), cols, rank) / epsilon;
  const double r = residual(x.data(), sizes, t, false, rank) / scale / epsilon;
  CHECK(u <= rank + 10, "%s %ldx%ld rank %ld: |U'U - I| is %.3g eps", name, rows, cols, rank, u);
  CHECK(v <= rank + 10, "%s %ldx%ld rank %ld: |V'V - I| is %.3g eps", name, rows, cols, rank, v);
  CHECK(r <= 50, "%s %ldx%ld rank %ld: |X v - s u| is %.3g eps s_1", name, rows, cols, rank, r);
  CHECK(std::is_sorted(t.s.rbegin(), t.s.rend()) && t.s[rank - 1] >= 0,
        "%s %ldx%ld rank %ld: s is not descending", name, rows, cols, rank);
}

struct Shape {
  int64_t rows, cols, rank;
};

std::vector<double> geometric(int64_t count, double ratio) {
  std::vector<double> s(count);
  for (int64_t k = 0; k < count; ++k) s[k] = std::pow(ratio, k);
  return s;
}

// Well separated values: the iteration converges, so every triple is the matrix's own. From the
// triples found, one iteration finds the same again.
template <class T>
void test_separated(const Shape& shape, int64_t iterations, Path path) {
  const auto [rows, cols, rank] = shape;
  const Sizes sizes{1, rows, cols, rank, iterations};
  const std::vector<double> s = geometric(rows, 0.25);
  const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, s));
  const Triples<T> cold = solve(x, rounded<T>(gaussian(cols * rank)), sizes, path);
  const Triples<T> warm = solve(x, cold.v, {1, rows, cols, rank, 1}, path);
  const double epsilon = std::numeric_limits<T>::epsilon();
  for (const Triples<T>& t : {cold, warm}) {
    check_triples("separated", x, sizes, t, 1);
    for (int64_t k = 0; k < rank; ++k) {
      CHECK(std::abs(t.s[k] - s[k]) <= 50 * epsilon, "%ldx%ld: s_%ld is %.9g, not %.9g", rows, cols,
            k, double(t.s[k]), s[k]);
    }
    const double left = residual(x.data(), sizes, t, true, std::min<int64_t>(rank, 4));
    CHECK(left <= 400 * epsilon, "%ldx%ld: |X'u - s v| is %.3g eps", rows, cols, left / epsilon);
  }
}

// Repeated and zero singular values, and zero matrices.
template <class T>
void test_degenerate(const Shape& shape, Path path) {
  const auto [rows, cols, rank] = shape;
  const Sizes sizes{1, rows, cols, rank, 2};
  const std::vector<T> start = rounded<T>(gaussian(cols * rank));
  for (int64_t kept : {int64_t(0), int64_t(1), (rank + 1) / 2, rows}) {
    const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, std::vector<double>(kept, 1.0)));
    const Triples<T> t = solve(x, start, sizes, path);
    check_triples("degenerate", x, sizes, t, kept > 0);
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
void test_starts(const Shape& shape, Path path) {
  const auto [rows, cols, rank] = shape;
  const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, geometric(rows, 0.25)));
  const std::vector<double> vector = gaussian(cols);
  for (const double other : {0.0, 1e-9, 1e-5}) {
    const std::vector<double> noise = gaussian(cols * rank);
    std::vector<T> start(cols * rank);
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t k = 0; k < rank; ++k) {
        start[j * rank + k] = static_cast<T>(vector[j] + other * noise[j * rank + k]);
      }
    }
    const Sizes sizes{1, rows, cols, rank, 1};
    check_triples("one start", x, sizes, solve(x, start, sizes, path), 1);
  }
  const Sizes sizes{1, rows, cols, rank, 3};
  const std::vector<T> zeros(cols * rank, T(0));
  check_triples("zero start", x, sizes, solve(x, zeros, sizes, path), 1);
}

// Two values far above the others, and all far apart: what the Gram of the first image cannot tell
// from one another must not be lost.
template <class T>
void test_steep(Path path) {
  const Sizes sizes{1, 8, 13, 5, 1};
  for (double ratio : {1e-2, 1e-4, 1e-7}) {
    const std::vector<T> x = rounded<T>(with_spectrum(8, 13, geometric(8, ratio)));
    check_triples("steep", x, sizes, solve(x, rounded<T>(gaussian(13 * 5)), sizes, path), 1);
  }
}

// Powers of two far beyond where squares fit change nothing but s.
template <class T>
void test_scales(Path path) {
  const int64_t rows = 8, cols = 20, rank = 3;
  const Sizes sizes{1, rows, cols, rank, 2};
  const std::vector<double> x = with_spectrum(rows, cols, geometric(rows, 0.7));
  const std::vector<T> start = rounded<T>(gaussian(cols * rank));
  const std::vector<T> plain = rounded<T>(x);
  const int widest = sizeof(T) == 8 ? 1000 : 100;
  const double epsilon = std::numeric_limits<T>::epsilon();
  const Triples<T> expected = solve(plain, start, sizes, path);
  for (int exponent : {-widest, -60, 60, widest}) {
    const double factor = std::ldexp(1.0, exponent);
    const Triples<T> t = solve(rounded<T>(x, factor), start, sizes, path);
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
    CHECK(solve(plain, far, sizes, path).v == expected.v, "start of 2^%d", exponent);
  }
}

// A matrix comes out the same alone and in a batch, beside zeros and beside what is not finite.
template <class T>
void test_batch(const Shape& shape, Path path) {
  const auto [rows, cols, rank] = shape;
  const int64_t batch = 6, size = rows * cols, panel = cols * rank;
  std::vector<T> x = rounded<T>(gaussian(batch * size));
  std::vector<T> start = rounded<T>(gaussian(batch * panel));
  x[size + 5] = std::numeric_limits<T>::infinity();
  x[2 * size + 1] = std::numeric_limits<T>::quiet_NaN();
  start[3 * panel + 2] = -std::numeric_limits<T>::infinity();
  std::fill_n(x.begin() + 4 * size, size, T(0));
  const Triples<T> whole = solve(x, start, {batch, rows, cols, rank, 3}, path);
  for (int64_t i = 0; i < batch; ++i) {
    const auto part = [i](const std::vector<T>& all, int64_t each) {
      return std::vector<T>(all.begin() + i * each, all.begin() + (i + 1) * each);
    };
    const Triples<T> its{part(whole.u, rows * rank), part(whole.s, rank), part(whole.v, panel)};
    if (i >= 1 && i <= 3) {
      const auto is_nan = [](T value) { return std::isnan(value); };
      CHECK(std::all_of(its.u.begin(), its.u.end(), is_nan), "u of matrix %ld", i);
      CHECK(std::all_of(its.s.begin(), its.s.end(), is_nan), "s of matrix %ld", i);
      CHECK(std::all_of(its.v.begin(), its.v.end(), is_nan), "v of matrix %ld", i);
      continue;
    }
    const std::vector<T> xi = part(x, size);
    const Sizes sizes{1, rows, cols, rank, 3};
    const Triples<T> alone = solve(xi, part(start, panel), sizes, path);
    CHECK(alone.u == its.u && alone.s == its.s && alone.v == its.v, "matrix %ld differs", i);
    check_triples("batch", xi, sizes, its, its.s[0]);
  }
}

template <class T>
void test_path(Path path) {
  for (const Shape& shape : {Shape{1, 1, 1}, {2, 2, 2}, {5, 5, 5}, {9, 17, 4}}) {
    test_separated<T>(shape, sizeof(T) == 8 ? 14 : 7, path);
    test_degenerate<T>(shape, path);
  }
  test_starts<T>({2, 2, 2}, path);
  test_starts<T>({9, 17, 4}, path);
  test_steep<T>(path);
  test_scales<T>(path);
}

// At, below and above the sizes of tiles. The start is the answer, each vector mixed with the one
// before, so that the first factor is not diagonal, but Jacobi's sweeps are few.
template <class T>
void test_edges(const std::vector<Shape>& shapes, Path path) {
  for (const auto [rows, cols, rank] : shapes) {
    std::vector<double> s(rank), start;
    for (int64_t k = 0; k < rank; ++k) s[k] = 1 - 0.5 * k / rank;
    const std::vector<T> x = rounded<T>(with_spectrum(rows, cols, s, &start));
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t k = rank - 1; k > 0; --k) start[j * rank + k] += 0.5 * start[j * rank + k - 1];
    }
    const Sizes sizes{1, rows, cols, rank, 1};
    const Triples<T> t = solve(x, rounded<T>(start), sizes, path);
    check_triples("edges", x, sizes, t, 1);
    const double left = residual(x.data(), sizes, t, true, rank);
    const double epsilon = std::numeric_limits<T>::epsilon();
    CHECK(left <= 50 * epsilon, "%ldx%ld rank %ld: |X'u - s v| is %.3g eps", rows, cols, rank,
          left / epsilon);
  }
}

template <class T>
void test_both(bool all) {
  for (Path path : {Path::kSmall, Path::kGrid}) {
    test_batch<T>({7, 10, 3}, path);
    if (all) test_path<T>(path);
  }
}

// Numbers are the same whatever the order of threads: that only the first run shows them all keeps
// the others short.
void test_all() {
  static bool first = true;
  generator.seed(7);
  test_both<float>(first);
  test_both<double>(first);
  test_batch<float>({7, 10, 3}, Path::kGridSpread);
  if (!first) return;
  first = false;
  test_degenerate<double>({9, 17, 4}, Path::kGridSpread);
  test_starts<float>({9, 17, 4}, Path::kGridSpread);
  test_edges<float>({{3, 5, 2}, {31, 32, 16}, {33, 34, 17}, {34, 65, 33}}, Path::kGrid);
  test_edges<double>({{3, 5, 2}, {33, 34, 17}}, Path::kGridSpread);
  // Two tiles of entries, and a long side cut into slices.
  test_edges<float>({{129, 130, 3}, {3, 1100, 2}, {514, 515, 1}}, Path::kGrid);
  // What fits a block and what does not, with two tiles of vectors.
  test_edges<float>({{24, 48, 8}, {66, 67, 65}}, Path::kChosen);
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, test_all); }

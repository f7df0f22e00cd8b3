// average_grams against sums in double, on both sides, for every edge of its tiles and slices.
#include <cmath>

#include "wide_batches.h"

namespace {

using namespace schattor::cuda;
using namespace wide_batches;

struct Case {
  int64_t batch, rows, cols;
  bool right;
  Dtype dtype;

  int64_t side() const { return right ? cols : rows; }
  int64_t inner() const { return right ? rows : cols; }
  double unit() const { return dtype == Dtype::kFloat64 ? 0x1p-53 : 0x1p-24; }
};

// Entry (i, k) of the matrix of this number whose rows are multiplied with each other.
double entry(const Case& c, const Matrix& wide, int64_t matrix, int64_t i, int64_t k) {
  const int64_t row = c.right ? k : i, col = c.right ? i : k;
  return wide[(matrix * c.rows + row) * c.cols + col];
}

Matrix symmetric(const Case& c) {
  Matrix factors = matrices::gaussian(c.batch * c.side() * c.side());
  for (int64_t b = 0; b < c.batch; ++b) {
    double* const f = factors.data() + b * c.side() * c.side();
    for (int64_t i = 0; i < c.side(); ++i) {
      for (int64_t j = 0; j < i; ++j) f[j * c.side() + i] = f[i * c.side() + j];
    }
  }
  return rounded(factors, c.dtype);
}

Matrix averaged(const Case& c, const Matrix& factors, const Matrix& wide, const Matrix& decay,
                const Matrix& share) {
  Buffer<unsigned char> on_device(stored(factors, c.dtype), "factors");
  const std::vector<unsigned char> given = stored(wide, c.dtype);
  Buffer<unsigned char> wide_on(given, "wide");
  Buffer<double> decays(decay, "decay"), shares(share, "share");
  const AverageGramsArgs args = {c.batch,        c.rows,        c.cols,
                                 c.right,        c.dtype,       on_device.data(),
                                 wide_on.data(), decays.data(), shares.data()};
  Buffer<unsigned char> workspace(average_grams_workspace(args), "workspace");
  const cudaError_t error = average_grams(args, workspace.data(), nullptr);
  CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
  CHECK(wide_on.read() == given, "the wide batch is only read");
  return loaded(on_device.read(), c.dtype);
}

void check_entry(const Case& c, const Matrix& factors, const Matrix& wide, const Matrix& result,
                 int64_t b, int64_t i, int64_t j, double decay, double share) {
  const int64_t side = c.side(), at = (b * side + i) * side + j;
  double sum = 0, sizes = 0;
  for (int64_t k = 0; k < c.inner(); ++k) {
    const double product = entry(c, wide, b, i, k) * entry(c, wide, b, j, k);
    sum += product, sizes += std::fabs(product);
  }
  const double truth = decay * factors[at] + share * sum;
  const double size = std::fabs(decay * factors[at]) + share * sizes;
  CHECK(std::fabs(result[at] - truth) <= c.unit() * (8 + c.inner()) * size,
        "%s %ld x %ld, right %d, at (%ld, %ld): %.12g, not %.12g", name_of(c.dtype), long(c.rows),
        long(c.cols), c.right, long(i), long(j), result[at], truth);
  const double mirrored = result[(b * side + j) * side + i];
  CHECK(result[at] == mirrored, "%.17g is not its mirror image %.17g", result[at], mirrored);
}

void check_case(const Case& c) {
  if (!Shares::take()) return;
  const Matrix factors = symmetric(c);
  const Matrix wide = rounded(matrices::gaussian(c.batch * c.rows * c.cols), c.dtype);
  Matrix decay, share;
  for (int64_t b = 0; b < c.batch; ++b) decay.push_back(1 - 0.1 * b), share.push_back(0.3 + b);
  const Matrix result = averaged(c, factors, wide, decay, share);
  const int64_t side = c.side();
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t i = 0; i < side; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        check_entry(c, factors, wide, result, b, i, j, decay[b], share[b]);
      }
    }
  }
  if (c.batch < 2) return;
  const int64_t last = c.batch - 1;
  const Matrix alone =
      averaged({1, c.rows, c.cols, c.right, c.dtype}, part(factors, last, side * side),
               part(wide, last, c.rows * c.cols), {decay[last]}, {share[last]});
  CHECK(matrices::same_bits(alone, part(result, last, side * side)), "the batch changes bits");
}

void sizes() {
  const int64_t shapes[][2] = {{1, 1},   {1, 2},   {2, 3},   {3, 3},   {5, 17},
                               {16, 16}, {31, 40}, {63, 64}, {64, 65}, {65, 66},
                               {3, 130}, {8, 72},  {1, 300}, {20, 129}};
  int turn = 0;
  for (const auto& [rows, cols] : shapes) {
    for (const bool right : {false, true}) {
      for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
        check_case({1 + turn++ % 2, rows, cols, right, dtype});
      }
    }
  }
}

// So long that the inner dimension is cut.
void slices() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    check_case({2, 3, 2060, false, dtype});
    check_case({1, 9, 4100, false, dtype});
  }
}

// decay 0 forgets what was there, share 0 keeps it to the bit.
void ends() {
  for (const bool right : {false, true}) {
    if (!Shares::take()) continue;
    const Case c{2, 5, 9, right, Dtype::kFloat32};
    const Matrix factors = symmetric(c), wide = rounded(matrices::gaussian(90), c.dtype);
    const Matrix result = averaged(c, factors, wide, {1, 0}, {0, 1});
    const int64_t size = c.side() * c.side();
    CHECK(matrices::same_bits(part(result, 0, size), part(factors, 0, size)), "share 0");
    for (int64_t i = 0; i < c.side(); ++i) {
      for (int64_t j = 0; j <= i; ++j) check_entry(c, factors, wide, result, 1, i, j, 0, 1);
    }
  }
}

// Only the lower triangles count: the upper ones are their mirror images, whatever was there.
void lower_triangles() {
  for (const bool right : {false, true}) {
    if (!Shares::take()) continue;
    const Case c{1, 40, 70, right, Dtype::kFloat64};
    const Matrix factors = symmetric(c), wide = matrices::gaussian(40 * 70);
    Matrix lower = factors;
    for (int64_t i = 0; i < c.side(); ++i) {
      for (int64_t j = i + 1; j < c.side(); ++j) lower[i * c.side() + j] = std::nan("");
    }
    CHECK(matrices::same_bits(averaged(c, lower, wide, {0.9}, {0.1}),
                              averaged(c, factors, wide, {0.9}, {0.1})),
          "right %d: the upper triangle counts", right);
  }
}

void not_finite() {
  for (const bool right : {false, true}) {
    if (!Shares::take()) continue;
    const Case c{3, 5, 9, right, Dtype::kFloat32};
    const Matrix factors = symmetric(c);
    Matrix wide = rounded(matrices::gaussian(135), c.dtype);
    wide[45 + 7] = std::nan("");
    const Matrix result = averaged(c, factors, wide, {1, 1, 1}, {1, 1, 1});
    const int64_t size = c.side() * c.side();
    CHECK(std::isnan(matrices::norm(part(result, 1, size))), "NaN stays");
    for (const int64_t b : {0, 2}) {
      CHECK(std::isfinite(matrices::norm(part(result, b, size))), "a neighbour is touched");
    }
  }
}

// Without entries the factors only decay.
void nothing() {
  for (const Case& c : {Case{0, 3, 4, true, Dtype::kFloat32}, Case{2, 0, 4, true, Dtype::kFloat32},
                        Case{2, 0, 4, false, Dtype::kFloat64}}) {
    const Matrix factors = symmetric(c);
    const Matrix result = averaged(c, factors, {}, Matrix(c.batch, 0.5), Matrix(c.batch, 1));
    for (size_t i = 0; i < result.size(); ++i) {
      CHECK(result[i] == 0.5 * factors[i], "%g, not half of %g", result[i], factors[i]);
    }
  }
}

void body() {
  Shares::begin_run();
  sizes();
  slices();
  ends();
  lower_triangles();
  not_finite();
  nothing();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, body); }

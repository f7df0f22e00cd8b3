// rotate against plain loops in double, for every instruction set, both ways, sides and dtypes.
#include <cmath>
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
std::vector<T> gaussian(int64_t size) {
  const Matrix values = matrices::gaussian(size);
  return {values.begin(), values.end()};
}

enum class Sides { kNone, kLeft, kRight, kBoth };
constexpr Sides kSides[] = {Sides::kNone, Sides::kLeft, Sides::kRight, Sides::kBoth};

template <typename T>
struct Case {
  Case(int64_t batch, int64_t rows, int64_t cols, Sides sides, bool back)
      : batch(batch), rows(rows), cols(cols), back(back), x(gaussian<T>(batch * rows * cols)) {
    if (sides != Sides::kRight) left = gaussian<T>(batch * rows * rows);
    if (sides != Sides::kLeft) right = gaussian<T>(batch * cols * cols);
    if (sides == Sides::kNone) left.clear(), right.clear();
  }

  // Matrices first .. first + count after the call.
  std::vector<T> rotated(int threads, int64_t first, int64_t count) const {
    std::vector<T> out(count * rows * cols, T{7});
    RotateArgs args{};
    args.batch = count, args.rows = rows, args.cols = cols;
    args.dtype = kDtype<T>;
    args.back = back;
    args.x = x.data() + first * rows * cols;
    if (!left.empty()) args.left = left.data() + first * rows * rows;
    if (!right.empty()) args.right = right.data() + first * cols * cols;
    if (!least.empty()) args.least = least.data() + first;
    if (!scale.empty()) args.scale = scale.data() + first;
    args.rotated = out.data();
    rotate(args, lists::on_threads(threads));
    return out;
  }

  int64_t batch, rows, cols;
  bool back;
  std::vector<T> x, left, right;
  std::vector<double> least, scale;
};

// Matrix i of a batch of so many elements each, or what its entries are at most.
template <typename T>
Matrix one(const std::vector<T>& values, int64_t i, int64_t size, bool sizes) {
  Matrix matrix(values.begin() + i * size, values.begin() + (i + 1) * size);
  for (double& value : matrix) value = sizes ? std::fabs(value) : value;
  return matrix;
}

// The product of matrix i, or of the sizes of all entries.
template <typename T>
Matrix product(const Case<T>& c, int64_t i, bool sizes) {
  Matrix x = one(c.x, i, c.rows * c.cols, sizes);
  if (!c.left.empty()) {
    Matrix left = one(c.left, i, c.rows * c.rows, sizes);
    if (!c.back) left = matrices::transposed(left, c.rows, c.rows);
    x = matrices::times(left, x, c.rows, c.rows, c.cols);
  }
  if (!c.right.empty()) {
    Matrix right = one(c.right, i, c.cols * c.cols, sizes);
    if (c.back) right = matrices::transposed(right, c.cols, c.cols);
    x = matrices::times(x, right, c.rows, c.cols, c.cols);
  }
  return x;
}

template <typename T>
void check_truth(const Case<T>& c, const std::vector<T>& got, int64_t i) {
  const Matrix truth = product(c, i, false), sizes = product(c, i, true);
  double worst = 0;
  for (int64_t k = 0; k < c.rows * c.cols; ++k) {
    const double error = std::fabs(got[i * c.rows * c.cols + k] - truth[k]);
    worst = std::max(worst, error == 0 ? 0 : error / sizes[k]);
  }
  CHECK(worst <= (c.rows + c.cols) * kUnit<T>, "%ld x %ld, back %d: %g units", long(c.rows),
        long(c.cols), int(c.back), worst / kUnit<T>);
}

template <typename T>
void check_case(int64_t batch, int64_t rows, int64_t cols, Sides sides, bool back) {
  const Case<T> c(batch, rows, cols, sides, back);
  const std::vector<T> got = c.rotated(1, 0, batch);
  for (int64_t i = 0; i < batch; ++i) check_truth(c, got, i);
  CHECK(c.rotated(3, 0, batch) == got, "%ld x %ld: 3 threads", long(rows), long(cols));
  if (batch == 0) return;
  const std::vector<T> alone = c.rotated(2, batch - 1, 1);
  CHECK(std::equal(alone.begin(), alone.end(), got.begin() + (batch - 1) * rows * cols),
        "%ld x %ld: batch of one", long(rows), long(cols));
}

template <typename T>
void shapes() {
  for (const Sides sides : kSides) {
    for (const bool back : {false, true}) {
      for (const int64_t rows : {0, 1, 3, 16, 17, 33, 49, 100}) {
        for (const int64_t cols : {1, 2, 16, 49, 64, 130}) {
          if (rows <= cols) check_case<T>(2, rows, cols, sides, back);
        }
      }
      check_case<T>(0, 3, 4, sides, back);
      // Several heights and stretches of terms; one matrix for all threads.
      check_case<T>(1, 200, 430, sides, back);
      check_case<T>(4, 250, 250, sides, back);
    }
  }
}

// Entries up to `least` are exactly 0, others the product times the scale; each matrix has its own.
template <typename T>
void shrunk_and_scaled() {
  for (const bool back : {false, true}) {
    Case<T> c(2, 20, 50, Sides::kBoth, back);
    const std::vector<T> whole = c.rotated(1, 0, 2);
    c.least = {10, std::fabs(double{whole[1000]})};
    c.scale = {0.5, -3};
    const std::vector<T> got = c.rotated(1, 0, 2);
    int64_t zeros = 0;
    bool holds = true;
    for (size_t k = 0; k < whole.size(); ++k) {
      const bool small = std::fabs(double{whole[k]}) <= c.least[k / 1000];
      holds &= got[k] == (small ? T{0} : static_cast<T>(c.scale[k / 1000]) * whole[k]);
      zeros += small;
    }
    CHECK(holds && got[1000] == 0, "back %d", int(back));
    CHECK(zeros > 100 && zeros < 1900, "back %d: %ld zeros", int(back), long(zeros));
  }
}

// What comes from a matrix stays in it, and a NaN is not shrunk away.
void not_finite() {
  for (const bool back : {false, true}) {
    Case<float> c(3, 41, 60, Sides::kBoth, back);
    c.least = {1, 1, 1};
    const std::vector<float> before = c.rotated(1, 0, 3);
    c.x[41 * 60 + 7] = NAN;
    const std::vector<float> after = c.rotated(1, 0, 3);
    bool kept = true, told = true;
    for (int64_t k = 0; k < 3 * 41 * 60; ++k) {
      const bool second = k / (41 * 60) == 1;
      kept &= second || after[k] == before[k];
      told &= !second || std::isnan(after[k]);
    }
    CHECK(kept && told, "back %d", int(back));
  }
}

}  // namespace

int main() {
  lists::at_each_level([] {
    shapes<float>();
    shapes<double>();
    shrunk_and_scaled<float>();
    shrunk_and_scaled<double>();
    not_finite();
  });
  return check::finish();
}

// average_grams against plain loops in double, for every instruction set, both sides and dtypes.
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
struct Case {
  Case(int64_t batch, int64_t rows, int64_t cols, bool right)
      : batch(batch), rows(rows), cols(cols), side(right ? cols : rows), right(right) {
    const Matrix x = matrices::gaussian(batch * rows * cols);
    wide.assign(x.begin(), x.end());
    factors.resize(batch * side * side);
    for (int64_t i = 0; i < batch; ++i) {
      const Matrix f = matrices::gaussian(side * side);
      for (int64_t k = 0; k < side * side; ++k) {
        const int64_t r = k / side, c = k % side;
        factors[i * side * side + k] = static_cast<T>(f[r < c ? k : c * side + r]);
      }
      decay.push_back(0.9 + 0.01 * i);
      share.push_back(0.25 - 0.125 * i);
    }
  }

  // The factors of matrices first .. first + count after the call.
  std::vector<T> averaged(int threads, int64_t first, int64_t count) const {
    const int64_t square = side * side;
    std::vector<T> out(factors.begin() + first * square,
                       factors.begin() + (first + count) * square);
    average_grams({count, rows, cols, right, kDtype<T>, out.data(),
                   wide.data() + first * rows * cols, decay.data() + first, share.data() + first},
                  lists::on_threads(threads));
    return out;
  }

  int64_t batch, rows, cols, side;
  bool right;
  std::vector<T> wide, factors;
  std::vector<double> decay, share;
};

template <typename T>
void check_truth(const Case<T>& c, const std::vector<T>& got, int64_t i) {
  const int64_t depth = c.right ? c.rows : c.cols, square = c.side * c.side;
  Matrix x(c.wide.begin() + i * c.rows * c.cols, c.wide.begin() + (i + 1) * c.rows * c.cols);
  if (c.right) x = matrices::transposed(x, c.rows, c.cols);
  const Matrix gram = matrices::gram_of(x, c.side, depth);
  bool symmetric = true;
  double worst = 0;
  for (int64_t k = 0; k < square; ++k) {
    const int64_t row = k / c.side, col = k % c.side;
    const double old = c.decay[i] * c.factors[i * square + k], fresh = c.share[i] * gram[k];
    // Rounding of a sum by the sizes of its terms; the average's own is a few units more.
    const double size = std::fabs(old) + std::fabs(c.share[i]) *
                                             std::sqrt(gram[row * c.side + row]) *
                                             std::sqrt(gram[col * c.side + col]);
    const double error = std::fabs(got[i * square + k] - (old + fresh));
    worst = std::max(worst, error == 0 ? 0 : error / size);
    symmetric &= got[i * square + k] == got[i * square + col * c.side + row];
  }
  const double unit = kUnit<T>;
  CHECK(worst <= (depth + 4) * unit, "%ld x %ld, right %d: %g units", long(c.rows), long(c.cols),
        int(c.right), worst / unit);
  CHECK(symmetric, "%ld x %ld, right %d: not symmetric", long(c.rows), long(c.cols), int(c.right));
}

template <typename T>
void check_case(int64_t batch, int64_t rows, int64_t cols, bool right) {
  const Case<T> c(batch, rows, cols, right);
  const std::vector<T> got = c.averaged(1, 0, batch);
  for (int64_t i = 0; i < batch; ++i) check_truth(c, got, i);
  CHECK(c.averaged(3, 0, batch) == got, "%ld x %ld: 3 threads", long(rows), long(cols));
  if (batch == 0) return;
  const int64_t square = c.side * c.side;
  const std::vector<T> alone = c.averaged(2, batch - 1, 1);
  CHECK(std::equal(alone.begin(), alone.end(), got.begin() + (batch - 1) * square),
        "%ld x %ld: batch of one", long(rows), long(cols));
}

template <typename T>
void shapes() {
  for (const bool right : {false, true}) {
    for (const int64_t rows : {0, 1, 3, 16, 17, 33, 48, 49, 100}) {
      for (const int64_t cols : {1, 2, 16, 49, 50, 130, 200}) {
        if (rows <= cols) check_case<T>(2, rows, cols, right);
      }
    }
    check_case<T>(0, 3, 4, right);
    check_case<T>(2, 0, 0, right);
    // Several panels, and several stretches of terms; one matrix for all threads.
    check_case<T>(1, 200, 430, right);
    check_case<T>(4, 250, 250, right);
  }
}

// What comes from a matrix stays in its factor.
void not_finite() {
  for (const bool right : {false, true}) {
    Case<float> c(3, 40, 60, right);
    const std::vector<float> before = c.averaged(1, 0, 3);
    c.wide[40 * 60 + 7] = NAN;
    const std::vector<float> after = c.averaged(1, 0, 3);
    const int64_t square = c.side * c.side;
    bool kept = true, told = false;
    for (int64_t k = 0; k < 3 * square; ++k) {
      kept &= k / square == 1 || after[k] == before[k];
      told |= k / square == 1 && std::isnan(after[k]);
    }
    CHECK(kept && told, "right %d", int(right));
  }
}

}  // namespace

int main() {
  lists::at_each_level([] {
    shapes<float>();
    shapes<double>();
    not_finite();
  });
  return check::finish();
}

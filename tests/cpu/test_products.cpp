// Products in strips against plain loops in double, on every level that the processor has.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "levels.h"
#include "matrices.h"
#include "strips.h"

namespace {

using namespace schattor::cpu;
using namespace matrices;

template <typename T>
constexpr double kTolerance = sizeof(T) == sizeof(double) ? 1e-13 : 1e-5;

template <typename T>
struct Strips {
  StripLayout layout;
  int64_t rows;
  std::vector<T> memory;

  Strips(const StripLayout& strip_layout, int64_t count)
      : layout(strip_layout), rows(count), memory(strip_layout.size(count) + 16) {}
  T* data() {  // aligned to a cache line
    const auto misaligned = reinterpret_cast<uintptr_t>(memory.data()) % 64;
    return memory.data() + (misaligned == 0 ? 0 : (64 - misaligned) / sizeof(T));
  }
  T& operator()(int64_t i, int64_t j) {
    return data()[j / layout.width * layout.stride(rows) + i * layout.width + j % layout.width];
  }
  void fill(const Matrix& values) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < layout.columns; ++j) (*this)(i, j) = values[i * layout.columns + j];
    }
  }
  Matrix values() {
    Matrix result;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < layout.columns; ++j) result.push_back((*this)(i, j));
    }
    return result;
  }
};

template <typename T>
void check_product(int64_t rows, int64_t columns, bool adds, bool sums, bool begins) {
  const StripLayout layout = strip_layout<T>(columns);
  const Matrix left = gaussian(rows * columns), right = gaussian(columns * columns);
  const Matrix addend = gaussian(rows * columns), start = gaussian(rows * columns);
  Strips<T> l(layout, rows), r(layout, columns), a(layout, rows), s(layout, rows), c(layout, rows);
  l.fill(left), r.fill(right), a.fill(addend), s.fill(start);
  Product<T> product{layout, rows, columns, l.data(), r.data(), false, false, c.data()};
  product.scale = T(0.5);
  product.addend = adds ? a.data() : nullptr;
  product.addend_scale = T(-2);
  product.sum = sums ? s.data() : nullptr;
  product.result_weight = T(0.25);
  product.addend_weight = T(3);
  product.sum_begins = begins;
  for (int64_t worker = 0; worker < 3; ++worker) {
    kernels().products.in<T>().multiply(product, Share{worker, 3});
  }
  Matrix result(rows * columns), sum = begins && sums ? Matrix(rows * columns) : start;
  add(result, 0.5, times(left, right, rows, columns, columns));
  if (adds) add(result, -2, addend);
  if (sums) add(sum, 0.25, result);
  if (sums && adds) add(sum, 3, addend);
  CHECK(distance(c.values(), result) <= kTolerance<T> * norm(result), "result %ldx%ld", long(rows),
        long(columns));
  CHECK(distance(s.values(), sum) <= kTolerance<T> * norm(sum), "sum %ldx%ld", long(rows),
        long(columns));
}

template <typename T>
void check_symmetric(int64_t rows, int64_t terms) {
  const StripLayout layout = strip_layout<T>(rows);
  const Matrix y = gaussian(terms * rows);
  Strips<T> long_one(layout, terms), gram(layout, rows);
  long_one.fill(y);
  T* const data = long_one.data();
  const Product<T> product{layout, rows, terms, data, data, true, true, gram.data()};
  for (int64_t worker = 0; worker < 5; ++worker) {
    kernels().products.in<T>().multiply(product, Share{worker, 5});
  }
  const Matrix truth = gram_of(transposed(y, terms, rows), rows, terms), result = gram.values();
  CHECK(distance(result, truth) <= kTolerance<T> * norm(truth), "gram %ldx%ld", long(rows),
        long(terms));
  CHECK(same_bits(result, transposed(result, rows, rows)), "gram %ldx%ld is not symmetric",
        long(rows), long(terms));
  for (size_t i = 0; i < gram.memory.size(); ++i) gram.memory[i] = 0;
  gram.fill(result);
  for (int64_t i = 1; i < rows; ++i) gram(i, 0) = i < layout.lanes ? gram(i, 0) : T(77);
  kernels().products.in<T>().mirror(layout, gram.data(), Share{0, 1});
  CHECK(same_bits(result, gram.values()), "mirror %ldx%ld", long(rows), long(rows));
}

void test_products() {
  for (const bool adds : {false, true}) {
    for (const bool sums : {false, true}) {
      for (const bool begins : {false, true}) {
        check_product<float>(70, 50, adds, sums, begins);
        check_product<double>(30, 33, adds, sums, begins);
        check_product<float>(410, 200, adds, sums, begins);
      }
    }
  }
  for (const int64_t rows : {1, 7, 16, 33, 50, 97, 200}) {
    check_symmetric<float>(rows, 30);
    check_symmetric<double>(rows, 200);
  }
  check_symmetric<float>(430, 210);
}

template <typename T>
void check_overlap(int64_t rows, int64_t cols) {
  const Matrix x = gaussian(rows * cols), y = gaussian(rows * cols);
  const std::vector<T> left(x.begin(), x.end()), right(y.begin(), y.end());
  double inner = 1, square = 2;
  kernels().products.in<T>().overlap(left.data(), cols, right.data(), cols, rows, cols, &inner,
                                     &square);
  double inner_truth = 1, square_truth = 2;
  for (size_t i = 0; i < left.size(); ++i) {
    inner_truth += double{left[i]} * double{right[i]};
    square_truth += double{right[i]} * double{right[i]};
  }
  CHECK(std::abs(inner - inner_truth) <= 1e-7 * norm(x) * norm(y), "inner %ldx%ld", long(rows),
        long(cols));
  CHECK(std::abs(square - square_truth) <= 1e-7 * square_truth, "square %ldx%ld", long(rows),
        long(cols));
}

void test_level() {
  test_products();
  for (const int64_t cols : {1, 15, 64, 300, 1025}) {
    check_overlap<float>(3, cols);
    check_overlap<double>(2, cols);
  }
}

}  // namespace

int main() {
  for (const Level level : {Level::kBaseline, Level::kAvx2, Level::kAvx512}) {
    if (force_level(level)) test_level();
  }
  return check::finish();
}

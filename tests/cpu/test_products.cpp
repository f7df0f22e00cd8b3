// Products in strips against plain loops in double, on every level that the processor has.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "levels.h"
#include "lists.h"
#include "matrices.h"
#include "strips.h"

namespace {

using namespace schattor::cpu;
using namespace matrices;

// In float16 short sums of short runs: a run of 192 terms and more would be twice as far off. In
// bfloat16 the rounding of the result, of which the sum may take in three times as much.
template <typename T>
constexpr double kTolerance = std::is_same_v<T, double>    ? 1e-13
                              : std::is_same_v<T, float>   ? 1e-5
                              : std::is_same_v<T, Float16> ? 1.2e-3
                                                           : 2.5e-3;

template <typename T>
T rounded(double value) {
  T result;
  kernels().rows.in_double.store(&value, 1, kStoredAs<T>, 1, &result);
  return result;
}
template <typename T>
double number(T element) {
  double result;
  kernels().rows.in_double.load(kStoredAs<T>, &element, 1, 1, &result);
  return result;
}
template <typename T>
Matrix rounded(Matrix values) {
  for (double& value : values) value = number(rounded<T>(value));
  return values;
}

template <typename T>
struct Strips {
  StripLayout layout;
  int64_t rows;
  std::vector<T> memory;

  Strips(const StripLayout& strip_layout, int64_t count)
      : layout(strip_layout), rows(count), memory(strip_layout.size(count) + 64 / sizeof(T)) {}
  T* data() {  // aligned to a cache line
    const auto misaligned = reinterpret_cast<uintptr_t>(memory.data()) % 64;
    return memory.data() + (misaligned == 0 ? 0 : (64 - misaligned) / sizeof(T));
  }
  T& operator()(int64_t i, int64_t j) {
    return data()[j / layout.width * layout.stride(rows) + i * layout.width + j % layout.width];
  }
  void fill(const Matrix& values) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < layout.columns; ++j)
        (*this)(i, j) = rounded<T>(values[i * layout.columns + j]);
    }
  }
  Matrix values() {
    Matrix result;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < layout.columns; ++j) result.push_back(number((*this)(i, j)));
    }
    return result;
  }
};

template <typename T>
void check_product(int64_t rows, int64_t columns, bool adds, bool sums, bool begins,
                   bool exact = false) {
  const StripLayout layout = strip_layout<T>(columns);
  const auto draw = [](int64_t size) { return rounded<T>(gaussian(size)); };
  const Matrix left = draw(rows * columns), right = draw(columns * columns);
  const Matrix addend = draw(rows * columns), start = draw(rows * columns);
  Strips<T> l(layout, rows), r(layout, columns), a(layout, rows), c(layout, rows);
  Strips<Sum<T>> s(layout, rows);
  l.fill(left), r.fill(right), a.fill(addend), s.fill(start);
  Product<T> product{layout, rows, columns, l.data(), r.data(), false, false, c.data()};
  product.scale = 0.5;
  product.addend = adds ? a.data() : nullptr;
  product.addend_scale = -2;
  product.sum = sums ? s.data() : nullptr;
  product.result_weight = 0.25;
  product.addend_weight = 3;
  product.sum_begins = begins;
  product.exact = exact;
  for (int64_t worker = 0; worker < 3; ++worker) {
    kernels().products.in<T>().multiply(product, Share{worker, 3});
  }
  Matrix result(rows * columns), sum = begins && sums ? Matrix(rows * columns) : start;
  add(result, 0.5, times(left, right, rows, columns, columns));
  if (adds) add(result, -2, addend);
  if (sums) add(sum, 0.25, result);
  if (sums && adds) add(sum, 3, addend);
  const double tolerance = exact ? 4e-4 : kTolerance<T>;
  CHECK(distance(c.values(), result) <= tolerance * norm(result), "result %ldx%ld", long(rows),
        long(columns));
  CHECK(distance(s.values(), sum) <= tolerance * norm(sum), "sum %ldx%ld", long(rows),
        long(columns));
  for (int64_t i = 0; i < layout.padded_rows(rows); ++i) {
    for (int64_t j = 0; j < layout.strips * layout.width; ++j) {
      if (i < rows && j < columns) continue;
      const double padding = number(c(i, j));
      if (padding != 0)
        CHECK(false, "padding of %ldx%ld is %g", long(rows), long(columns), padding);
    }
  }
}

template <typename T>
void check_symmetric(int64_t rows, int64_t terms) {
  const StripLayout layout = strip_layout<T>(rows);
  const Matrix y = rounded<T>(gaussian(terms * rows));
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
  for (size_t i = 0; i < gram.memory.size(); ++i) gram.memory[i] = T{};
  gram.fill(result);
  for (int64_t i = 1; i < rows; ++i) gram(i, 0) = i < layout.lanes ? gram(i, 0) : rounded<T>(77);
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
  std::vector<T> left, right;
  for (const double value : x) left.push_back(rounded<T>(value));
  for (const double value : y) right.push_back(rounded<T>(value));
  double inner = 1, square = 2;
  kernels().products.in<T>().overlap(left.data(), cols, right.data(), cols, rows, cols, &inner,
                                     &square);
  double inner_truth = 1, square_truth = 2;
  for (size_t i = 0; i < left.size(); ++i) {
    inner_truth += number(left[i]) * number(right[i]);
    square_truth += number(right[i]) * number(right[i]);
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

template <typename T>
void test_halves() {
  for (const int64_t size : {1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97, 130}) {
    check_product<T>(size + 5, size, size % 2 == 0, size % 3 == 0, false);
    check_symmetric<T>(size, 40);
    check_symmetric<T>(size, 41);
  }
  for (const bool adds : {false, true}) {
    for (const bool sums : {false, true}) {
      for (const bool begins : {false, true}) check_product<T>(70, 50, adds, sums, begins);
    }
  }
  check_product<T>(230, 210, true, true, false);
  check_symmetric<T>(70, 1000);
  check_symmetric<T>(230, 501);
  for (const int64_t cols : {1, 15, 64, 300, 1025}) check_overlap<T>(3, cols);
}

// Float16 with sums in float.
void test_exact() {
  for (const int64_t size : {1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97, 130}) {
    check_product<Float16>(size, size, true, size % 3 == 0, false, true);
  }
  check_product<Float16>(120, 260, true, true, false, true);
}

void test_vectors_of_halves() {
  if (has_bfloat16()) test_halves<BFloat16>();
  if (!has_float16()) return;
  test_halves<Float16>();
  test_exact();
}

}  // namespace

int main() {
  lists::at_each_level([] {
    test_level();
    CHECK(has_bfloat16() == (level() == Level::kAvx512Bf16), "bfloat16 at level %d",
          static_cast<int>(level()));
    CHECK(has_float16() == (level() >= Level::kAvx512Fp16 && has_level(Level::kAvx512Fp16)),
          "float16 at level %d", static_cast<int>(level()));
    test_vectors_of_halves();
  });
  emulate_halves(true);
  CHECK(has_bfloat16() && has_float16(), "half precision is not emulated");
  test_vectors_of_halves();
  return check::finish();
}

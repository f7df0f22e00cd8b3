// Wide batches of every dtype for tests of directions, with the numbers of a Direction.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>

#include "../cpu/matrices.h"
#include "device_test.h"
#include "dtype.h"

namespace wide_batches {

using device_test::Buffer;
using matrices::Matrix;
using schattor::cuda::Direction;
using schattor::cuda::Dtype;
using schattor::cuda::is_half;
using schattor::cuda::size_of;

constexpr Dtype kDtypes[] = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

inline const char* name_of(Dtype dtype) {
  const char* names[] = {"float64", "float32", "bfloat16", "float16"};
  return names[static_cast<int>(dtype)];
}

inline void put(Dtype dtype, double value, unsigned char* to) {
  const float narrow = static_cast<float>(value);
  const bf16 brain = __float2bfloat16_rn(narrow);
  const __half half = __float2half_rn(narrow);
  const void* from[] = {&value, &narrow, &brain, &half};
  std::memcpy(to, from[static_cast<int>(dtype)], size_of(dtype));
}

inline double get(Dtype dtype, const unsigned char* from) {
  if (dtype == Dtype::kFloat64) {
    double value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  if (dtype == Dtype::kFloat32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  if (dtype == Dtype::kBFloat16) {
    bf16 value;
    std::memcpy(&value, from, sizeof(value));
    return __bfloat162float(value);
  }
  __half value;
  std::memcpy(&value, from, sizeof(value));
  return __half2float(value);
}

inline std::vector<unsigned char> stored(const Matrix& values, Dtype dtype) {
  std::vector<unsigned char> bytes(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) put(dtype, values[i], &bytes[i * size_of(dtype)]);
  return bytes;
}

inline Matrix loaded(const std::vector<unsigned char>& bytes, Dtype dtype) {
  Matrix values(bytes.size() / size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) values[i] = get(dtype, &bytes[i * size_of(dtype)]);
  return values;
}

inline Matrix rounded(const Matrix& values, Dtype dtype) {
  return loaded(stored(values, dtype), dtype);
}

// The emulation is slow: each of its five orders takes a fifth of the cases, a GPU takes all.
class Shares {
 public:
  static void begin_run() { ++run(), counter() = 0; }
  static bool take() {
#ifdef __CUDACC__
    return true;
#else
    constexpr int kOrders = 5;
    return counter()++ % kOrders == run() % kOrders;
#endif
  }

 private:
  static int& run() {
    static int value = -1;
    return value;
  }
  static int& counter() {
    static int value = 0;
    return value;
  }
};

struct Shape {
  int64_t batch, rows, cols;
  int64_t size() const { return rows * cols; }
};

struct Result {
  Matrix direction, inner, square;
};

inline Matrix part(const Matrix& values, int64_t index, int64_t size) {
  return Matrix(values.begin() + index * size, values.begin() + (index + 1) * size);
}

// Calls run(wide, direction) on device memory; `offset` entries lie before both batches.
inline Result run_batch(const Shape& shape, Dtype dtype, const Matrix& values, int64_t offset,
                        const std::function<void(const void*, Direction)>& run) {
  Matrix shifted(offset);
  shifted.insert(shifted.end(), values.begin(), values.end());
  Buffer<unsigned char> wide(stored(shifted, dtype), "wide");
  Buffer<unsigned char> direction(wide.size(), "direction");
  Buffer<double> inner(shape.batch, "inner"), square(shape.batch, "square");
  const int64_t skipped = offset * size_of(dtype);
  run(wide.data() + skipped, {direction.data() + skipped, inner.data(), square.data()});
  Matrix all = loaded(direction.read(), dtype);
  return {Matrix(all.begin() + offset, all.end()), inner.read(), square.read()};
}

inline double inner_of(const Matrix& x, const Matrix& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// inner and square of matrix `index` belong to the stored direction.
inline void check_inner(const char* what, const Shape& shape, const Matrix& x, int64_t index,
                        const Result& result) {
  const Matrix direction = part(result.direction, index, shape.size());
  const double product = inner_of(x, direction), square = inner_of(direction, direction);
  CHECK(std::abs(result.inner[index] - product) <=
            1e-12 * matrices::norm(x) * std::sqrt(square) + 1e-300,
        "%s %ldx%ld: inner %.15g, not %.15g", what, long(shape.rows), long(shape.cols),
        result.inner[index], product);
  CHECK(std::abs(result.square[index] - square) <= 1e-12 * square + 1e-300,
        "%s %ldx%ld: square %.15g, not %.15g", what, long(shape.rows), long(shape.cols),
        result.square[index], square);
}

inline bool is_constant(const Result& result, const Shape& shape, int64_t index, double value) {
  Matrix all = part(result.direction, index, shape.size());
  all.insert(all.end(), {result.inner[index], result.square[index]});
  return matrices::same_bits(all, Matrix(all.size(), value));
}

// float16 enters with a norm of about rows^(1/4), others with 1.
inline double size_for(Dtype dtype, int64_t rows) {
  if (dtype != Dtype::kFloat16) return 1;
  return std::exp2(std::round(std::log2(static_cast<double>(rows)) / 4));
}

// Orthonormal rows, by Gram and Schmidt twice.
inline Matrix orthonormal(int64_t rows, int64_t cols) {
  Matrix q = matrices::gaussian(rows * cols);
  for (int64_t i = 0; i < rows; ++i) {
    Matrix row = part(q, i, cols);
    for (int64_t j = 0; j < 2 * i; ++j) {
      const Matrix other = part(q, j % i, cols);
      matrices::add(row, -inner_of(row, other), other);
    }
    matrices::normalise(row);
    std::copy(row.begin(), row.end(), q.begin() + i * cols);
  }
  return q;
}

// Singular values from 1 down to `smallest`, evenly on the scale of logarithms.
inline Matrix with_spectrum(int64_t rows, int64_t cols, double smallest) {
  const Matrix left = orthonormal(rows, rows);
  Matrix right = orthonormal(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    right[i] *= std::pow(smallest, double(i / cols) / std::max<double>(rows - 1, 1));
  }
  return matrices::times(left, right, rows, rows, cols);
}

// Matrices of norm `size`: well-conditioned ones, so that no error is a matter of luck, and where
// there is room for them one of rank one and zeros.
constexpr int64_t kRankOne = 1, kZero = 2;
inline Matrix batch_of(const Shape& shape, double size) {
  Matrix values;
  for (int64_t i = 0; i < shape.batch; ++i) {
    Matrix x(shape.size());
    if (i == kRankOne) {
      x = matrices::times(matrices::gaussian(shape.rows), matrices::gaussian(shape.cols),
                          shape.rows, 1, shape.cols);
    } else if (i != kZero) {
      x = with_spectrum(shape.rows, shape.cols, 0.2);
    }
    if (i != kZero && shape.size() > 0) matrices::normalise(x);
    for (double value : x) values.push_back(size * value);
  }
  return values;
}

}  // namespace wide_batches

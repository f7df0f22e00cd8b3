// squarings_direction against plain loops in double, and in half precision against those with
// every power rounded.
#include <limits>

#include "chain_twin.h"

namespace {

using namespace schattor::cuda;
using namespace wide_batches;
using chain_twin::Rounded;
using matrices::gram_of;
using matrices::times;

Matrix divided(Matrix x, double divisor) {
  for (double& value : x) value /= divisor;
  return x;
}

// X (c_0 I + c_1 A + c_2 A^2 + c_3 A^4 + ...), every power at norm 1 when it is stored.
Matrix direction_of(const Matrix& x, int64_t rows, int64_t cols, const Matrix& coefficients,
                    double power, Rounded store) {
  const int count = static_cast<int>(coefficients.size()) - 1;
  std::vector<Matrix> powers;
  Matrix logarithms;
  for (int j = 0; j < count; ++j) {
    const Matrix next =
        j == 0 ? gram_of(x, rows, cols) : times(powers.back(), powers.back(), rows, rows, rows);
    const double size = matrices::norm(next);
    if (size == 0) return Matrix(x.size());
    powers.push_back(store(divided(next, size)));
    logarithms.push_back(std::log(size) + (j == 0 ? 0 : 2 * logarithms.back()));
  }
  const double bound = logarithms.back() * std::exp2(-count);
  Matrix side(rows * rows);
  for (int64_t i = 0; i < rows; ++i) side[i * (rows + 1)] = coefficients[0];
  for (int j = 0; j < count; ++j) {
    const double size = std::exp(logarithms[j] - bound * std::exp2(j + 1));
    matrices::add(side, coefficients[j + 1] * size, powers[j]);
  }
  const Matrix direction = times(store(side), x, rows, rows, cols);
  return store(divided(direction, std::exp((1 - power) * bound)));
}

Result run_squarings(const Shape& shape, Dtype dtype, const Matrix& values,
                     const Matrix& coefficients, const Matrix& powers, int64_t offset = 0) {
  Buffer<double> device_powers(powers, "powers");
  return run_batch(shape, dtype, values, offset, [&](const void* wide, Direction direction) {
    SquaringsArgs args{};
    args.batch = shape.batch, args.rows = shape.rows, args.cols = shape.cols;
    args.dtype = dtype, args.wide = wide, args.direction = direction;
    args.count = static_cast<int>(coefficients.size());
    args.coefficients = coefficients.data(), args.powers = device_powers.data();
    Buffer<unsigned char> workspace(squarings_workspace(args), "workspace");
    const cudaError_t error = squarings_direction(args, workspace.data(), nullptr);
    CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
  });
}

// Of the table's shape: powers 3, 8 and 33 are nearly c_1, c_3 and c_5 alone.
const Matrix kThree = {0.0001, 0.9995, 0.003, -0.016, 0.015};
const Matrix kEight = {0.0008, -0.024, 0.15, 1.0, -0.13};
const Matrix kMost = {3e-6, -3e-7, -8e-5, 4e-4, -1e-3, 1.003};
const Matrix kFew = {0.3, 0.5, 0.2};
const Matrix kFour = {0.1, 0.3, 0.4, 0.2};

void check_squarings(const Shape& shape, Dtype dtype, const Matrix& coefficients, double power,
                     double size, int64_t offset = 0) {
  if (!Shares::take()) return;
  const Matrix values = rounded(batch_of(shape, size), dtype);
  Matrix powers(shape.batch, power);
  if (shape.batch > 3) powers[3] = power / 2;
  const Result result = run_squarings(shape, dtype, values, coefficients, powers, offset);
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Matrix x = part(values, i, shape.size());
    const Matrix direction = part(result.direction, i, shape.size());
    const auto reference = [&](Rounded store) {
      return direction_of(x, shape.rows, shape.cols, coefficients, powers[i], store);
    };
    const Matrix truth = reference(Rounded(Dtype::kFloat64));
    const double error = matrices::distance(direction, truth), length = matrices::norm(truth);
    double allowed = (dtype == Dtype::kFloat64 ? 1e-11 : 2e-5) * length;
    if (is_half(dtype)) {
      for (const double scale : chain_twin::kScales) {
        allowed =
            std::max(allowed, 2 * matrices::distance(reference(Rounded(dtype, scale)), truth));
      }
      allowed += (dtype == Dtype::kFloat16 ? 5e-4 : 4e-3) * length;
    }
    CHECK(error <= allowed, "%s %ldx%ld power %.1f: error %.2e of %.2e", name_of(dtype),
          long(shape.rows), long(shape.cols), powers[i], error / length, allowed / length);
    check_inner("squarings", shape, x, i, result);
    if (i > 0 || shape.batch == 1 || offset > 0) continue;
    const Result alone =
        run_squarings({1, shape.rows, shape.cols}, dtype, x, coefficients, {powers[i]});
    CHECK(matrices::same_bits(alone.direction, direction) && alone.inner[0] == result.inner[i] &&
              alone.square[0] == result.square[i],
          "%s %ldx%ld: the batch changes bits", name_of(dtype), long(shape.rows), long(shape.cols));
  }
}

// Powers of 33 stay in range where the largest singular value is near 1.
void test_shapes() {
  for (const Dtype dtype : kDtypes) {
    const double size = size_for(dtype, 16);
    check_squarings({4, 5, 16}, dtype, kThree, 3, size);
    check_squarings({4, 9, 20}, dtype, kEight, 8, 1.5);
    check_squarings({1, 12, 12}, dtype, kMost, 33, 1.9);
    check_squarings({3, 7, 15}, dtype, kMost, 20, 1.2);
    check_squarings({1, 1, 3}, dtype, kThree, 3, 1);
    check_squarings({1, 17, 33}, dtype, kFew, 2.4, 1);
    check_squarings({2, 6, 24}, dtype, kFour, 5, 1, 1);
    check_squarings({1, 2, 2}, dtype, kFour, 5, 1);
  }
  check_squarings({1, 65, 66}, Dtype::kBFloat16, kMost, 33, 4);
  check_squarings({1, 64, 128}, Dtype::kFloat16, kThree, 3, 4);
}

// Where the direction has a place in the dtype, no power on the way leaves the range.
void test_sizes() {
  for (const double size : {1e-3, 1e3}) {
    check_squarings({1, 8, 16}, Dtype::kFloat64, kMost, 10, size);
    check_squarings({1, 8, 16}, Dtype::kFloat32, kMost, 10, size);
    check_squarings({1, 8, 16}, Dtype::kBFloat16, kMost, 10, size);
  }
  check_squarings({1, 40, 40}, Dtype::kFloat16, kMost, 2, 0.1);
  check_squarings({1, 40, 40}, Dtype::kFloat16, kMost, 2, 60);
}

void test_values() {
  const Shape shape{3, 6, 9};
  for (const Dtype dtype : kDtypes) {
    for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
      if (!Shares::take()) continue;
      Matrix values = batch_of(shape, 1);
      values[7] = value;
      const Result result = run_squarings(shape, dtype, values, kEight, Matrix(3, 8));
      CHECK(is_constant(result, shape, 0, std::nan("")), "%s: numbers from %f", name_of(dtype),
            value);
      CHECK(std::isfinite(matrices::norm(part(result.direction, 1, shape.size()))) &&
                std::isfinite(result.inner[1]),
            "%s: the next matrix is touched", name_of(dtype));
      CHECK(is_constant(result, shape, kZero, 0), "%s: a direction of zero", name_of(dtype));
    }
  }
  for (const Shape& empty : {Shape{0, 6, 9}, Shape{2, 0, 9}}) {
    const Result result = run_squarings(empty, Dtype::kFloat32, {}, kThree, Matrix(empty.batch, 3));
    for (double value : result.inner) CHECK(value == 0, "no entries, yet an inner product");
    for (double value : result.square) CHECK(value == 0, "no entries, yet a norm");
  }
}

void body() {
  Shares::begin_run();
  test_shapes();
  test_sizes();
  test_values();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, body); }

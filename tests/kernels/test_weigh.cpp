// weigh against products to the bit and sums in long double, for every dtype, alignment and number
// of blocks.
#include <cmath>
#include <vector>

#include "device_lists.h"

namespace {

using namespace schattor::cuda;
using device_test::Buffer;
using lists::List;

// A batch is one contiguous array: a list of one matrix.
List batch_of(int64_t batch, int64_t size, Dtype dtype, uint64_t seed, double scale) {
  List list(1, batch, size, dtype, lists::Layout::kContiguous);
  list.fill(seed, scale);
  return list;
}

std::vector<double> weigh_batch(List& weights, List& direction, int64_t batch, int64_t size) {
  Buffer<double> square(batch, "square");
  const WeighArgs args = {batch,
                          size,
                          weights.dtype,
                          direction.dtype,
                          weights.upload()->data,
                          direction.upload()->data,
                          square.data()};
  Buffer<double> workspace(weigh_workspace(args) / sizeof(double), "workspace");
  const cudaError_t error = weigh(args, workspace.data(), nullptr);
  CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
  weights.download();
  const lists::Bytes before = direction.host[0];
  direction.download();
  CHECK(direction.host[0] == before, "directions are only read");
  return square.read();
}

// One rounding to the compute type, and from double one more where weights are float.
double product(const List& weights, const List& direction, int64_t i, int64_t k) {
  const double w = weights.at(0, i, k), x = direction.at(0, i, k);
  const bool in_double = direction.dtype == Dtype::kFloat64 || weights.dtype == Dtype::kFloat64;
  return in_double ? w * x : static_cast<double>(static_cast<float>(w) * static_cast<float>(x));
}

void check(const List& before, const List& direction, const List& after,
           const std::vector<double>& square, int64_t size) {
  List truth = before;
  for (size_t i = 0; i < square.size(); ++i) {
    long double sum = 0;
    for (int64_t k = 0; k < size; ++k) {
      truth.set(0, i, k, product(before, direction, i, k));
      const long double w = truth.at(0, i, k);
      sum += w * w;
    }
    // Sums of one thread are the longest chains of rounding.
    const double allowed = static_cast<double>(sum) * 0x1p-53 * (64 + size / 256);
    CHECK(std::fabs(square[i] - static_cast<double>(sum)) <= allowed,
          "size %ld, dtypes %d %d: %.17g, not %.17Lg", long(size), int(before.dtype),
          int(direction.dtype), square[i], sum);
  }
  CHECK(after.host == truth.host, "size %ld, dtypes %d %d: weights", long(size), int(before.dtype),
        int(direction.dtype));
}

void check_case(int64_t batch, int64_t size, Dtype weights_dtype, Dtype direction_dtype,
                double weights_scale = 1, double direction_scale = 1) {
  if (!lists::its_turn()) return;
  const List before = batch_of(batch, size, weights_dtype, 2 * size, weights_scale);
  List direction = batch_of(batch, size, direction_dtype, 2 * size + 1, direction_scale);
  List after = before;
  const std::vector<double> square = weigh_batch(after, direction, batch, size);
  check(before, direction, after, square, size);
  if (batch < 2) return;
  // Aligned as it was: the batch without its last matrix.
  List fewer = before;
  const std::vector<double> alone = weigh_batch(fewer, direction, batch - 1, size);
  CHECK(alone[0] == square[0], "neighbours change %.17g into %.17g", alone[0], square[0]);
}

void sizes() {
  for (const int64_t size : {1, 2, 3, 7, 8, 9, 31, 2047, 2048, 4096, 4097, 16384, 16385, 40000}) {
    check_case(3, size, Dtype::kFloat32, Dtype::kBFloat16);
    check_case(1, size, Dtype::kFloat64, Dtype::kFloat64);
  }
}

void dtypes() {
  for (const Dtype weights : {Dtype::kFloat64, Dtype::kFloat32}) {
    for (const Dtype direction : lists::kDtypes) {
      check_case(2, 264, weights, direction);
      check_case(2, 61, weights, direction);
    }
  }
}

// Squares beyond float, and of double near the ends of its range.
void extreme_sizes() {
  for (const double size : {1e-30, 1e30}) {
    check_case(1, 100, Dtype::kFloat32, Dtype::kFloat32, size, 1);
    check_case(1, 100, Dtype::kFloat64, Dtype::kFloat32, size, size);
  }
  check_case(1, 100, Dtype::kFloat64, Dtype::kBFloat16, 1e150, 1e-30);
}

void not_finite() {
  List weights = batch_of(3, 24, Dtype::kFloat32, 1, 1);
  List direction = batch_of(3, 24, Dtype::kFloat32, 2, 1);
  weights.set(0, 1, 23, NAN), direction.set(0, 2, 0, HUGE_VAL), weights.set(0, 2, 0, 1);
  const std::vector<double> square = weigh_batch(weights, direction, 3, 24);
  CHECK(std::isfinite(square[0]), "%g", square[0]);
  CHECK(std::isnan(square[1]) && square[2] == HUGE_VAL, "%g %g", square[1], square[2]);
  CHECK(std::isnan(weights.at(0, 1, 23)) && weights.at(0, 2, 0) == HUGE_VAL, "weights");
}

void nothing() {
  List weights = batch_of(2, 0, Dtype::kFloat32, 1, 1), direction = weights;
  CHECK(weigh_batch(weights, direction, 2, 0) == std::vector<double>(2, 0), "empty matrices");
  List none = batch_of(0, 5, Dtype::kFloat32, 1, 1), other = none;
  CHECK(weigh_batch(none, other, 0, 5).empty(), "an empty batch");
}

// More strips than there are blocks for one matrix.
void long_matrix() {
  const int64_t size = int64_t{513} * 16384 + 3;
  const List before = batch_of(1, size, Dtype::kFloat32, 5, 1);
  List direction = batch_of(1, size, Dtype::kFloat16, 6, 1), after = before;
  const std::vector<double> square = weigh_batch(after, direction, 1, size);
  check(before, direction, after, square, size);
}

void body() {
  sizes();
  dtypes();
  extreme_sizes();
  not_finite();
  nothing();
  lists::next_run();
}

}  // namespace

int main(int argc, char** argv) {
  if (lists::kLong) long_matrix();
  lists::deal_out(argc);
  return device_test::run(argc, argv, body);
}

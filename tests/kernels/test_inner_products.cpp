// inner_products against sums in long double, for every dtype, alignment and number of blocks.
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

std::vector<double> products(List& x, List& y, int64_t batch, int64_t size) {
  Buffer<double> inner(batch, "inner");
  InnerArgs args = {batch,       size, x.dtype, y.dtype, x.upload()->data, y.upload()->data,
                    inner.data()};
  Buffer<double> workspace(inner_products_workspace(args) / sizeof(double), "workspace");
  const cudaError_t error = inner_products(args, workspace.data(), nullptr);
  CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
  return inner.read();
}

void check_sums(const List& x, const List& y, const std::vector<double>& inner, int64_t size) {
  for (size_t i = 0; i < inner.size(); ++i) {
    long double sum = 0, sizes = 0;
    for (int64_t k = 0; k < size; ++k) {
      const long double product = static_cast<long double>(x.at(0, i, k)) * y.at(0, i, k);
      sum += product;
      sizes += std::fabs(product);
    }
    // Sums of one thread are the longest chains of rounding.
    const double allowed = static_cast<double>(sizes) * 0x1p-53 * (64 + size / 256);
    CHECK(std::fabs(inner[i] - static_cast<double>(sum)) <= allowed,
          "size %ld, dtypes %d %d: %.17g, not %.17Lg", long(size), int(x.dtype), int(y.dtype),
          inner[i], sum);
  }
}

void check_case(int64_t batch, int64_t size, Dtype x_dtype, Dtype y_dtype, double x_scale,
                double y_scale) {
  if (!lists::its_turn()) return;
  List x = batch_of(batch, size, x_dtype, 2 * size, x_scale);
  List y = batch_of(batch, size, y_dtype, 2 * size + 1, y_scale);
  const std::vector<double> inner = products(x, y, batch, size);
  check_sums(x, y, inner, size);
  if (batch < 2) return;
  // Alone, and aligned as it was: the batch without its last matrix.
  List fewer_x = x, fewer_y = y;
  const std::vector<double> fewer = products(fewer_x, fewer_y, batch - 1, size);
  CHECK(fewer[0] == inner[0], "neighbours change %.17g into %.17g", fewer[0], inner[0]);
}

void sizes() {
  for (const int64_t size : {1, 2, 7, 8, 9, 31, 2047, 2048, 4096, 4097, 16384, 16385, 40000}) {
    const Dtype half = Dtype::kBFloat16, single = Dtype::kFloat32;
    check_case(3, size, half, half, 1, 1);
    check_case(1, size, single, single, 1, 1);
  }
}

void dtypes() {
  for (const Dtype x : lists::kDtypes) {
    for (const Dtype y : lists::kDtypes) {
      check_case(2, 264, x, y, 1, 1);
      check_case(2, 61, x, y, 1, 1);
    }
  }
}

// Products beyond float and, of double, near the ends of its range.
void extreme_sizes() {
  for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat32, Dtype::kFloat64}) {
    for (const double size : {1e-30, 1e30}) check_case(1, 100, dtype, dtype, size, size);
  }
  check_case(1, 100, Dtype::kFloat64, Dtype::kBFloat16, 1e200, 1e-30);
}

// Integers, of which every order of summation gives the one exact sum, though it cancels.
void exact() {
  const int64_t size = 33000;
  List x = batch_of(2, size, Dtype::kFloat16, 1, 1), y = batch_of(2, size, Dtype::kFloat32, 2, 1);
  double sums[2] = {};
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t k = 0; k < size; ++k) {
      const double a = (k * 7 + i) % 2001 - 1000, b = (k * 11) % 100001 - 50000;
      x.set(0, i, k, a), y.set(0, i, k, b);
      sums[i] += a * b;
    }
  }
  const std::vector<double> inner = products(x, y, 2, size);
  CHECK(inner[0] == sums[0] && inner[1] == sums[1], "%.17g, not %.17g", inner[0], sums[0]);
  CHECK(products(x, y, 2, size) == inner, "from run to run");
}

void not_finite() {
  List x = batch_of(3, 24, Dtype::kFloat32, 1, 1), y = batch_of(3, 24, Dtype::kFloat32, 2, 1);
  x.set(0, 1, 23, NAN), y.set(0, 2, 0, HUGE_VAL), x.set(0, 2, 0, 1);
  const std::vector<double> inner = products(x, y, 3, 24);
  CHECK(std::isfinite(inner[0]), "%g", inner[0]);
  CHECK(std::isnan(inner[1]) && inner[2] == HUGE_VAL, "%g %g", inner[1], inner[2]);
}

void nothing() {
  List x = batch_of(2, 0, Dtype::kFloat32, 1, 1), y = x,
       none = batch_of(0, 5, Dtype::kFloat32, 1, 1);
  CHECK(products(x, y, 2, 0) == std::vector<double>(2, 0), "empty matrices");
  List other = none;
  CHECK(products(none, other, 0, 5).empty(), "an empty batch");
}

// More strips than there are blocks for one matrix.
void long_matrix() {
  const int64_t size = int64_t{513} * 16384 + 3;
  List x = batch_of(1, size, Dtype::kFloat16, 5, 1), y = x;
  check_sums(x, y, products(x, y, 1, size), size);
}

void body() {
  sizes();
  dtypes();
  extreme_sizes();
  exact();
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

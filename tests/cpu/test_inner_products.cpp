// inner_products against long double, for every instruction set and pair of dtypes.
#include <cmath>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "lists.h"

namespace {

using namespace schattor::cpu;

std::vector<double> products(lists::Elements& x, lists::Elements& y, int64_t batch, int threads) {
  std::vector<double> inner(batch, NAN);
  const int64_t size = batch == 0 ? 0 : x.count() / batch;
  inner_products({batch, size, x.dtype, y.dtype, x.data(), y.data(), inner.data()},
                 lists::on_threads(threads));
  return inner;
}

void check_case(int64_t batch, int64_t size, Dtype x_dtype, Dtype y_dtype) {
  lists::List xs(1, batch, size, x_dtype, lists::Layout::kContiguous);
  lists::List ys(1, batch, size, y_dtype, lists::Layout::kContiguous);
  xs.fill(1);
  ys.fill(2);
  lists::Elements &x = xs.storage[0], &y = ys.storage[0];
  const std::vector<double> inner = products(x, y, batch, 1);
  CHECK(inner == products(x, y, batch, 3), "3 threads");
  for (int64_t i = 0; i < batch; ++i) {
    long double truth = 0, magnitude = 0;
    for (int64_t k = 0; k < size; ++k) {
      const long double term = static_cast<long double>(x[i * size + k]) * y[i * size + k];
      truth += term;
      magnitude += std::fabs(term);
    }
    // The bound of any order of summation, and products of doubles round besides.
    CHECK(std::fabs(inner[i] - truth) <= (size + 1) * 0x1p-53 * magnitude,
          "size %ld, dtypes %d %d: %.17g, not %.17Lg", long(size), int(x_dtype), int(y_dtype),
          inner[i], truth);
  }
}

void extremes() {
  for (const double size : {1e-30, 1e30}) {
    lists::Elements x(Dtype::kFloat32, 100), y(Dtype::kFloat32, 100);
    for (int64_t k = 0; k < 100; ++k) x.set(k, size), y.set(k, size);
    const double truth = 100 * x[0] * x[0], inner = products(x, y, 1, 1)[0];
    CHECK(std::fabs(inner / truth - 1) <= 101 * 0x1p-53, "%g, not %g", inner, truth);
  }
  lists::Elements x(Dtype::kFloat32, 6), y(Dtype::kFloat32, 6);
  for (int64_t k = 0; k < 6; ++k) x.set(k, 1), y.set(k, k == 4 ? NAN : 1);
  const std::vector<double> inner = products(x, y, 2, 1);
  CHECK(inner[0] == 3 && std::isnan(inner[1]), "%g, %g", inner[0], inner[1]);
}

}  // namespace

int main() {
  lists::at_each_level([] {
    for (const Dtype x : lists::kDtypes) {
      for (const Dtype y : lists::kDtypes) {
        for (const int64_t size : {0, 1, 2, 3, 15, 16, 17, 31, 33, 100, 5000}) {
          check_case(3, size, x, y);
        }
      }
    }
    check_case(0, 4, Dtype::kFloat32, Dtype::kFloat32);
    check_case(2, 150000, Dtype::kFloat32, Dtype::kFloat32);
    extremes();
  });
  return check::finish();
}

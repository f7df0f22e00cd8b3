// Conversions and loops of rows.inc on every instruction set of this processor, and the choice of
// the set.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "levels.h"
#include "lists.h"
#include "rows.h"

namespace {

using namespace schattor::cpu;

constexpr int64_t kCounts[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100, 1000};

bool same(double x, double y) {
  return (std::isnan(x) && std::isnan(y)) || (x == y && std::signbit(x) == std::signbit(y));
}

template <typename T>
void every_half_loads(const RowLoops<T>& loops, Dtype dtype) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<T> values(halves.size());
  loops.load(dtype, halves.data(), 1, halves.size(), values.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    if (!CHECK(same(values[i], lists::half_value(halves[i], dtype)), "pattern %zx gives %g", i,
               static_cast<double>(values[i]))) {
      return;
    }
  }
  std::vector<uint16_t> back(halves.size());
  loops.store(values.data(), values.size(), dtype, 1, back.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    const double x = values[i];
    const bool kept =
        std::isnan(x) ? std::isnan(lists::half_value(back[i], dtype)) : back[i] == halves[i];
    if (!CHECK(kept, "pattern %zx comes back as %x", i, back[i])) return;
  }
}

// Numbers around every rounding border of the format: its numbers, the middles between neighbours,
// and a hair to both sides of these, as far as T can tell them apart.
template <typename T>
void stores_to_nearest(const RowLoops<T>& loops, Dtype dtype) {
  std::vector<T> values;
  for (uint32_t bits = 0; bits < 0x7fffu; bits += dtype == Dtype::kFloat16 ? 1 : 3) {
    const double x = lists::half_value(static_cast<uint16_t>(bits), dtype);
    const double next = lists::half_value(static_cast<uint16_t>(bits + 1), dtype);
    if (!std::isfinite(next)) continue;
    const T middle = static_cast<T>(x + (next - x) / 2);
    for (const T y : {middle, std::nextafter(middle, T(0)), std::nextafter(middle, T(INFINITY))}) {
      // Below the least normal float, doubles are rounded twice (to_sticky_float).
      if (sizeof(T) == sizeof(double) && std::fabs(y) < 0x1p-126) continue;
      values.push_back(y);
      values.push_back(-y);
    }
  }
  for (const double x : {65504.0, 65519.99, 65520.0, 1e5, 3.38e38, 3.3953e38, 3.4e38, 1e-46}) {
    values.push_back(static_cast<T>(x));
  }
  std::vector<uint16_t> halves(values.size());
  loops.store(values.data(), values.size(), dtype, 1, halves.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (!CHECK(halves[i] == lists::half_bits(values[i], dtype), "%.17g is stored as %x, not %x",
               static_cast<double>(values[i]), halves[i], lists::half_bits(values[i], dtype))) {
      return;
    }
  }
}

template <typename T>
void strides(const RowLoops<T>& loops) {
  for (const Dtype dtype : lists::kDtypes) {
    for (const int64_t count : kCounts) {
      for (const int64_t stride : {1, 2, 5}) {
        lists::Elements memory(dtype, count == 0 ? 0 : (count - 1) * stride + 1);
        for (int64_t i = 0; i < memory.count(); ++i) memory.set(i, 0.25 * i - 7);
        std::vector<T> values(count);
        loops.load(dtype, memory.data(), stride, count, values.data());
        bool right = true;
        for (int64_t i = 0; i < count; ++i) right &= values[i] == memory[i * stride];
        CHECK(right, "load: dtype %d, count %ld, stride %ld", int(dtype), long(count),
              long(stride));
        const lists::Elements before = memory;
        for (T& value : values) value = 2;
        loops.store(values.data(), count, dtype, stride, memory.data());
        for (int64_t i = 0; i < memory.count(); ++i) {
          right &= memory[i] == (i % stride == 0 ? 2 : before[i]);
        }
        CHECK(right, "store: dtype %d, count %ld, stride %ld", int(dtype), long(count),
              long(stride));
      }
    }
  }
}

template <typename T>
void transposes(const RowLoops<T>& loops) {
  for (const int64_t rows : kCounts) {
    for (const int64_t cols : {0, 1, 2, 3, 4, 8, 15, 16, 17, 33, 100}) {
      std::vector<T> from(rows * (cols + 3)), to(cols * (rows + 2), T(-1));
      for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(i);
      loops.transpose(from.data(), cols + 3, rows, cols, to.data(), rows + 2);
      bool right = true;
      for (int64_t c = 0; c < cols; ++c) {
        for (int64_t r = 0; r < rows + 2; ++r) {
          right &= to[c * (rows + 2) + r] == (r < rows ? from[r * (cols + 3) + c] : T(-1));
        }
      }
      CHECK(right, "%ld x %ld", long(rows), long(cols));
    }
  }
}

template <typename T>
void element_loops(const RowLoops<T>& loops) {
  const double unit = sizeof(T) == sizeof(double) ? 0x1p-53 : 0x1p-24;
  for (const int64_t count : kCounts) {
    std::vector<T> x(count), y(count);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = static_cast<T>(std::sin(i + 1.0));
      y[i] = static_cast<T>(std::cos(3.0 * i));
    }
    const std::vector<T> x_before = x;
    loops.blend({T(0.75), T(-3)}, x.data(), y.data(), count, x.data());
    double largest = 0;
    long double square = 0, inner = 0, size = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double truth = 0.75 * x_before[i] - 3.0 * y[i];
      largest = std::max(largest, std::fabs(x[i] - truth));
      square += static_cast<long double>(x[i]) * x[i];
      inner += static_cast<long double>(x[i]) * y[i];
      size += std::fabs(static_cast<long double>(x[i]) * y[i]);
    }
    // Two products and a sum, each of at most 4.
    CHECK(largest <= 12 * unit, "blend of %ld: %g", long(count), largest);
    const double sum = loops.squares(2, x.data(), count);
    CHECK(std::fabs(sum - 4 * square) <= count * 0x1p-52 * square, "squares of %ld: %g, not %g",
          long(count), sum, static_cast<double>(4 * square));
    const double product = loops.inner(x.data(), y.data(), count);
    CHECK(std::fabs(product - inner) <= count * 0x1p-52 * size, "inner of %ld: %g, not %g",
          long(count), product, static_cast<double>(inner));
    std::vector<T> scaled(count);
    loops.scale({T(4), T(0.125)}, x.data(), count, scaled.data());
    bool right = true;
    for (int64_t i = 0; i < count; ++i) right &= scaled[i] == x[i] / 2;
    CHECK(right, "scale of %ld", long(count));
    loops.multiply(x.data(), y.data(), count, scaled.data());
    for (int64_t i = 0; i < count; ++i) right &= scaled[i] == x[i] * y[i];
    CHECK(right, "product of %ld", long(count));
  }
}

// Powers over the whole range of T, and past its ends.
template <typename T>
void weights(const RowLoops<T>& loops) {
  const double unit = sizeof(T) == sizeof(double) ? 0x1p-53 : 0x1p-24;
  std::vector<T> v;
  for (int k = std::numeric_limits<T>::min_exponent - 20; k <= 127; ++k) {
    for (const double x : {1.0, 1.1, 1.41421, 1.41422, 1.7, 1.9999}) {
      v.push_back(static_cast<T>(std::ldexp(x, k)));
    }
  }
  std::vector<T> w(v.size());
  for (const double exponent : {0.0, 0.01, 0.25, 0.37, 0.5, 1.0, 3.0, -0.5}) {
    for (const bool square_root : {false, true}) {
      loops.weights({1, 0, exponent, square_root}, v.data(), v.size(), w.data());
      double worst = 0;
      for (size_t i = 0; i < v.size(); ++i) {
        const double power = square_root ? exponent / 2 : exponent;
        const long double truth = v[i] > 0 ? std::pow(static_cast<long double>(v[i]), -power) : 0;
        const bool beyond = truth > std::numeric_limits<T>::max();
        const double error =
            beyond ? (std::isinf(w[i]) ? 0 : 1) : static_cast<double>(std::fabs(w[i] - truth));
        const double least = std::numeric_limits<T>::min();
        worst = std::max(
            worst, error / static_cast<double>(std::max<long double>(beyond ? 1 : truth, least)));
      }
      CHECK(worst <= 4 * unit, "exponent %g, root %d: %g", exponent, int(square_root),
            worst / unit);
    }
  }
  // 0 and infinity come from corrections; what is not positive weighs nothing.
  const std::vector<T> ends{T(4), T(0), T(-1), T(NAN)};
  const T inf = std::numeric_limits<T>::infinity();
  std::vector<T> got(4);
  for (const double exponent : {0.0, 0.01, 0.5, 2.0}) {
    const T none = exponent == 0 ? T(1) : inf, all = exponent == 0 ? T(1) : T(0);
    loops.weights({0, 0, exponent, false}, ends.data(), 4, got.data());
    CHECK(got == (std::vector<T>{none, 0, 0, 0}), "0 to -%g is %g", exponent, double(got[0]));
    loops.weights({inf, 0, exponent, false}, ends.data(), 4, got.data());
    CHECK(got == (std::vector<T>{all, 0, 0, 0}), "inf to -%g is %g", exponent, double(got[0]));
    loops.weights({1, T(NAN), exponent, false}, ends.data(), 4, got.data());
    CHECK(exponent == 0 || std::isnan(got[0]), "NaN to -%g is %g", exponent, double(got[0]));
  }
}

template <typename T>
void every_loop(const RowLoops<T>& loops) {
  for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
    every_half_loads(loops, dtype);
    stores_to_nearest(loops, dtype);
  }
  strides(loops);
  transposes(loops);
  element_loops(loops);
  weights(loops);
}

void choice_of_level() {
  const Level detected = detected_level();
  CHECK(level() == detected, "level %d in force, %d detected", int(level()), int(detected));
  for (const Level wanted : {Level::kBaseline, Level::kAvx2, Level::kAvx512, Level::kAvx512Bf16,
                             Level::kAvx512Fp16, Level::kAmx}) {
    const Level before = level();
    const bool possible = has_level(wanted);
    CHECK(!possible || wanted <= detected, "level %d is above the highest", int(wanted));
    CHECK(force_level(wanted) == possible, "level %d", int(wanted));
    CHECK(level() == (possible ? wanted : before), "level %d", int(level()));
  }
  force_level(Level::kBaseline);
  CHECK(&kernels() == &baseline_kernels(), "the baseline is forced");
  force_level(detected);
}

}  // namespace

int main() {
  choice_of_level();
  lists::at_each_level([] {
    every_loop(kernels().rows.in<float>());
    every_loop(kernels().rows.in<double>());
  });
  return check::finish();
}

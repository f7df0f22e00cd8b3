// Lists of strided matrices of any dtype on the device, with conversions written from the formats'
// definitions rather than from the code under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "device_test.h"
#include "dtype.h"

namespace lists {

using schattor::cuda::Dtype;
using schattor::cuda::size_of;
using schattor::cuda::View;

constexpr Dtype kDtypes[] = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

struct Format {
  int digits;    // of the significand, the hidden one included
  int smallest;  // exponent of the least normal number
  int largest;   // exponent of the greatest
  double epsilon() const { return std::ldexp(1.0, 1 - digits); }
  double least() const { return std::ldexp(1.0, smallest - digits + 1); }  // subnormal
};

inline Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return {53, -1022, 1023};
    case Dtype::kFloat32:
      return {24, -126, 127};
    case Dtype::kBFloat16:
      return {8, -126, 127};
    default:
      return {11, -14, 15};
  }
}

// The nearest number of the format, ties to even.
inline double nearest(double x, Dtype dtype) {
  if (dtype == Dtype::kFloat64 || x == 0 || !std::isfinite(x)) return x;
  const Format format = format_of(dtype);
  const int exponent = std::max(std::ilogb(x), format.smallest);
  const double unit = std::ldexp(1.0, exponent - format.digits + 1);
  const double rounded = std::nearbyint(x / unit) * unit;
  const bool overflows = std::fabs(rounded) >= std::ldexp(1.0, format.largest + 1);
  return overflows ? std::copysign(INFINITY, x) : rounded;
}

inline uint16_t half_bits(double x, Dtype dtype) {
  const Format format = format_of(dtype);
  const int fraction = format.digits - 1;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const uint16_t infinity = 0x7fff >> fraction << fraction;
  if (std::isnan(x)) return infinity | 1u << (fraction - 1);
  const double value = std::fabs(nearest(x, dtype));
  if (std::isinf(value)) return sign | infinity;
  const double subnormals = value / format.least();
  if (subnormals < std::ldexp(1.0, fraction)) return sign | static_cast<uint16_t>(subnormals);
  const int exponent = std::ilogb(value);
  const double scaled = std::ldexp(value, fraction - exponent) - std::ldexp(1.0, fraction);
  return sign | (exponent - format.smallest + 1) << fraction | static_cast<uint16_t>(scaled);
}

inline double half_value(uint16_t bits, Dtype dtype) {
  const Format format = format_of(dtype);
  const int fraction = format.digits - 1;
  const int exponent = (bits & 0x7fff) >> fraction, mantissa = bits & ((1 << fraction) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0x7fff >> fraction) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * mantissa * format.least();
  return sign * std::ldexp(mantissa + (1 << fraction), exponent - 1 + format.smallest - fraction);
}

using Bytes = std::vector<unsigned char>;

template <class T>
T load(const Bytes& bytes, int64_t at) {
  T x;
  std::memcpy(&x, bytes.data() + at * sizeof(T), sizeof(T));
  return x;
}

inline double get(const Bytes& bytes, Dtype dtype, int64_t at) {
  if (dtype == Dtype::kFloat64) return load<double>(bytes, at);
  if (dtype == Dtype::kFloat32) return load<float>(bytes, at);
  return half_value(load<uint16_t>(bytes, at), dtype);
}

inline void set(Bytes& bytes, Dtype dtype, int64_t at, double x) {
  const float single = static_cast<float>(x);
  const uint16_t half = size_of(dtype) == 2 ? half_bits(x, dtype) : 0;
  const void* from = &half;
  if (dtype == Dtype::kFloat64) from = &x;
  if (dtype == Dtype::kFloat32) from = &single;
  std::memcpy(bytes.data() + at * size_of(dtype), from, size_of(dtype));
}

// Gaps of eight keep lines aligned to 16 bytes, gaps of three do not; kOffset begins one entry
// late.
enum class Layout {
  kContiguous,
  kTransposed,
  kRowGaps,
  kColumnGaps,
  kOddRowGaps,
  kOddColumnGaps,
  kScattered,
  kOffset,
};
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps,
                               Layout::kColumnGaps, Layout::kOddRowGaps, Layout::kOddColumnGaps,
                               Layout::kScattered,  Layout::kOffset};

// A batch of (rows, cols) matrices of one layout: a copy on the host, and each in memory of its own
// on the device.
class List {
 public:
  List(int64_t batch, int64_t rows, int64_t cols, Dtype dtype, Layout layout)
      : rows(rows), cols(cols), row_stride(cols), col_stride(1), dtype(dtype) {
    const auto is = [&](Layout one, Layout other) { return layout == one || layout == other; };
    if (is(Layout::kRowGaps, Layout::kOddRowGaps)) {
      row_stride = (cols + 7) / 8 * 8 + (layout == Layout::kRowGaps ? 8 : 3);
    } else if (is(Layout::kColumnGaps, Layout::kOddColumnGaps)) {
      row_stride = 1;
      col_stride = (rows + 7) / 8 * 8 + (layout == Layout::kColumnGaps ? 8 : 3);
    } else if (layout == Layout::kTransposed) {
      row_stride = 1, col_stride = rows;
    } else if (layout == Layout::kScattered) {
      row_stride = 2 * cols + 1, col_stride = 2;
    }
    begin = layout == Layout::kOffset ? 1 : 0;
    const int64_t span = (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
    const int64_t extent = begin + (rows * cols == 0 ? 0 : span);
    for (int64_t i = 0; i < batch; ++i) host.emplace_back(extent * size_of(dtype));
  }

  // Every element, gaps included, uniform in [-size, size].
  void fill(uint64_t seed, double size = 1) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(-size, size);
    for (Bytes& bytes : host) {
      const int64_t count = bytes.size() / size_of(dtype);
      for (int64_t k = 0; k < count; ++k) lists::set(bytes, dtype, k, uniform(random));
    }
  }

  int64_t offset(int64_t r, int64_t c) const { return begin + r * row_stride + c * col_stride; }
  double at(int64_t i, int64_t r, int64_t c) const { return get(host[i], dtype, offset(r, c)); }
  void set(int64_t i, int64_t r, int64_t c, double x) {
    lists::set(host[i], dtype, offset(r, c), x);
  }

  // Views of fresh copies on the device.
  const View* upload() {
    device.clear(), views.clear();
    for (const Bytes& bytes : host) {
      device.push_back(std::make_shared<device_test::Buffer<unsigned char>>(bytes, "list"));
      views.push_back({device.back()->data() + begin * size_of(dtype), row_stride, col_stride});
    }
    return views.data();
  }
  void download() {
    for (size_t i = 0; i < host.size(); ++i) host[i] = device[i]->read();
  }

  int64_t rows, cols, row_stride, col_stride, begin;
  Dtype dtype;
  std::vector<Bytes> host;
  std::vector<std::shared_ptr<device_test::Buffer<unsigned char>>> device;
  std::vector<View> views;
};

// Long loops over launches and tiles are left out where everything takes long: they have no more
// accesses to check than short ones.
#if defined(CUEMU_RACE) || defined(__SANITIZE_ADDRESS__)
constexpr bool kLong = false;
#else
constexpr bool kLong = true;
#endif

// Where a test runs in five orders, cases are dealt out to them: each order has its fifth.
inline int parts = 1, run_number = 0, case_number = 0;
inline void deal_out(int argc) {
#ifndef __CUDACC__
  if (argc < 2) parts = 5;
#endif
  (void)argc;
}
inline void next_run() { ++run_number, case_number = 0; }
inline bool its_turn() { return case_number++ % parts == run_number % parts; }

}  // namespace lists

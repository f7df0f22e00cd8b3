// Lists of strided matrices of any dtype for the tests, with conversions written from the formats'
// definitions rather than from the code under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "kernels.h"

namespace lists {

using schattor::cpu::Dtype;
using schattor::cpu::Parallel;
using schattor::cpu::View;

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

inline double get(const void* data, Dtype dtype, int64_t at) {
  if (dtype == Dtype::kFloat64) return static_cast<const double*>(data)[at];
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(data)[at];
  return half_value(static_cast<const uint16_t*>(data)[at], dtype);
}

inline void set(void* data, Dtype dtype, int64_t at, double x) {
  if (dtype == Dtype::kFloat64) {
    static_cast<double*>(data)[at] = x;
  } else if (dtype == Dtype::kFloat32) {
    static_cast<float*>(data)[at] = static_cast<float>(x);
  } else {
    static_cast<uint16_t*>(data)[at] = half_bits(x, dtype);
  }
}

// Elements of a dtype, exactly as many as asked for, so that a sanitizer sees one too far.
struct Elements {
  Elements(Dtype dtype, int64_t count)
      : dtype(dtype), bytes(count * schattor::cpu::size_of(dtype)) {}
  double operator[](int64_t at) const { return get(bytes.data(), dtype, at); }
  void set(int64_t at, double x) { lists::set(bytes.data(), dtype, at, x); }
  void* data() { return bytes.data(); }
  int64_t count() const { return bytes.size() / schattor::cpu::size_of(dtype); }

  Dtype dtype;
  std::vector<char> bytes;
};

enum class Layout { kContiguous, kTransposed, kRowGaps, kColumnGaps, kScattered };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps,
                               Layout::kColumnGaps, Layout::kScattered};

// A batch of (rows, cols) matrices of one layout, each in memory of its own.
struct List {
  List(int64_t batch, int64_t rows, int64_t cols, Dtype dtype, Layout layout)
      : rows(rows), cols(cols), row_stride(cols), col_stride(1), dtype(dtype) {
    switch (layout) {
      case Layout::kContiguous:
        break;
      case Layout::kTransposed:
        row_stride = 1, col_stride = rows;
        break;
      case Layout::kRowGaps:
        row_stride = cols + 3;
        break;
      case Layout::kColumnGaps:
        row_stride = 1, col_stride = rows + 5;
        break;
      case Layout::kScattered:
        row_stride = 2 * cols + 1, col_stride = 2;
        break;
    }
    const int64_t extent =
        rows * cols == 0 ? 0 : (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
    for (int64_t i = 0; i < batch; ++i) storage.emplace_back(dtype, extent);
    for (Elements& elements : storage) views.push_back({elements.data(), row_stride, col_stride});
  }

  double at(int64_t i, int64_t r, int64_t c) const {
    return storage[i][r * row_stride + c * col_stride];
  }
  void set(int64_t i, int64_t r, int64_t c, double x) {
    storage[i].set(r * row_stride + c * col_stride, x);
  }

  // Every element, gaps included, uniform in [-size, size].
  void fill(uint64_t seed, double size = 1) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(-size, size);
    for (Elements& elements : storage) {
      for (int64_t k = 0; k < elements.count(); ++k) elements.set(k, uniform(random));
    }
  }

  std::vector<std::vector<char>> bytes() const {
    std::vector<std::vector<char>> all;
    for (const Elements& elements : storage) all.push_back(elements.bytes);
    return all;
  }

  int64_t rows, cols, row_stride, col_stride;
  Dtype dtype;
  std::vector<Elements> storage;
  std::vector<View> views;
};

// What the instruction sets of this processor are forced to, one after the other.
inline std::vector<schattor::cpu::Level> levels() {
  using schattor::cpu::Level;
  std::vector<Level> all;
  for (const Level level : {Level::kBaseline, Level::kAvx2, Level::kAvx512, Level::kAmx}) {
    if (level <= schattor::cpu::detected_level()) all.push_back(level);
  }
  return all;
}

// Ranges on threads of their own, with uneven borders.
inline Parallel on_threads(int threads) {
  Parallel parallel;
  parallel.threads = threads;
  if (threads == 1) return parallel;
  parallel.run = [threads](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::vector<std::thread> pool;
    for (int64_t k = 0; k < threads; ++k) {
      const int64_t begin = count * k / threads, end = count * (k + 1) / threads;
      if (begin < end) pool.emplace_back([=, &body] { body(begin, end); });
    }
    for (std::thread& thread : pool) thread.join();
  };
  return parallel;
}

}  // namespace lists

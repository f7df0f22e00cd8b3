// Number formats, and conversions to and from them written from their definitions rather than from
// the code under test. Dtype is the enumeration of the code under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace lists {

struct Format {
  int digits;    // of the significand, the hidden one included
  int smallest;  // exponent of the least normal number
  int largest;   // exponent of the greatest
  double epsilon() const { return std::ldexp(1.0, 1 - digits); }
  double least() const { return std::ldexp(1.0, smallest - digits + 1); }  // subnormal
};

template <class Dtype>
Format format_of(Dtype dtype) {
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
template <class Dtype>
double nearest(double x, Dtype dtype) {
  if (dtype == Dtype::kFloat64 || x == 0 || !std::isfinite(x)) return x;
  const Format format = format_of(dtype);
  const int exponent = std::max(std::ilogb(x), format.smallest);
  const double unit = std::ldexp(1.0, exponent - format.digits + 1);
  const double rounded = std::nearbyint(x / unit) * unit;
  const bool overflows = std::fabs(rounded) >= std::ldexp(1.0, format.largest + 1);
  return overflows ? std::copysign(INFINITY, x) : rounded;
}

template <class Dtype>
uint16_t half_bits(double x, Dtype dtype) {
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

template <class Dtype>
double half_value(uint16_t bits, Dtype dtype) {
  const Format format = format_of(dtype);
  const int fraction = format.digits - 1;
  const int exponent = (bits & 0x7fff) >> fraction, mantissa = bits & ((1 << fraction) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0x7fff >> fraction) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * mantissa * format.least();
  return sign * std::ldexp(mantissa + (1 << fraction), exponent - 1 + format.smallest - fraction);
}

}  // namespace lists

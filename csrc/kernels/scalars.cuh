// Numbers of every dtype: what they are summed in, and conversions that round once.
#pragma once

#include <cstring>
#include <type_traits>

#include "device.h"

namespace schattor::cuda {

// Sums are float, of double entries double.
template <class T>
using SumOf = std::conditional_t<std::is_same<T, double>::value, double, float>;

DEV float widened(__half value) { return __half2float(value); }
DEV float widened(bf16 value) { return __bfloat162float(value); }
DEV float widened(float value) { return value; }
DEV double widened(double value) { return value; }

template <class T>
DEV T narrowed(SumOf<T> value) {
  if constexpr (std::is_same<T, __half>::value) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same<T, bf16>::value) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

template <class To, class From>
DEV To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// Two neighbours of half precision in one word, the first in its lower half.
template <class T>
DEV float2 unpack(uint32_t word) {
  if constexpr (std::is_same<T, __half>::value) {
    return __half22float2(same_bits<__half2>(word));
  } else {
    return make_float2(same_bits<float>(word << 16), same_bits<float>(word & 0xffff0000u));
  }
}
template <class T>
DEV uint32_t pack(float first, float second) {
  if constexpr (std::is_same<T, __half>::value) {
    return same_bits<uint32_t>(__floats2half2_rn(first, second));
  } else {
    return same_bits<uint32_t>(__floats2bfloat162_rn(first, second));
  }
}
// From double in one rounding, not by way of float.
template <class T>
DEV uint32_t pack(double first, double second) {
  if constexpr (std::is_same<T, __half>::value) {
    return same_bits<uint16_t>(__double2half(first)) |
           static_cast<uint32_t>(same_bits<uint16_t>(__double2half(second))) << 16;
  } else {
    return same_bits<uint16_t>(__double2bfloat16(first)) |
           static_cast<uint32_t>(same_bits<uint16_t>(__double2bfloat16(second))) << 16;
  }
}

}  // namespace schattor::cuda

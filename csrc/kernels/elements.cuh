// Entries of any dtype, to and from the type that is computed in (float or double), by units of
// eight: 16 bytes of a half dtype, so that a unit is one, two or four loads of 16 bytes.
#pragma once

#include <cmath>

#include "dtype.h"
#include "scalars.cuh"

namespace schattor::cuda {

constexpr int kUnit = 8;

// A unit as it lies in memory. Loaded apart from its conversion, so that many loads are in flight.
template <class T>
struct RawUnit {
  uint4 pieces[sizeof(T) / 2];
};

template <class T>
DEV RawUnit<T> load_raw(const void* from, int entry_size) {
  RawUnit<T> raw;
#pragma unroll
  for (int j = 0; j < static_cast<int>(sizeof(T)) / 2; ++j) {
    raw.pieces[j] = 2 * j < entry_size ? static_cast<const uint4*>(from)[j] : uint4{0, 0, 0, 0};
  }
  return raw;
}

template <class T>
DEV void store_raw(const RawUnit<T>& raw, int entry_size, void* to) {
#pragma unroll
  for (int j = 0; j < static_cast<int>(sizeof(T)) / 2; ++j) {
    if (2 * j < entry_size) static_cast<uint4*>(to)[j] = raw.pieces[j];
  }
}

// The dtype is one for a whole block, so a switch costs a unit next to nothing. Who computes in
// float has checked that nothing is kFloat64.
template <class T>
DEV void from_raw(const RawUnit<T>& raw, Dtype dtype, T (&x)[kUnit]) {
  const uint4 first = raw.pieces[0], second = raw.pieces[1];
  const uint32_t words[8] = {first.x,  first.y,  first.z,  first.w,
                             second.x, second.y, second.z, second.w};
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) x[k] = same_bits<float>(words[k]);
  } else if (sizeof(T) == sizeof(float) || dtype != Dtype::kFloat64) {
#pragma unroll
    for (int k = 0; k < kUnit; k += 2) {
      const float2 pair =
          dtype == Dtype::kBFloat16 ? unpack<bf16>(words[k / 2]) : unpack<__half>(words[k / 2]);
      x[k] = pair.x, x[k + 1] = pair.y;
    }
  } else if constexpr (sizeof(T) == sizeof(double)) {
#pragma unroll
    for (int k = 0; k < kUnit; k += 2) {
      const uint4 piece = raw.pieces[k / 2];
      x[k] = same_bits<double>(uint2{piece.x, piece.y});
      x[k + 1] = same_bits<double>(uint2{piece.z, piece.w});
    }
  }
}

template <class T>
DEV RawUnit<T> to_raw(const T (&x)[kUnit], Dtype dtype) {
  RawUnit<T> raw = {};
  uint32_t words[8] = {};
  if (dtype == Dtype::kFloat64) {
#pragma unroll
    for (int k = 0; sizeof(T) == sizeof(double) && k < kUnit; k += 2) {
      const uint2 lower = same_bits<uint2>(static_cast<double>(x[k]));
      const uint2 upper = same_bits<uint2>(static_cast<double>(x[k + 1]));
      raw.pieces[k / 2 % (sizeof(T) / 2)] = {lower.x, lower.y, upper.x, upper.y};
    }
    return raw;
  }
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    if (dtype == Dtype::kFloat32) {
      words[k] = same_bits<uint32_t>(static_cast<float>(x[k]));
    } else if (k % 2 == 0) {
      words[k / 2] =
          dtype == Dtype::kBFloat16 ? pack<bf16>(x[k], x[k + 1]) : pack<__half>(x[k], x[k + 1]);
    }
  }
  raw.pieces[0] = {words[0], words[1], words[2], words[3]};
  raw.pieces[1] = {words[4], words[5], words[6], words[7]};
  return raw;
}

// One entry, where a unit is not aligned or not whole.
template <class T>
DEV T load_entry(const void* from, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return static_cast<T>(*static_cast<const double*>(from));
    case Dtype::kFloat32:
      return *static_cast<const float*>(from);
    case Dtype::kBFloat16:
      return unpack<bf16>(*static_cast<const uint16_t*>(from)).x;
    default:
      return unpack<__half>(*static_cast<const uint16_t*>(from)).x;
  }
}

template <class T>
DEV void store_entry(T x, Dtype dtype, void* to) {
  switch (dtype) {
    case Dtype::kFloat64:
      *static_cast<double*>(to) = x;
      break;
    case Dtype::kFloat32:
      *static_cast<float*>(to) = static_cast<float>(x);
      break;
    case Dtype::kBFloat16:
      *static_cast<uint16_t*>(to) = static_cast<uint16_t>(pack<bf16>(x, T(0)));
      break;
    default:
      *static_cast<uint16_t*>(to) = static_cast<uint16_t>(pack<__half>(x, T(0)));
  }
}

// momentum m + share g. Spelt with fma because what gather_momentum applied and what scatter_update
// stores must round alike, whatever a compiler contracts.
DEV float blend(float momentum, float m, float share, float g) {
  return fmaf(momentum, m, share * g);
}
DEV double blend(double momentum, double m, double share, double g) {
  return fma(momentum, m, share * g);
}

// The two coefficients of a rule, read on the device.
template <class T>
struct Blend {
  T momentum, share;
  DEV explicit Blend(const MomentumRule& rule)
      : momentum(static_cast<T>(*rule.momentum)),
        share(rule.ema ? static_cast<T>(1 - *rule.momentum) : T(1)) {}
  DEV T operator()(T m, T g) const { return blend(momentum, m, share, g); }
};

// beta v + (1 - beta) g^2, and v + g^2 where beta is 1: of second moments, in both kernels too.
template <class T>
struct Average {
  T beta, share;
  DEV explicit Average(const double* beta)
      : beta(static_cast<T>(*beta)), share(*beta == 1 ? T(1) : static_cast<T>(1 - *beta)) {}
  DEV T operator()(T v, T g) const { return blend(beta, v, share, g * g); }
};

}  // namespace schattor::cuda

// What the parts of the partial SVD share.
//
// A *panel* is (length, count), row-major: `count` long vectors, one a column, which is how start,
// u and v come and go. The right panel V (cols, rank) is iterated; the left one is X V (rows,
// rank).
#pragma once

#include <cstdint>
#include <type_traits>

#include "launch.h"
#include "reduce.cuh"

namespace schattor::cuda::svd {

// Every architecture that we build for gives a block this much.
constexpr size_t kMostShared = 96 << 10;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

// What is known of one matrix. A matrix of zeros keeps its start; one that is not finite gives NaN.
enum Mode { kNormal, kZero, kNotFinite };
struct MatrixState {
  int mode;
  int exponent;  // X is read as X / 2^exponent; 0 where its own size is safe
  int active;    // the pass of Cholesky QR that is under way changes this matrix's panel ...
  int pending;   // ... and leaves work for the next
};

template <class T>
__host__ __device__ constexpr double epsilon() {
  return sizeof(T) == 8 ? 2.220446049250313e-16 : 1.1920928955078125e-07;
}

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// Magnitudes order as their bits do, NaN above infinity above all.
template <class T>
DEV BitsOf<T> magnitude_bits(T x) {
  BitsOf<T> bits;
  memcpy(&bits, &x, sizeof(T));
  return bits & (~BitsOf<T>(0) >> 1);
}

// The exponent of a magnitude f 2^e, f in [1/2, 1); 0 for zero. False where it is not finite.
template <class T>
DEV bool exponent_of(BitsOf<T> bits, int* exponent) {
  T magnitude;
  memcpy(&magnitude, &bits, sizeof(T));
  *exponent = 0;
  if (!(double(magnitude) - double(magnitude) == 0)) return false;
  frexp(double(magnitude), exponent);
  return true;
}

// Within 2^+-kSafeExponent X'(X V) and all squares stay far from overflow and underflow.
constexpr int kSafeExponent = 20;

DEV int safe_exponent(int exponent) {
  return exponent >= -kSafeExponent && exponent <= kSafeExponent ? 0 : exponent;
}

// x / 2^exponent by two factors, since one alone may not be a number of T.
template <class T>
struct Scaling {
  T first, second;
  DEV explicit Scaling(int exponent)
      : first(T(ldexp(1.0, -(exponent / 2)))), second(T(ldexp(1.0, -(exponent - exponent / 2)))) {}
  DEV T operator()(T x) const { return x * first * second; }
};

// In every lane.
template <class Bits>
DEV Bits warp_max(Bits value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Bits other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// The maximum over a block, in every thread. shared: one word a warp.
template <class Bits>
DEV Bits block_max(Bits value, Bits* shared) {
  const int warps = blockDim.x / kWarp;
  value = warp_max(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int warp = 0; warp < warps; ++warp) value = shared[warp] > value ? shared[warp] : value;
  __syncthreads();
  return value;
}

// A number in [-1, 1) that looks random, the same in every run.
DEV double scattered(int vector, int entry, int pass) {
  uint32_t bits = uint32_t(entry) * 0x9E3779B9u + uint32_t(vector) * 0x85EBCA6Bu +
                  uint32_t(pass) * 0xC2B2AE35u + 0x27D4EB2Fu;
  bits = (bits ^ bits >> 16) * 0x7FEB352Du;
  bits = (bits ^ bits >> 15) * 0x846CA68Bu;
  bits ^= bits >> 16;
  return double(bits) * 0x1p-31 - 1;
}

}  // namespace schattor::cuda::svd

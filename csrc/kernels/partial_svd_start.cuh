// How an iteration begins: what the entries of a matrix allow, and its start made safe.
#pragma once

#include "partial_svd.cuh"

namespace schattor::cuda::svd {

// right = start, each vector scaled by a power of two to entries of at most 1, by one block. False
// where an entry is not finite, the same in all threads. flags: one word a warp.
template <class T>
DEV bool load_start(const T* start, int length, int count, T* right, int* flags) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  bool finite = true;
  for (int k = warp; k < count; k += blockDim.x / kWarp) {
    BitsOf<T> largest = 0;
    for (int j = lane; j < length; j += kWarp) {
      const BitsOf<T> bits = magnitude_bits(start[int64_t(j) * count + k]);
      largest = bits > largest ? bits : largest;
    }
    int exponent;
    finite &= exponent_of<T>(warp_max(largest), &exponent);
    for (int j = lane; j < length; j += kWarp) {
      const int64_t index = int64_t(j) * count + k;
      right[index] = T(ldexp(double(start[index]), -exponent));
    }
  }
  return block_max(finite ? 0 : 1, flags) == 0;
}

// The mode and the exponent of a matrix from the bits of its largest magnitude.
template <class T>
DEV MatrixState state_of(BitsOf<T> largest, bool start_is_finite) {
  MatrixState state{};
  int exponent;
  if (!exponent_of<T>(largest, &exponent) || !start_is_finite) {
    state.mode = kNotFinite;
  } else {
    state.mode = largest == 0 ? kZero : kNormal;
    state.exponent = safe_exponent(exponent);
  }
  return state;
}

}  // namespace schattor::cuda::svd

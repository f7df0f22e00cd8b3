// Sums over a block in an order that depends on nothing.
#pragma once

#include "device.h"

namespace schattor::cuda {

// In every lane.
DEV double warp_sum(double value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(~0u, value, distance);
  }
  return value;
}

// Every thread's numbers become the sums over all threads of the block. `scratch` holds `Count`
// numbers a warp, and is free again after the next barrier.
template <int Count>
DEV void block_sum(double (&sums)[Count], double* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    sums[j] = warp_sum(sums[j]);
    if (lane == 0) scratch[warp * Count + j] = sums[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    sums[j] = 0;
    for (int w = 0; w < warps; ++w) sums[j] += scratch[w * Count + j];
  }
}

// The same of one number, for which barriers come first and last: `scratch` may hold anything.
DEV double block_sum(double value, double* scratch) {
  double sums[1] = {value};
  __syncthreads();
  block_sum(sums, scratch);
  __syncthreads();
  return sums[0];
}

}  // namespace schattor::cuda

// Sums over a block in an order that depends on nothing.
#pragma once

#include "device.h"

namespace schattor::cuda {

// Every thread's numbers become the sums over all threads of the block. `scratch` holds `Count`
// numbers a warp, and is free again after the next barrier.
template <int Count>
DEV void block_sum(double (&sums)[Count], double* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    for (int distance = 16; distance > 0; distance /= 2) {
      sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], distance);
    }
    if (lane == 0) scratch[warp * Count + j] = sums[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    sums[j] = 0;
    for (int w = 0; w < warps; ++w) sums[j] += scratch[w * Count + j];
  }
}

}  // namespace schattor::cuda

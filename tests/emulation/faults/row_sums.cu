// Faults 2, 7, 11, 12, 13, 14: bounds, barriers, shuffles.
#include "faults.h"

namespace faults {
namespace {

// One block a row.
__global__ void __launch_bounds__(128)
    row_sums_kernel(int fault, const float* x, float* out, int cols) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  float* part = sm.take<float>(4);
  const int t = threadIdx.x, row = blockIdx.x;
  float sum = 0.f;
  for (int c = t; c < cols; c += blockDim.x) {
    const float value = x[static_cast<size_t>(row) * cols + c];
    sum += value * value;
  }
  if (fault != 13 || t % 32 < 31) {
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  }
  if (t % 32 == 0) part[t / 32 + (fault == 14)] = sum;
  if (fault == 11) {
    if (t < 96) __syncthreads();
  } else if (fault == 12) {
    if (t < 96) {
      __syncthreads();
      sum += part[0] * 0.f;
    } else {
      __syncthreads();
      part[3] = sum + part[1] * 0.f;
    }
  } else if (fault != 7) {
    __syncthreads();
  }
  if (t == 0) out[row + (fault == 2)] = part[0] + part[1] + part[2] + part[3];
}

}  // namespace

cudaError_t row_sums(int fault, const float* x, float* out, int rows, int cols) {
  return dev::launch(row_sums_kernel, dim3(rows), dim3(128), 16, nullptr, fault, x, out, cols);
}

}  // namespace faults

// Faults 3, 4, 6, 8: cp.async groups, stages, mirrored stores, edges.
#include "faults.h"

namespace faults {
namespace {

constexpr int kTile = 64, kDepth = 32, kPitch = 40, kStages = 3;

// Tiles of the lower triangle, row by row.
__global__ void __launch_bounds__(128)
    symmetric_product_kernel(int fault, const bf16* a, bf16* c, int n, float alpha, float beta) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  bf16* stage_a = sm.take<bf16>(kStages * kTile * kPitch);
  bf16* stage_b = sm.take<bf16>(kStages * kTile * kPitch);
  int i = 0, j = blockIdx.x;
  while (j > i) j -= ++i;
  const int i0 = i * kTile, j0 = j * kTile;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  const int warp_row = warp / 2 * 32, warp_col = warp % 2 * 32;
  const auto load = [&](int stage, int k0) {
    for (int chunk = t; chunk < kTile * kDepth / 8; chunk += 128) {
      const int r = chunk / (kDepth / 8), k = chunk % (kDepth / 8) * 8;
      const bool in_a = k0 + k < n && i0 + r < n, in_b = k0 + k < n && j0 + r < n;
      const int to = (stage * kTile + r) * kPitch + k;
      dev::cp_async16(stage_a + to, in_a ? a + static_cast<size_t>(i0 + r) * n + k0 + k : a,
                      in_a ? 16 : 0);
      dev::cp_async16(stage_b + to, in_b ? a + static_cast<size_t>(j0 + r) * n + k0 + k : a,
                      in_b ? 16 : 0);
    }
  };
  const int steps = dev::div_up(n, kDepth);
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load(s, s * kDepth);
    dev::cp_async_commit();
  }
  float sums[2][4][4] = {};
  for (int s = 0; s < steps; ++s) {
    if (fault == 3) {
      dev::cp_async_wait<kStages - 1>();
    } else {
      dev::cp_async_wait<kStages - 2>();
    }
    if (fault != 6 || s == 0) __syncthreads();
    const int next = s + kStages - 1;
    if (next < steps) load(next % kStages, next * kDepth);
    dev::cp_async_commit();
    const bf16* of_a = stage_a + s % kStages * kTile * kPitch;
    const bf16* of_b = stage_b + s % kStages * kTile * kPitch;
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t x[2][4], y[2][4];
      for (int h = 0; h < 2; ++h) {
        const int b_row = warp_col + h * 16 + lane % 8 + lane / 16 * 8;
        dev::ldmatrix_x4(x[h], of_a + (warp_row + h * 16 + lane % 16) * kPitch + k + lane / 16 * 8);
        dev::ldmatrix_x4(y[h], of_b + b_row * kPitch + k + lane / 8 % 2 * 8);
      }
      for (int h = 0; h < 2; ++h) {
        for (int q = 0; q < 4; ++q) {
          dev::mma<bf16>(sums[h][q], x[h], y[q / 2][q % 2 * 2], y[q / 2][q % 2 * 2 + 1]);
        }
      }
    }
  }
  dev::cp_async_wait<0>();
  for (int e = 0; e < 2 * 4 * 4; ++e) {
    const int h = e / 16, q = e / 4 % 4;
    const int row = i0 + warp_row + h * 16 + lane / 4 + e % 4 / 2 * 8;
    const int col = j0 + warp_col + q * 8 + lane % 4 * 2 + e % 2;
    const int end = fault == 8 ? n + 1 : n;
    if (row >= end || col >= end) continue;
    const size_t at = static_cast<size_t>(row) * n + col;
    const bf16 value = __float2bfloat16(alpha * sums[h][q][e % 4] + beta * __bfloat162float(a[at]));
    c[at] = value;
    const size_t mirrored = fault == 4 ? static_cast<size_t>(j0 + row - i0) * n + i0 + col - j0
                                       : static_cast<size_t>(col) * n + row;
    if (i != j) c[mirrored] = value;
  }
}

}  // namespace

cudaError_t symmetric_product(int fault, const bf16* a, bf16* c, int n, float alpha, float beta) {
  const int tiles = dev::div_up(n, kTile);
  return dev::launch(symmetric_product_kernel, dim3(tiles * (tiles + 1) / 2), dim3(128),
                     2 * kStages * kTile * kPitch * sizeof(bf16), nullptr, fault, a, c, n, alpha,
                     beta);
}

}  // namespace faults

// Faults 20 to 25: phases, bytes, waits and descriptors of a ring that TMA fills and wgmma reads.
// Faults 30 to 34: the proxy fence, the swizzle, stores of tensors.
#include "faults.h"

namespace faults {
namespace {

constexpr int kTile = 64, kStages = 3, kBox = kTile * kTile;

// One warpgroup loads (one thread of it), one multiplies; tiles of the lower triangle.
__global__ void __launch_bounds__(256)
    gram_kernel(int fault, const __grid_constant__ dev::TensorMap map, float* c, int m, int k) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DYN_SMEM(base);
  dev::Carve sm{base};
  bf16* of_a = sm.take<bf16>(kStages * kBox, 1024);
  bf16* of_b = sm.take<bf16>(kStages * kBox, 1024);
  uint64_t* full = sm.take<uint64_t>(kStages, 8);
  uint64_t* empty = sm.take<uint64_t>(kStages, 8);
  int i = 0, j = blockIdx.x;
  while (j > i) j -= ++i;
  const int t = threadIdx.x, steps = dev::div_up(k, kTile);
  if (t == 0) {
    for (int s = 0; s < kStages; ++s) {
      dev::mbar_init(full + s, 1);
      dev::mbar_init(empty + s, 128);
    }
    dev::fence_barrier_init();
  }
  if (fault != 24) __syncthreads();
  if (t < 128) {
    dev::setmaxnreg_dec<40>();
    for (int step = 0; t == 0 && step < steps; ++step) {
      const int s = step % kStages, phase = step / kStages & 1;
      if (fault != 25) dev::mbar_wait(empty + s, fault == 20 ? phase : phase ^ 1);
      dev::mbar_expect(full + s, (fault == 21 ? 1 : 2) * kBox * 2);
      dev::tma_load_2d(of_a + s * kBox, &map, full + s, step * kTile, i * kTile);
      dev::tma_load_2d(of_b + s * kBox, &map, full + s, step * kTile, j * kTile);
    }
    return;
  }
  dev::setmaxnreg_inc<232>();
  float sums[32] = {};
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages, phase = step / kStages & 1;
    dev::mbar_wait(full + s, phase);
    dev::wgmma_fence();
    for (int part = 0; part < kTile; part += 16) {
      const int at = s * kBox + (fault == 23 ? part * kTile : part);
      dev::wgmma_m64n64k16<bf16>(sums, dev::desc_k_sw128(of_a + at), dev::desc_k_sw128(of_b + at),
                                 1);
    }
    dev::wgmma_commit();
    if (fault != 22) dev::wgmma_wait<0>();
    dev::mbar_arrive(empty + s);
  }
  const int warp = (t - 128) / 32, lane = t % 32;
  for (int e = 0; e < 32; ++e) {
    const int row = i * kTile + warp * 16 + lane / 4 + e % 4 / 2 * 8;
    const int col = j * kTile + e / 4 * 8 + lane % 4 * 2 + e % 2;
    if (row >= m || col >= m) continue;
    c[static_cast<size_t>(row) * m + col] = sums[e];
    if (i != j) c[static_cast<size_t>(col) * m + row] = sums[e];
  }
#endif
}

__global__ void __launch_bounds__(128)
    swizzled_gram_kernel(int fault, const bf16* a, const __grid_constant__ dev::TensorMap map) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DYN_SMEM(base);
  dev::Carve sm{base};
  bf16* tile = sm.take<bf16>(kBox, 1024);
  float* out = sm.take<float>(kBox, 128);
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  for (int i = t; i < kTile * 8; i += 128) {
    const int r = i / 8, chunk = i % 8;
    *reinterpret_cast<uint4*>(tile + r * kTile + (fault == 31 ? chunk : chunk ^ r % 8) * 8) =
        *reinterpret_cast<const uint4*>(a + r * kTile + chunk * 8);
  }
  if (fault != 30) dev::fence_proxy_async();
  __syncthreads();
  float sums[32] = {};
  dev::wgmma_fence();
  for (int k = 0; k < kTile; k += 16) {
    dev::wgmma_m64n64k16<bf16>(sums, dev::desc_k_sw128(tile + k), dev::desc_k_sw128(tile + k), 1);
  }
  dev::wgmma_commit();
  dev::wgmma_wait<0>();
  for (int e = 0; e < 32; ++e) {
    const int row = warp * 16 + lane / 4 + e % 4 / 2 * 8;
    out[row * kTile + e / 4 * 8 + lane % 4 * 2 + e % 2] = sums[e];
  }
  dev::fence_proxy_async();
  __syncthreads();
  if (t == 0) {
    dev::tma_store_2d(&map, out, 0, 0);
    dev::bulk_commit();
    if (fault != 32) dev::bulk_wait_read<0>();
  }
  if (fault == 34 && t == 64) out[70] = 1.f;
#endif
}

}  // namespace

cudaError_t gram(int fault, const dev::TensorMap& a, float* c, int m, int k) {
  const int tiles = dev::div_up(m, kTile);
  return dev::launch(gram_kernel, dim3(tiles * (tiles + 1) / 2), dim3(256),
                     4 * kStages * kBox + 16 * kStages + 1024, nullptr, fault, a, c, m, k);
}

cudaError_t swizzled_gram(int fault, const bf16* a, const dev::TensorMap& c) {
  return dev::launch(swizzled_gram_kernel, dim3(1), dim3(128), 6 * kBox + 1024, nullptr, fault, a,
                     c);
}

}  // namespace faults

// Faults 41 to 49: two warpgroups that take turns over one ring and one staging buffer.
#include "faults.h"

namespace faults {
namespace {

constexpr int kTile = 64, kStages = 2, kBox = kTile * kTile, kThreads = 384;

struct Shared {
  bf16 *ring, *staging;
  uint64_t *full, *empty, *staged, *unstaged, *turn;
};

DEV int box_at(int row, int chunk) { return row * kTile + (chunk ^ (row & 7)) * 8; }

DEV void load(int fault, const Shared& sm, const dev::TensorMap* a, int batch) {
  for (int i = 0; i < batch; ++i) {
    const int s = i % kStages;
    dev::mbar_wait(sm.empty + s, (i / kStages & 1) ^ 1);
    dev::mbar_expect(sm.full + s, (fault == 41 ? 2 : 1) * kBox * 2);
    dev::tma_load_3d(sm.ring + s * kBox, a, sm.full + s, 0, 0, i);
  }
}

DEV void load_addend(int fault, const Shared& sm, const dev::TensorMap* e, int batch) {
  for (int i = 0; i < batch; ++i) {
    uint64_t* staged = sm.staged + (fault == 49 ? 0 : i & 1);
    if (fault != 42) dev::mbar_wait(sm.unstaged, (i & 1) ^ 1);
    dev::mbar_expect(staged, kBox * 2);
    dev::tma_load_3d(sm.staging, e, staged, 0, 0, i);
  }
}

// c = sums + e in place in the staging buffer, and out.
DEV void finish(int fault, const Shared& sm, const dev::TensorMap* c, float (&sums)[32], int me,
                int i) {
  const int t = threadIdx.x % 128, warp = t / 32, lane = t % 32;
  const int row = warp * 16 + (lane / 8 & 1) * 8 + lane % 8;
  dev::mbar_wait(sm.staged + (fault == 49 ? 0 : i & 1), fault == 49 ? i & 1 : i >> 1 & 1);
  for (int q = 0; q < 4; ++q) {
    uint32_t of_e[4];
    // Fault 47 reads a transposed addend, which other warps' stores overwrite: e is symmetric.
    dev::ldmatrix_x4(of_e,
                     sm.staging + (fault == 47 ? box_at(q * 16 + (lane / 8 & 1) * 8 + lane % 8,
                                                        warp * 2 + lane / 16)
                                               : box_at(row, q * 2 + lane / 16)));
    for (int m = 0; m < 4; ++m) {
      __nv_bfloat162 two;
      memcpy(static_cast<void*>(&two), &of_e[m], sizeof two);
      const float2 wide = __bfloat1622float2(two);
      sums[q * 8 + m * 2] += wide.x;
      sums[q * 8 + m * 2 + 1] += wide.y;
    }
  }
  for (int q = 0; q < 4; ++q) {
    uint32_t out[4];
    for (int m = 0; m < 4; ++m) {
      const __nv_bfloat162 two =
          __floats2bfloat162_rn(sums[q * 8 + m * 2], sums[q * 8 + m * 2 + 1]);
      memcpy(&out[m], &two, sizeof two);
    }
    dev::stmatrix_x4(sm.staging + box_at(row, q * 2 + lane / 16), out);
  }
  if (fault != 45) dev::fence_proxy_async();
  dev::bar_sync(1 + me, 128);
  if (t == 0) {
    dev::tma_store_3d(c, sm.staging, 0, 0, i);
    dev::bulk_commit();
    dev::bulk_wait_read<0>();
    dev::mbar_arrive(sm.unstaged);
  }
}

DEV void multiply(int fault, const Shared& sm, const dev::TensorMap* c, int batch, int me) {
  const bool lead = threadIdx.x % 32 == 0;
  for (int i = me; i < batch; i += 2) {
    const int s = i % kStages;
    float sums[32] = {};
    dev::mbar_wait(sm.turn + me, me ? i >> 1 & 1 : (i >> 1 & 1) ^ 1);
    dev::mbar_wait(sm.full + s, i / kStages & 1);
    // Too early: other lanes may still look at their turn, which the other warpgroup gives back.
    if (fault == 46 && lead) dev::mbar_arrive(sm.turn + (me ^ 1));
    dev::wgmma_fence();
    for (int k = 0; k < kTile; k += 16) {
      const uint64_t operand = dev::desc_k_sw128(sm.ring + s * kBox + k);
      dev::wgmma_m64n64k16<bf16>(sums, operand, operand, 1);
    }
    dev::wgmma_commit();
    if (fault != 46 && fault != 43 && lead) dev::mbar_arrive(sm.turn + (me ^ 1));
    dev::wgmma_wait<0>();
    if (lead) dev::mbar_arrive(sm.empty + (fault == 48 ? s ^ 1 : s));
    finish(fault, sm, c, sums, me, i);
  }
}

__global__ void __launch_bounds__(kThreads)
    turns_kernel(int fault, const __grid_constant__ dev::TensorMap a,
                 const __grid_constant__ dev::TensorMap e, const __grid_constant__ dev::TensorMap c,
                 int batch) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DYN_SMEM(base);
  dev::Carve carve{base};
  Shared sm;
  sm.ring = carve.take<bf16>(kStages * kBox, 1024);
  sm.staging = carve.take<bf16>(kBox, 1024);
  uint64_t* bars = carve.take<uint64_t>(2 * kStages + 5, 8);
  sm.full = bars;
  sm.empty = bars + kStages;
  sm.staged = bars + 2 * kStages;
  sm.turn = sm.staged + 2;
  sm.unstaged = sm.turn + 2;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      dev::mbar_init(sm.full + s, 1);
      dev::mbar_init(sm.empty + s, 4);  // one arrival a warp
    }
    for (int me = 0; me < 2; ++me) {
      dev::mbar_init(sm.staged + me, 1);
      dev::mbar_init(sm.turn + me, 4);
    }
    dev::mbar_init(sm.unstaged, 1);
    dev::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    load(fault, sm, &a, batch);
  } else if (threadIdx.x == 32) {
    load_addend(fault, sm, &e, batch);
  } else if (threadIdx.x >= 128) {
    multiply(fault, sm, &c, batch, threadIdx.x / 128 - 1);
  }
#endif
}

}  // namespace

cudaError_t turns(int fault, const dev::TensorMap& a, const dev::TensorMap& e,
                  const dev::TensorMap& c, int batch) {
  return dev::launch(turns_kernel, dim3(1), dim3(kThreads), (kStages + 1) * kBox * 2 + 128 + 1024,
                     nullptr, fault, a, e, c, batch);
}

}  // namespace faults

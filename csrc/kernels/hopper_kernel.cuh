// The kernel of the engine `hopper`: a persistent block takes tiles blockIdx.x, + gridDim.x, ... of
// the launch's list (hopper_tiles.h). Its 384 threads are
//   warp 0: loads slices of A, 128 x 64, and of B into a ring of slots, by TMA;
//   warp 1: loads the tile's D and S into staging boxes while the products run;
//   two warpgroups that multiply. Cooperative: each owns 64 rows of every tile. Ping-pong: each
//     owns every second tile, and `turn` keeps their main loops apart.
// A slot holds A's slice as 128 rows of 64 (K-major, as wgmma wants it), and B's likewise if B is
// transposed; a row-major B lies as two boxes of 64 of its rows by 64 columns (MN-major).
#pragma once

#include "hopper.h"
#include "hopper_epilogue.cuh"

namespace schattor::cuda::hopper {

constexpr int kThreads = 384;
constexpr int kSlice = kTile * kDepth;
constexpr int kMostSlots = 5, kSlotsWithMixture = 4;
constexpr int kStaging = kBoxesOfTile * kBox;

// Slots and staging: D and C, C's mirror, and S in the place of the fifth slot. The swizzle wants
// 1024-byte alignment, of which the launch promises 16.
constexpr int kSharedBytes = kMostSlots * 2 * kSlice * 2 + 2 * kStaging * 2 + 256 + 1024;
static_assert(2 * kSlice == kStaging, "S takes the place of a slot");

enum class Operands { kRows, kDiagonal, kRowMajorB };

struct Barriers {
  uint64_t* full;      // [slots]
  uint64_t* empty;     // [slots], an arrival for each warp that reads the slot
  uint64_t* staged;    // [2]: D and S have come; ping-pong has one for each warpgroup
  uint64_t* unstaged;  // the staging boxes may be filled again
  uint64_t* turn;      // [2]
};

template <class T, Schedule kSchedule>
struct Block {
  static constexpr bool kTurns = kSchedule == Schedule::kPingPong;
  static constexpr int kHalves = kTurns ? 2 : 1;

  const Params& params;
  Barriers barriers;
  T* ring;
  T* boxes;    // D, then C
  T* mirrors;  // C's mirror, then S's
  T* mixture;  // S
  float* warp_sums;

  DEV T* slice_of_a(int slot) const { return ring + slot * 2 * kSlice; }
  DEV T* slice_of_b(int slot) const { return ring + slot * 2 * kSlice + kSlice; }
  DEV uint64_t* staged(int count) const { return barriers.staged + (kTurns ? count & 1 : 0); }

  DEV static bool shares_slices(const Job& job, const Tile& tile) {
    return job.one_operand && tile.row == tile.col;
  }

  DEV void load_slices() const {
    int slot = 0, phase = 0;
    for (int number = blockIdx.x; number < params.tiles; number += gridDim.x) {
      const Tile tile = tile_at(params, number);
      const Job& job = params.jobs[tile.job];
      const bool shared = shares_slices(job, tile);
      for (int step = 0; step < job.steps; ++step) {
        uint64_t* full = barriers.full + slot;
        dev::mbar_wait(barriers.empty + slot, phase ^ 1);
        dev::mbar_expect(full, (shared ? 1 : 2) * kSlice * 2);
        const int k = step * kDepth;
        dev::tma_load_3d(slice_of_a(slot), &job.a, full, k, tile.row * kTile, tile.matrix);
        if (job.b_row_major) {
          for (int box = 0; box < 2; ++box) {
            dev::tma_load_3d(slice_of_b(slot) + box * kBox, &job.b, full,
                             tile.col * kTile + box * kBoxSide, k, tile.matrix);
          }
        } else if (!shared) {
          dev::tma_load_3d(slice_of_b(slot), &job.b, full, k, tile.col * kTile, tile.matrix);
        }
        if (++slot == params.slots) slot = 0, phase ^= 1;
      }
    }
  }

  DEV void load_boxes(T* to, const dev::TensorMap* map, const Tile& tile, uint64_t* barrier) const {
    for (int box = 0; box < kBoxesOfTile; ++box) {
      const int row = 2 * tile.row + box / 2, col = 2 * tile.col + box % 2;
      if (box_kind(params.jobs[tile.job], row, col) == BoxKind::kSkipped) continue;
      dev::tma_load_3d(to + box * kBox, map, barrier, col * kBoxSide, row * kBoxSide, tile.matrix);
    }
  }

  DEV void load_addends() const {
    int count = 0;
    for (int number = blockIdx.x; number < params.tiles; number += gridDim.x, ++count) {
      const Tile tile = tile_at(params, number);
      const Job& job = params.jobs[tile.job];
      const bool d = value_of<float>(job.beta, tile.matrix) != 0.f;
      const bool s = value_of<float>(job.gamma, tile.matrix) != 0.f;
      int present = 0;
      for (int box = 0; box < kBoxesOfTile; ++box) {
        const int row = 2 * tile.row + box / 2, col = 2 * tile.col + box % 2;
        if (box_kind(job, row, col) != BoxKind::kSkipped) ++present;
      }
      dev::mbar_wait(barriers.unstaged, (count & 1) ^ 1);
      const int bytes = (d + s) * present * kBox * 2;
      if (bytes == 0) {
        dev::mbar_arrive(staged(count));
      } else {
        dev::mbar_expect(staged(count), bytes);
      }
      if (d) load_boxes(boxes, &job.d, tile, staged(count));
      if (s) load_boxes(mixture, &job.s, tile, staged(count));
    }
  }

  // One slice's products. A step of 16 along the inner dimension is 32 bytes of a K-major row, 2 in
  // a descriptor, and 16 rows of 128 bytes of a row-major B, 128; 64 rows of A are 512.
  template <Operands kOperands>
  DEV static void multiply_slice(float (&sums)[kHalves][64], const T* a, const T* b) {
    constexpr bool kRowMajor = kOperands == Operands::kRowMajorB;
    const uint64_t of_a = dev::desc_k_sw128(a);
    const uint64_t of_b = kRowMajor ? dev::desc_mn_sw128(b, kBox * 2) : dev::desc_k_sw128(b);
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        if (kOperands == Operands::kDiagonal && kTurns && h == 0) {
          // Rows 0 to 63 of a tile on the diagonal: what is right of column 63 is the mirror of
          // what is below.
          dev::wgmma_m64n64k16<T>(sums[h], of_a + k * 2, of_b + k * 2, 1);
        } else {
          dev::wgmma_m64n128k16<T, kRowMajor>(sums[h], of_a + k * 2 + h * 512,
                                              of_b + k * (kRowMajor ? 128 : 2), 1);
        }
      }
    }
  }

  // The products of one tile; `slice` counts the slots that the block has filled since its start.
  // The sums begin as zeros and are always added to: where the first product ignored them, ptxas
  // serialized the products (C7515).
  template <Operands kOperands>
  DEV void multiply(float (&sums)[kHalves][64], const Tile& tile, int me, int slice) const {
    const Job& job = params.jobs[tile.job];
    const bool shared = kOperands == Operands::kDiagonal && job.one_operand;
    const bool leads = threadIdx.x % 32 == 0;
    int slot = slice % params.slots, phase = slice / params.slots & 1, before = slot;
    for (int step = 0; step < job.steps; ++step) {
      dev::mbar_wait(barriers.full + slot, phase);
      dev::wgmma_fence();
      multiply_slice<kOperands>(sums, slice_of_a(slot) + (kTurns ? 0 : me * kSlice / 2),
                                shared ? slice_of_a(slot) : slice_of_b(slot));
      dev::wgmma_commit();
      // All lanes have seen every slot of this tile full, for wgmma keeps the warp together. Before
      // it a leading lane might hand over the turn while others still test the barrier that the
      // next turn flips.
      if (kTurns && step + 1 == job.steps && leads) dev::mbar_arrive(barriers.turn + (me ^ 1));
      dev::wgmma_wait<1>();  // the products of the slice before are done, and its slot free
      if (step > 0 && leads) dev::mbar_arrive(barriers.empty + before);
      before = slot;
      if (++slot == params.slots) slot = 0, phase ^= 1;
    }
    dev::wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) dev::wgmma_settle(sums[half]);
    if (leads) dev::mbar_arrive(barriers.empty + before);
  }

  struct Numbers {
    float alpha, beta, gamma, weight;
  };

  DEV void finish(float (&sums)[kHalves][64], const Tile& tile, const Numbers& numbers, int me,
                  int count) const {
    const Job& job = params.jobs[tile.job];
    const int thread = threadIdx.x % kWarpgroup, half = kTurns ? 0 : me, barrier = 1 + me;
    const Epilogue<T, kHalves> epilogue{job, tile, half, thread};
    float* sums_of_warps = warp_sums + me * 4 * kPartials;
    dev::mbar_wait(staged(count), kTurns ? count >> 1 & 1 : count & 1);
    // First C = alpha A op(B) + beta D, then S = weight C + gamma S: one loop, as the code is long.
#pragma unroll 1
    for (int pass = 0; pass < (job.has_s ? 2 : 1); ++pass) {
      const bool mixes = pass == 1;
      T* to = mixes ? mixture : boxes;
      const float factor = mixes ? numbers.gamma : numbers.beta;
      epilogue.combine(sums, mixes ? numbers.weight : numbers.alpha, factor,
                       factor != 0.f ? to : nullptr);
      if (!mixes && job.partials != nullptr) epilogue.sum_squares(sums, sums_of_warps);
      if (mixes && thread == 0) dev::bulk_wait_read<0>();  // C's mirrors have been read
      dev::bar_sync(barrier, kWarpgroup);  // and this warpgroup's reads of its boxes are over
      if (!mixes && !job.has_c) continue;
      epilogue.write(sums, to, mirrors);
      dev::fence_proxy_async();
      dev::bar_sync(barrier, kWarpgroup);
      if (thread == 0) epilogue.store(mixes ? &job.s : &job.c, to, mirrors);
    }
    if (thread == 0 && job.partials != nullptr) {
      const int64_t at = static_cast<int64_t>(tile.matrix) * job.tiles + tile.in_matrix;
      for (int h = 0; h < kHalves; ++h) {
        const float* x = sums_of_warps + h * 4;
        job.partials[at * kPartials + half + h] = (x[0] + x[1]) + (x[2] + x[3]);
      }
    }
    if (thread == 0) {
      dev::bulk_wait_read<0>();
      dev::mbar_arrive(barriers.unstaged);
    }
  }

  DEV void consume(int me) const {
    int slice = 0, count = 0;
    for (int number = blockIdx.x; number < params.tiles; number += gridDim.x, ++count) {
      const Tile tile = tile_at(params, number);
      const Job& job = params.jobs[tile.job];
      if (!kTurns || (count & 1) == me) {
        const Numbers numbers{
            value_of<float>(job.alpha, tile.matrix), value_of<float>(job.beta, tile.matrix),
            value_of<float>(job.gamma, tile.matrix), value_of<float>(job.weight, tile.matrix)};
        float sums[kHalves][64] = {};
        // One parity bit tells the slots' uses apart, so a warpgroup may wait on the ring only once
        // the other has seen every earlier slot full.
        if (kTurns) {
          const int round = count >> 1 & 1;
          dev::mbar_wait(barriers.turn + me, me == 0 ? round ^ 1 : round);
        }
        if (job.b_row_major) {
          multiply<Operands::kRowMajorB>(sums, tile, me, slice);
        } else if (job.symmetric && tile.row == tile.col) {
          multiply<Operands::kDiagonal>(sums, tile, me, slice);
        } else {
          multiply<Operands::kRows>(sums, tile, me, slice);
        }
        finish(sums, tile, numbers, me, count);
      }
      slice += job.steps;
    }
  }
};

DEV void prefetch_maps(const Job& job) {
  dev::prefetch_map(&job.a);
  dev::prefetch_map(&job.b);
  if (job.has_c) dev::prefetch_map(&job.c);
  if (job.has_d) dev::prefetch_map(&job.d);
  if (job.has_s) dev::prefetch_map(&job.s);
}

template <class T, Schedule kSchedule>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_kernel(const __grid_constant__ Params params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DYN_SMEM(base);
  dev::Carve shared{base};
  T* ring = shared.take<T>(params.slots * 2 * kSlice, 1024);
  T* boxes = shared.take<T>(kStaging, 1024);
  T* mirrors = shared.take<T>(kStaging, 1024);
  T* mixture = params.slots < kMostSlots ? shared.take<T>(kStaging, 1024) : nullptr;
  uint64_t* words = shared.take<uint64_t>(2 * kMostSlots + 5, 8);
  float* warp_sums = shared.take<float>(2 * 4 * kPartials);
  const Barriers barriers{words, words + kMostSlots, words + 2 * kMostSlots,
                          words + 2 * kMostSlots + 2, words + 2 * kMostSlots + 3};
  const Block<T, kSchedule> block{params, barriers, ring, boxes, mirrors, mixture, warp_sums};
  constexpr int kReaders = kSchedule == Schedule::kPingPong ? 4 : 8;  // warps
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < params.slots; ++slot) {
      dev::mbar_init(barriers.full + slot, 1);
      dev::mbar_init(barriers.empty + slot, kReaders);
    }
    for (int i = 0; i < 2; ++i) {
      dev::mbar_init(barriers.staged + i, 1);
      dev::mbar_init(barriers.turn + i, 4);
    }
    dev::mbar_init(barriers.unstaged, kReaders / 4);
    dev::fence_barrier_init();
  }
  const int idle = static_cast<int>(threadIdx.x) - 64;  // warps 2 and 3 load nothing
  if (idle >= 0 && idle < params.count) prefetch_maps(params.jobs[idle]);
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {  // registers: 128 x 40 + 256 x 232 = 64512 of 65536
    dev::setmaxnreg_dec<40>();
    if (threadIdx.x == 0) {
      block.load_slices();
    } else if (threadIdx.x == 32) {
      block.load_addends();
    }
  } else {
    dev::setmaxnreg_inc<232>();
    block.consume(threadIdx.x / kWarpgroup - 1);
  }
#else
  __trap();  // built for sm_90 without its "a", or for another architecture: better than no result
#endif
}

}  // namespace schattor::cuda::hopper

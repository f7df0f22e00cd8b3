// Products in half precision by mma.sync m16n8k16, sums in float.
//
// A block of four warps takes tiles of 128 x 128, 64 x 64 a warp; or, where tiles are few, of 64 x
// 64, 32 x 32 a warp. Slices of A and B, 16 KB together, come through a ring of three or four
// stages by cp.async. Two blocks share a multiprocessor, so that one multiplies while the other
// finishes.
//
// The floor of a tile of side t: 2 t^2 k FLOPs for 2 t k entries read of 2 bytes, t/2 FLOPs a byte:
// 64 at t = 128, 32 at t = 64. A multiprocessor of an A100 makes 2048 FLOPs a cycle, so at t = 128
// it asks 32 bytes a cycle of L2, which has 47 for each. Shared memory, for a step of 16 along k:
// four warps read (64 + 64) 16 entries each, 16 KB, and 8 KB come in: 192 cycles at 128 bytes each,
// against 256 cycles of mma (512 where a multiprocessor makes 1024 FLOPs a cycle).
#include "tiles_epilogue.cuh"
#include "tiles_panels.cuh"

namespace schattor::cuda::tiles {
namespace {

template <int kTile>
struct Shape {
  static constexpr int kDepth = 4096 / kTile;  // of a step along the inner dimension
  static constexpr int kWarpSide = kTile / 2;
  static constexpr int kRowFragments = kWarpSide / 16, kColFragments = kWarpSide / 8;
  static constexpr int kBoxes = kTile / kBox;  // along a side
};

// The share of one warp: its corner in the tile, and its sums.
template <typename T, int kTile>
struct WarpTile {
  using S = Shape<kTile>;
  static constexpr int kDeep = S::kDepth / kPerChunk<T>, kWide = kTile / kPerChunk<T>;

  int row, col;
  float sums[S::kRowFragments][S::kColFragments][4];

  DEV WarpTile() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp / 2 * S::kWarpSide;
    col = warp % 2 * S::kWarpSide;
#pragma unroll
    for (int i = 0; i < S::kRowFragments; ++i) {
#pragma unroll
      for (int j = 0; j < S::kColFragments; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
      }
    }
  }

  // sums += A B of one stage.
  template <bool kTransposed>
  DEV void multiply(const T* a, const T* b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int k = 0; k < S::kDepth / 16; ++k) {
      uint32_t left[S::kRowFragments][4], right[S::kColFragments / 2][4];
#pragma unroll
      for (int i = 0; i < S::kRowFragments; ++i) {
        dev::ldmatrix_x4(left[i],
                         a + chunk_at<T, kDeep>(row + i * 16 + lane % 16, k * 2 + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < S::kColFragments / 2; ++j) {
        if (kTransposed) {
          dev::ldmatrix_x4(right[j], b + chunk_at<T, kDeep>(col + j * 16 + lane % 8 + lane / 16 * 8,
                                                            k * 2 + lane / 8 % 2));
        } else {
          dev::ldmatrix_x4_trans(
              right[j], b + chunk_at<T, kWide>(k * 16 + lane % 16, col / 8 + j * 2 + lane / 16));
        }
      }
#pragma unroll
      for (int i = 0; i < S::kRowFragments; ++i) {
#pragma unroll
        for (int j = 0; j < S::kColFragments; ++j) {
          dev::mma<T>(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  DEV void put(float* box) const {
    const int lane = dev::opaque(static_cast<int>(threadIdx.x)) % 32;
#pragma unroll
    for (int i = 0; i < S::kRowFragments; ++i) {
#pragma unroll
      for (int j = 0; j < S::kColFragments; ++j) {
        const int r = row % kBox + i * 16 + lane / 4, c = col % kBox + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(box + box_at(r, c)) = {sums[i][j][0], sums[i][j][1]};
        *reinterpret_cast<float2*>(box + box_at(r + 8, c)) = {sums[i][j][2], sums[i][j][3]};
      }
    }
  }
};

// Where rows are not aligned, tiles are small.
template <typename T, int kSide, int kRingStages, bool kIsAligned = true>
struct Variant {
  using Type = T;
  static constexpr int kTile = kSide;
  using S = Shape<kTile>;
  using TheRing = Ring<T, kTile, S::kDepth, kRingStages, kIsAligned>;
  static constexpr int kResident = kTile == 128 ? 2 : 3;  // blocks of a multiprocessor at most
  static constexpr int kBytes =
      TheRing::kBytes + static_cast<int>(kWarps * sizeof(double) + sizeof(Tile));
  static_assert(kBoxSize * sizeof(float) <= TheRing::kBytes, "a box lies where the ring was");
};

template <typename V>
__global__ void __launch_bounds__(kThreads, V::kResident)
    half_kernel(const __grid_constant__ Params params) {
  using T = typename V::Type;
  constexpr int kTile = V::kTile, kBoxes = V::S::kBoxes;
  DYN_SMEM(base);
  dev::Carve memory{base};
  unsigned char* const shared = memory.take<unsigned char>(V::TheRing::kBytes);
  double* const warp_squares = memory.take<double>(kWarps);
  Tile* const tile = memory.take<Tile>(1);
  const typename V::TheRing ring{reinterpret_cast<T*>(shared)};
  float* const box = reinterpret_cast<float*>(shared);
#pragma unroll 1
  for (int id = blockIdx.x; id < params.tiles; id += gridDim.x) {
    take_tile(params, id, tile);
    WarpTile<T, kTile> warp;
    // Warps above the diagonal, or all outside, have nothing to add up.
    const Product& product = tile->group.product;
    const int row = tile->row * kTile + warp.row, col = tile->col * kTile + warp.col;
    const bool idle = row >= product.rows || col >= product.cols ||
                      (product.symmetric && row / kBox < col / kBox);
    if (product.transposed_b) {
      ring.template run<true>(*tile, [&](const T* a, const T* b) {
        if (!idle) warp.template multiply<true>(a, b);
      });
    } else {
      ring.template run<false>(*tile, [&](const T* a, const T* b) {
        if (!idle) warp.template multiply<false>(a, b);
      });
    }
    Epilogue<T> epilogue(*tile, box, warp_squares);
#pragma unroll 1
    for (int i = 0; i < kBoxes * kBoxes; ++i) {
      const int r = i / kBoxes, c = i % kBoxes;
      if (warp.row / kBox == r && warp.col / kBox == c) warp.put(box);
      __syncthreads();
      epilogue.deliver(tile->slice, tile->row * kBoxes + r, tile->col * kBoxes + c);
    }
  }
}

template <typename V>
cudaError_t launch(const Params& params, const DeviceFacts& facts, cudaStream_t stream) {
  return dev::launch(half_kernel<V>,
                     dim3(persistent_blocks(params, facts, V::kBytes, V::kResident)),
                     dim3(kThreads), V::kBytes, stream, params);
}

// Two large tiles to a multiprocessor come before a longer ring: it has 164 KB or more, or else
// 100.
template <typename T>
cudaError_t launch_large(const Params& params, const DeviceFacts& facts, cudaStream_t stream) {
  using Long = Variant<T, 128, 4>;
  return facts.shared_bytes >= Long::kResident * Long::kBytes
             ? launch<Long>(params, facts, stream)
             : launch<Variant<T, 128, 3>>(params, facts, stream);
}

template <typename T>
cudaError_t launch(const Params& params, int tile, const DeviceFacts& facts, cudaStream_t stream) {
  for (int i = 0; i < params.count; ++i) {
    const Group& group = params.groups[i];
    if (!group.aligned_a || !group.aligned_b) {
      return launch<Variant<T, 64, 3, false>>(params, facts, stream);
    }
  }
  return tile == 128 ? launch_large<T>(params, facts, stream)
                     : launch<Variant<T, 64, 3>>(params, facts, stream);
}

}  // namespace

cudaError_t launch_half(const Params& params, int tile, const DeviceFacts& facts,
                        cudaStream_t stream) {
  return params.groups[0].product.dtype == Dtype::kFloat16
             ? launch<__half>(params, tile, facts, stream)
             : launch<bf16>(params, tile, facts, stream);
}

}  // namespace schattor::cuda::tiles

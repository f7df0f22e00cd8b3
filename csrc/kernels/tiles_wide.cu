// Products in float and double by FMA. No tensor cores: TF32 would cost the accuracy that float is
// chosen for.
//
// A block takes tiles of 64 x 64 with 128 threads, each eight rows by four columns. Slices of 16
// come through a ring of three stages by cp.async, as they lie: a thread reads chunks along the
// inner dimension, 12 loads of 16 bytes for 128 FMAs in float (B row-major: the same number, along
// cols).
//
// The floor: 2 t^2 k FLOPs for 2 t k entries, t = 64: 16 FLOPs a byte in float, 8 in double. At 128
// FMAs a cycle a multiprocessor asks 16 bytes a cycle of L2; shared memory is read in 16 wavefronts
// a warp for those 128 FMAs, half of the time that they take.
#include "tiles_epilogue.cuh"
#include "tiles_panels.cuh"

namespace schattor::cuda::tiles {
namespace {

constexpr int kTile = kBox, kDepth = 16, kStages = 3;
constexpr int kRows = 8, kCols = 4;                            // of a thread
constexpr int kDown = kTile / kRows, kAcross = kTile / kCols;  // threads

template <typename T>
using WideRing = Ring<T, kTile, kDepth, kStages, false>;

// Blocks of a multiprocessor, as registers allow.
template <typename T>
constexpr int kResident = sizeof(T) == 4 ? 3 : 2;

template <typename T>
constexpr size_t kWideBytes = WideRing<T>::kBytes + kWarps * sizeof(double) + sizeof(Tile);

template <typename T, int kChunks>
DEV Unit<T> unit_at(const T* panel, int row, int chunk) {
  return *reinterpret_cast<const Unit<T>*>(panel + chunk_at<T, kChunks>(row, chunk));
}

// Rows y, y + 8, ... of the tile; columns x, x + 16, ... if B is transposed, else chunks of columns
// x, x + 16.
template <typename T>
struct ThreadTile {
  static constexpr int kEach = kPerChunk<T>, kDeep = kDepth / kEach, kWide = kTile / kEach;

  int x, y;
  T sums[kRows][kCols];

  DEV ThreadTile()
      : x(static_cast<int>(threadIdx.x) % kAcross), y(static_cast<int>(threadIdx.x) / kAcross) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) sums[i][j] = 0;
    }
  }

  template <bool kTransposed>
  DEV int column(int j) const {
    return kTransposed ? x + j * kAcross : (j / kEach * kAcross + x) * kEach + j % kEach;
  }

  // sums += A B of one stage.
  template <bool kTransposed>
  DEV void multiply(const T* a, const T* b) {
#pragma unroll 1
    for (int chunk = 0; chunk < kDeep; ++chunk) {
      Unit<T> left[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = unit_at<T, kDeep>(a, y + i * kDown, chunk);
      T right[kEach][kCols];
      load_right<kTransposed>(b, chunk, right);
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kCols; ++j) sums[i][j] += left[i].values[e] * right[e][j];
        }
      }
    }
  }

  template <bool kTransposed>
  DEV void load_right(const T* b, int chunk, T (&right)[kEach][kCols]) const {
    if constexpr (kTransposed) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const Unit<T> unit = unit_at<T, kDeep>(b, x + j * kAcross, chunk);
#pragma unroll
        for (int e = 0; e < kEach; ++e) right[e][j] = unit.values[e];
      }
    } else {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
#pragma unroll
        for (int j = 0; j < kCols; j += kEach) {
          const Unit<T> unit = unit_at<T, kWide>(b, chunk * kEach + e, j / kEach * kAcross + x);
#pragma unroll
          for (int u = 0; u < kEach; ++u) right[e][j + u] = unit.values[u];
        }
      }
    }
  }

  template <bool kTransposed>
  DEV void put(T* box) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j)
        box[box_at(y + i * kDown, column<kTransposed>(j))] = sums[i][j];
    }
  }
};

// The sums of one tile, into a box that lies where the ring was.
template <typename T, bool kTransposed>
DEV void fill_box(const WideRing<T>& ring, const Tile& tile, T* box) {
  ThreadTile<T> mine;
  ring.template run<kTransposed>(
      tile, [&](const T* a, const T* b) { mine.template multiply<kTransposed>(a, b); });
  mine.template put<kTransposed>(box);
  __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    wide_kernel(const __grid_constant__ Params params) {
  static_assert(kBoxSize * sizeof(T) <= WideRing<T>::kBytes, "the box lies where the ring was");
  DYN_SMEM(base);
  dev::Carve memory{base};
  T* const shared = reinterpret_cast<T*>(memory.take<unsigned char>(WideRing<T>::kBytes));
  double* const warp_squares = memory.take<double>(kWarps);
  Tile* const tile = memory.take<Tile>(1);
  const WideRing<T> ring{shared};
#pragma unroll 1
  for (int id = blockIdx.x; id < params.tiles; id += gridDim.x) {
    take_tile(params, id, tile);
    if (tile->group.product.transposed_b) {
      fill_box<T, true>(ring, *tile, shared);
    } else {
      fill_box<T, false>(ring, *tile, shared);
    }
    Epilogue<T>(*tile, shared, warp_squares).deliver(tile->slice, tile->row, tile->col);
  }
}

template <typename T>
cudaError_t launch(const Params& params, const DeviceFacts& facts, cudaStream_t stream) {
  return dev::launch(wide_kernel<T>,
                     dim3(persistent_blocks(params, facts, kWideBytes<T>, kResident<T>)),
                     dim3(kThreads), kWideBytes<T>, stream, params);
}

}  // namespace

cudaError_t launch_wide(const Params& params, const DeviceFacts& facts, cudaStream_t stream) {
  return params.groups[0].product.dtype == Dtype::kFloat64 ? launch<double>(params, facts, stream)
                                                           : launch<float>(params, facts, stream);
}

}  // namespace schattor::cuda::tiles

// A tile a block, turned in shared memory: every entry is read once and written once, which is the
// floor.
#include "transpose.h"
#include "views.cuh"

namespace schattor::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    transpose(const __grid_constant__ TransposedCopy args, int tiles) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  T* turning = sm.take<T>(kTileSize);
  const int64_t index = blockIdx.x / tiles;
  const T* from = static_cast<const T*>(args.from) + index * args.rows * args.cols;
  T* to = static_cast<T*>(args.to.data) + index * args.to.stride;
  const Side source({const_cast<T*>(from), 1, args.cols}, args.dtype, Cut::kRows);
  const Side copy({to, args.to.ld, 1}, args.dtype, Cut::kRows);
  const Tile tile = grid(args.cols, args.rows, Cut::kRows).tile(blockIdx.x % tiles);
  Entries<T> entries;
  Loads<T>(source, tile).finish(turning, entries);
  store(entries, copy, tile, turning);
}

}  // namespace

cudaError_t copy_transposed(const TransposedCopy& args, cudaStream_t stream) {
  const int tiles = static_cast<int>(grid(args.cols, args.rows, Cut::kRows).count());
  return dev::launch(args.dtype == Dtype::kFloat64 ? transpose<double> : transpose<float>,
                     static_cast<unsigned>(args.batch * tiles), kThreads,
                     kTileSize * size_of(args.dtype), stream, args, tiles);
}

}  // namespace schattor::cuda

// Directions of weighted matrices back under their weights, and the squared norms of that.
#include <vector>

#include "levels.h"
#include "tiles.h"

namespace schattor::cpu {
namespace {

template <typename T>
void weigh_in(const WeighArgs& args, const Parallel& parallel) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const Tiling grid(1, args.size, sizeof(T), false);
  const int64_t blocks = block_count(args.size);
  std::vector<double> sums(args.batch * blocks);
  parallel.run(sums.size(), [&](int64_t begin, int64_t end) {
    Tiles<T> tiles(loops);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t i = unit / blocks, block = unit % blocks;
      const Matrix direction = matrix(args.direction, i, 1, args.size, args.direction_dtype, false);
      const Matrix weights = matrix(args.weights, i, 1, args.size, kDtypeOf<T>, false);
      for (int64_t t = grid.block_begin(block); t < grid.block_begin(block + 1); ++t) {
        const Tile tile = grid[t];
        T* w = tiles.load(weights, tile, 1);  // in place
        loops.multiply(w, tiles.load(direction, tile, 0), tile.cols, w);
        sums[unit] += loops.squares(1, w, tile.cols);
      }
    }
  });
  for (int64_t i = 0; i < args.batch; ++i) {
    args.square[i] = 0;
    for (int64_t b = 0; b < blocks; ++b) args.square[i] += sums[i * blocks + b];
  }
}

}  // namespace

void weigh(const WeighArgs& args, const Parallel& parallel) {
  return args.weights_dtype == Dtype::kFloat64 ? weigh_in<double>(args, parallel)
                                               : weigh_in<float>(args, parallel);
}

}  // namespace schattor::cpu

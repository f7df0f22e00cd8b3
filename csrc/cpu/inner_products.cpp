// Inner products of two batches, folded by blocks of one size whatever the number of threads.
#include <vector>

#include "levels.h"
#include "tiles.h"

namespace schattor::cpu {
namespace {

template <typename T>
void products(const InnerArgs& args, const Parallel& parallel) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const Tiling grid(1, args.size, sizeof(T), false);
  const int64_t blocks = block_count(args.size);
  std::vector<double> sums(args.batch * blocks);
  parallel.run(sums.size(), [&](int64_t begin, int64_t end) {
    Tiles<T> tiles(loops);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t i = unit / blocks, block = unit % blocks;
      const Matrix x = matrix(args.x, i, 1, args.size, args.x_dtype, false);
      const Matrix y = matrix(args.y, i, 1, args.size, args.y_dtype, false);
      for (int64_t t = grid.block_begin(block); t < grid.block_begin(block + 1); ++t) {
        const Tile tile = grid[t];
        sums[unit] += loops.inner(tiles.load(x, tile, 0), tiles.load(y, tile, 1), tile.cols);
      }
    }
  });
  for (int64_t i = 0; i < args.batch; ++i) {
    args.inner[i] = 0;
    for (int64_t b = 0; b < blocks; ++b) args.inner[i] += sums[i * blocks + b];
  }
}

}  // namespace

void inner_products(const InnerArgs& args, const Parallel& parallel) {
  const bool in_double = args.x_dtype == Dtype::kFloat64 || args.y_dtype == Dtype::kFloat64;
  return in_double ? products<double>(args, parallel) : products<float>(args, parallel);
}

}  // namespace schattor::cpu

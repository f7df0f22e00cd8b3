// Sums over whole matrices, folded by blocks of one size whatever the number of threads.
#pragma once

#include <vector>

#include "levels.h"
#include "tiles.h"

namespace schattor::cpu {

// sums[i] = what of_tile(i, tile, tiles) gives, over all tiles of matrix i as one row of `size`.
template <typename T, typename OfTile>
void sum_by_blocks(int64_t batch, int64_t size, const Parallel& parallel, double* sums,
                   const OfTile& of_tile) {
  const Tiling grid(1, size, sizeof(T), false);
  const int64_t blocks = block_count(size);
  std::vector<double> parts(batch * blocks);
  parallel.run(parts.size(), [&](int64_t begin, int64_t end) {
    Tiles<T> tiles(kernels().rows.in<T>());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit % blocks;
      for (int64_t t = grid.block_begin(block); t < grid.block_begin(block + 1); ++t) {
        parts[unit] += of_tile(unit / blocks, grid[t], tiles);
      }
    }
  });
  for (int64_t i = 0; i < batch; ++i) {
    sums[i] = 0;
    for (int64_t block = 0; block < blocks; ++block) sums[i] += parts[i * blocks + block];
  }
}

}  // namespace schattor::cpu

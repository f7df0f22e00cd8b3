// Directions of weighted matrices back under their weights, and the squared norms of that.
#include "block_sums.h"

namespace schattor::cpu {
namespace {

template <typename T>
void weigh_in(const WeighArgs& args, const Parallel& parallel) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const auto of_tile = [&](int64_t i, const Tile& tile, Tiles<T>& tiles) {
    const Matrix direction = matrix(args.direction, i, 1, args.size, args.direction_dtype, false);
    const Matrix weights = matrix(args.weights, i, 1, args.size, kDtypeOf<T>, false);
    T* w = tiles.load(weights, tile, 1);  // in place
    loops.multiply(w, tiles.load(direction, tile, 0), tile.cols, w);
    return loops.squares(1, w, tile.cols);
  };
  sum_by_blocks<T>(args.batch, args.size, parallel, args.square, of_tile);
}

}  // namespace

void weigh(const WeighArgs& args, const Parallel& parallel) {
  return args.weights_dtype == Dtype::kFloat64 ? weigh_in<double>(args, parallel)
                                               : weigh_in<float>(args, parallel);
}

}  // namespace schattor::cpu

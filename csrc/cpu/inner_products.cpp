// Inner products of two batches.
#include "block_sums.h"

namespace schattor::cpu {
namespace {

template <typename T>
void products(const InnerArgs& args, const Parallel& parallel) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const auto of_tile = [&](int64_t i, const Tile& tile, Tiles<T>& tiles) {
    const Matrix x = matrix(args.x, i, 1, args.size, args.x_dtype, false);
    const Matrix y = matrix(args.y, i, 1, args.size, args.y_dtype, false);
    return loops.inner(tiles.load(x, tile, 0), tiles.load(y, tile, 1), tile.cols);
  };
  sum_by_blocks<T>(args.batch, args.size, parallel, args.inner, of_tile);
}

}  // namespace

void inner_products(const InnerArgs& args, const Parallel& parallel) {
  const bool in_double = args.x_dtype == Dtype::kFloat64 || args.y_dtype == Dtype::kFloat64;
  return in_double ? products<double>(args, parallel) : products<float>(args, parallel);
}

}  // namespace schattor::cpu

// Directions back into lists of weights, and gradients into lists of first and second
// moments.
#include "levels.h"
#include "tiles.h"

namespace schattor::cpu {
namespace {

template <typename T>
class Scatter {
 public:
  explicit Scatter(const ScatterArgs& args) : args_(args), loops_(kernels().rows.in<T>()) {}

  void run(int64_t i, int64_t block) const {
    Tiles<T> tiles(loops_);
    if (args_.decay != 1 || args_.scale[i] != 0) step(i, block, tiles);
    const MomentumRule& rule = args_.rule;
    if (args_.momenta != nullptr) {
      const Blend<T> blend{static_cast<T>(rule.momentum),
                           static_cast<T>(rule.ema ? 1 - rule.momentum : 1)};
      accumulate(i, block, args_.momenta[i], args_.momentum_dtype, blend, loops_.blend, tiles);
    }
    if (args_.squares != nullptr) {
      accumulate(i, block, args_.squares[i], args_.square_dtype, average_of_squares<T>(args_.beta),
                 loops_.average_squares, tiles);
    }
  }

 private:
  Tiling tiling(bool transposed, bool across) const {
    return transposed ? Tiling(args_.cols, args_.rows, sizeof(T), across)
                      : Tiling(args_.rows, args_.cols, sizeof(T), across);
  }

  // w <- decay w - scale direction
  void step(int64_t i, int64_t block, Tiles<T>& tiles) const {
    const bool across = lies_transposed(args_.params[i], args_.rows);
    const Matrix weights = matrix(args_.params[i], args_.param_dtype, across);
    const Matrix directions =
        matrix(args_.direction, i, args_.rows, args_.cols, args_.direction_dtype, across);
    const Blend<T> blend{static_cast<T>(args_.decay), static_cast<T>(-args_.scale[i])};
    const Tiling grid = tiling(across, across);
    for (int64_t t = grid.block_begin(block); t < grid.block_begin(block + 1); ++t) {
      const Tile tile = grid[t];
      tiles.prefetch_across(directions, grid[t + 1]);
      tiles.prefetch_along(weights, grid, t);
      const T* direction = tiles.load(directions, tile, 0);
      T* w = tiles.load(weights, tile, 1);
      loops_.blend(blend, w, direction, tile.rows * tile.cols, w);
      tiles.store(weights, tile, w);
    }
  }

  // moment <- loop(blend, moment, g)
  template <typename Loop>
  void accumulate(int64_t i, int64_t block, const View& moment, Dtype dtype, Blend<T> blend,
                  Loop loop, Tiles<T>& tiles) const {
    const bool transposed = lies_transposed(moment, args_.rows);
    const Matrix moments = matrix(moment, dtype, transposed);
    const Matrix grads = matrix(args_.grads[i], args_.grad_dtype, transposed);
    const bool across = transposed != lies_transposed(args_.grads[i], args_.rows);
    const Tiling grid = tiling(transposed, across);
    for (int64_t t = grid.block_begin(block); t < grid.block_begin(block + 1); ++t) {
      const Tile tile = grid[t];
      tiles.prefetch_along(grads, grid, t);
      tiles.prefetch_along(moments, grid, t);
      const T* g = tiles.load(grads, tile, 0);
      T* m = tiles.load(moments, tile, 1);
      loop(blend, m, g, tile.rows * tile.cols, m);
      tiles.store(moments, tile, m);
    }
  }

  const ScatterArgs& args_;
  const RowLoops<T>& loops_;
};

template <typename T>
void scatter(const ScatterArgs& args, const Parallel& parallel) {
  const Scatter<T> one(args);
  const int64_t blocks = block_count(args.rows * args.cols);
  parallel.run(args.batch * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      if (args.finite[unit / blocks]) one.run(unit / blocks, unit % blocks);
    }
  });
}

}  // namespace

void scatter_update(const ScatterArgs& args, const Parallel& parallel) {
  const bool in_double =
      args.param_dtype == Dtype::kFloat64 || args.direction_dtype == Dtype::kFloat64 ||
      (args.momenta != nullptr && args.momentum_dtype == Dtype::kFloat64) ||
      (args.squares != nullptr && args.square_dtype == Dtype::kFloat64) ||
      ((args.momenta != nullptr || args.squares != nullptr) && args.grad_dtype == Dtype::kFloat64);
  return in_double ? scatter<double>(args, parallel) : scatter<float>(args, parallel);
}

}  // namespace schattor::cpu

// Lists of gradients and moments into a normalised wide batch. Where the batch holds M exactly, M
// is written while its norm is summed and scaled in place, in cache; else M is computed twice, once
// for its norm, so that it is rounded only once. Weights of second moments are computed with the
// norm and kept: after that they are read.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "levels.h"
#include "tiles.h"

namespace schattor::cpu {
namespace {

// |M|_F / size = root 2^exponent: a root that neither over- nor underflowed.
struct Norm {
  double root;
  int exponent;

  bool is_finite() const { return std::isfinite(root); }
  double value() const {
    return std::min(std::ldexp(root, exponent), std::numeric_limits<double>::max());
  }
};

template <typename T>
Scaling<T> division_by(const Norm& norm) {
  int exponent;
  const double fraction = std::frexp(norm.root, &exponent);
  exponent += norm.exponent;
  constexpr int kMost = -std::numeric_limits<T>::min_exponent;
  const int shift = std::clamp(-exponent, -kMost, kMost);
  return {static_cast<T>(std::ldexp(1.0, shift)),
          static_cast<T>(std::ldexp(1.0 / fraction, -exponent - shift))};
}

// momentum m + c g, or momentum (momentum m + c g) + c g, of m and g.
template <typename T>
Blend<T> applied(const MomentumRule& rule) {
  const double momentum = rule.momentum, c = rule.ema ? 1 - momentum : 1;
  if (!rule.nesterov) return {static_cast<T>(momentum), static_cast<T>(c)};
  return {static_cast<T>(momentum * momentum), static_cast<T>(momentum * c + c)};
}

template <typename T>
class Gather {
 public:
  explicit Gather(const GatherArgs& args)
      : args_(args),
        loops_(kernels().rows.in<T>()),
        blend_(applied<T>(args.rule)),
        average_(average_of_squares<T>(args.second.beta)) {}

  void run(int64_t i, const Parallel& parallel) const {
    Norm norm = measure(i, parallel);
    norm.exponent -= std::ilogb(args_.size);
    const bool usable = norm.is_finite() && norm.root > 0;
    args_.finite[i] = norm.is_finite();
    args_.norms[i] = usable ? norm.value() : 0;
    if (usable) return normalise(i, division_by<T>(norm), parallel);
    const int64_t bytes = size() * size_of(args_.wide_dtype);
    if (bytes > 0) std::memset(static_cast<char*>(args_.wide) + i * bytes, 0, bytes);
  }

 private:
  int64_t size() const { return args_.rows * args_.cols; }
  bool exact() const { return args_.wide_dtype == kDtypeOf<T>; }
  bool weighted() const { return args_.second.weights != nullptr; }
  bool computes_weights() const { return args_.second.squares != nullptr; }
  bool transposed(int64_t i) const { return lies_transposed(args_.grads[i], args_.rows); }

  bool lies_otherwise(const View* views, int64_t i) const {
    return views != nullptr && lies_transposed(views[i], args_.rows) != transposed(i);
  }

  // Over the lists, and over batches too where they are met.
  Tiling tiling(int64_t i, bool batches) const {
    const bool swapped = transposed(i);
    const bool mixed = lies_otherwise(args_.momenta, i) || lies_otherwise(args_.second.squares, i);
    const bool across = mixed || (batches && swapped);
    return swapped ? Tiling(args_.cols, args_.rows, sizeof(T), across)
                   : Tiling(args_.rows, args_.cols, sizeof(T), across);
  }

  Matrix grads(int64_t i) const { return matrix(args_.grads[i], args_.grad_dtype, transposed(i)); }

  Matrix momenta(int64_t i) const {
    return matrix(args_.momenta[i], args_.momentum_dtype, transposed(i));
  }

  Matrix wide(int64_t i) const {
    return matrix(args_.wide, i, args_.rows, args_.cols, args_.wide_dtype, transposed(i));
  }

  Matrix weights(int64_t i) const {
    return matrix(args_.second.weights, i, args_.rows, args_.cols, kDtypeOf<T>, transposed(i));
  }

  // A tile of M, or of w M, into `applied`; weights are computed anew, or read.
  void apply(int64_t i, const Tile& tile, bool anew, Tiles<T>& tiles, T* applied) const {
    const int64_t count = tile.rows * tile.cols;
    const T* g = tiles.load(grads(i), tile, 0);
    if (args_.momenta == nullptr) {
      loops_.scale({1, 1}, g, count, applied);
    } else {
      loops_.blend(blend_, tiles.load(momenta(i), tile, 1), g, count, applied);
    }
    if (!weighted()) return;
    if (anew) return weigh(i, tile, g, tiles, applied);
    loops_.multiply(tiles.load(weights(i), tile, 3), applied, count, applied);
  }

  // applied <- w applied, and w into its batch.
  void weigh(int64_t i, const Tile& tile, const T* g, Tiles<T>& tiles, T* applied) const {
    const int64_t count = tile.rows * tile.cols;
    const SecondMoments& second = args_.second;
    const Weighting<T> weighting{static_cast<T>(1 / second.corrections[i]),
                                 static_cast<T>(second.eps[i]), second.exponent[i],
                                 second.square_root};
    const Matrix squares = matrix(second.squares[i], second.dtype, transposed(i));
    T* v = tiles.buffer(2);
    loops_.average_squares(average_, tiles.load(squares, tile, 2), g, count, v);
    T* w = tiles.place(weights(i), tile, 3);
    loops_.weights(weighting, v, count, w);
    loops_.weigh(w, v, applied, count, applied);
    tiles.store(weights(i), tile, w);
  }

  // sum (shift M)^2; writes M where the wide batch holds it exactly.
  double sum_squares(int64_t i, double shift, const Parallel& parallel) const {
    const Tiling grid = tiling(i, exact() || weighted());
    std::vector<double> sums(block_count(size()));
    parallel.run(sums.size(), [&](int64_t begin, int64_t end) {
      Tiles<T> tiles(loops_);
      for (int64_t block = begin; block < end; ++block) {
        for (int64_t t = grid.block_begin(block); t < grid.block_begin(block + 1); ++t) {
          const Tile tile = grid[t];
          tiles.prefetch_along(grads(i), grid, t);
          if (args_.momenta != nullptr) tiles.prefetch_along(momenta(i), grid, t);
          if (exact()) tiles.prefetch_across(wide(i), grid[t + 1]);
          if (weighted()) tiles.prefetch_across(weights(i), grid[t + 1]);
          T* applied = tiles.place(wide(i), tile, 1);
          apply(i, tile, computes_weights(), tiles, applied);
          sums[block] += loops_.squares(shift, applied, tile.rows * tile.cols);
          if (exact()) tiles.store(wide(i), tile, applied);
        }
      }
    });
    double sum = 0;
    for (const double part : sums) sum += part;
    return sum;
  }

  Norm measure(int64_t i, const Parallel& parallel) const {
    const double sum = sum_squares(i, 1, parallel);
    if constexpr (sizeof(T) == sizeof(double)) {
      // Squares of doubles may leave the range, or lose digits at its lower end.
      constexpr int kShift = 600;
      if (sum < 0x1p-900) {
        return {std::sqrt(sum_squares(i, std::ldexp(1, kShift), parallel)), -kShift};
      }
      if (!std::isfinite(sum)) {
        return {std::sqrt(sum_squares(i, std::ldexp(1, -kShift), parallel)), kShift};
      }
    }
    return {std::sqrt(sum), 0};
  }

  void normalise(int64_t i, Scaling<T> scaling, const Parallel& parallel) const {
    parallel.run(block_count(size()), [&](int64_t begin, int64_t end) {
      if (exact()) return scale_written(i, scaling, begin * kBlockSize, end * kBlockSize);
      const Tiling grid = tiling(i, true);
      Tiles<T> tiles(loops_);
      for (int64_t t = grid.block_begin(begin); t < grid.block_begin(end); ++t) {
        const Tile tile = grid[t];
        tiles.prefetch_across(wide(i), grid[t + 1]);
        if (weighted()) tiles.prefetch_across(weights(i), grid[t + 1]);
        T* applied = tiles.buffer(1);
        apply(i, tile, false, tiles, applied);
        loops_.scale(scaling, applied, tile.rows * tile.cols, applied);
        tiles.store(wide(i), tile, applied);
      }
    });
  }

  void scale_written(int64_t i, Scaling<T> scaling, int64_t begin, int64_t end) const {
    T* written = static_cast<T*>(args_.wide) + i * size() + begin;
    loops_.scale(scaling, written, std::min(end, size()) - begin, written);
  }

  const GatherArgs& args_;
  const RowLoops<T>& loops_;
  const Blend<T> blend_, average_;
};

// The share of the threads' time that equal units keep busy.
double busy(int64_t units, int64_t threads) {
  const int64_t rounds = (units + threads - 1) / threads;
  return rounds == 0 ? 1 : static_cast<double>(units) / (rounds * threads);
}

template <typename T>
void gather(const GatherArgs& args, const Parallel& parallel) {
  const Gather<T> one(args);
  const int64_t blocks = block_count(args.rows * args.cols);
  // Whole matrices, each in one thread's cache; or all threads at one matrix after the other, where
  // that pays for meeting after each.
  if (busy(blocks, parallel.threads) > 1.25 * busy(args.batch, parallel.threads)) {
    for (int64_t i = 0; i < args.batch; ++i) one.run(i, parallel);
    return;
  }
  parallel.run(args.batch, [&](int64_t begin, int64_t end) {
    const Parallel alone;
    for (int64_t i = begin; i < end; ++i) one.run(i, alone);
  });
}

}  // namespace

void gather_momentum(const GatherArgs& args, const Parallel& parallel) {
  const bool in_double = args.grad_dtype == Dtype::kFloat64 || args.wide_dtype == Dtype::kFloat64 ||
                         (args.momenta != nullptr && args.momentum_dtype == Dtype::kFloat64) ||
                         (args.second.squares != nullptr && args.second.dtype == Dtype::kFloat64);
  return in_double ? gather<double>(args, parallel) : gather<float>(args, parallel);
}

}  // namespace schattor::cpu

// The chain of a small matrix, all of it in one launch: one block a matrix, the iterate in shared
// memory in half precision, A = XX' beside it with as long rows (one leading dimension spares
// registers), and P = bA + cA^2 in A's place. A warp owns 16 rows
// by 64 columns of the iterate and keeps them in float registers besides, as it keeps the mixture;
// so an iterate's own rounding is met in A and P X, never in a X, and nothing is summed in half.
//
// Larger matrices, of which registers cannot hold all of that, are chain_small_strips.cu's.
//
// This is the direct form whatever args.gram says: on chip X costs no reading, and a step on X has
// no product that half precision would have to restart from.
#include "chain_small.cuh"
#include "chain_small.h"
#include "chain_small_strips.h"

namespace schattor::cuda::small {
namespace {

using on_chip::kWarp;
using on_chip::Rows;

// Tiles of columns that a warp owns, of X and of A, at most; and warps of a block, at most. Few: so
// that three blocks of 64 x 64 share a multiprocessor. Many: all registers that a thread may have.
constexpr int kFew = 4, kMany = 8;
constexpr int warps_with(int owned) { return owned == kFew ? 4 : 8; }
constexpr int blocks_with(int owned) { return owned == kFew ? 3 : 1; }
constexpr int kMostWarps = warps_with(kMany);

struct Params {
  const void* wide;
  Direction direction;
  const double *weights, *powers;
  int rows, cols, depth;
  int row_tiles, col_tiles, groups;  // groups of warps, by columns
  bool aligned;
  float a[kMostSteps], b[kMostSteps], c[kMostSteps];
};

// What one matrix's scale asks for.
struct Scale {
  double norm;    // |A|_F = tau^2
  float inverse;  // 1 / tau
  float factor;   // tau^power
};

template <int kOwned>
using Sums = float[kOwned][2][4];

// One warp of one matrix. Where it says so, a barrier has to come first.
template <class T, int kOwned>
class Worker {
 public:
  DEV Worker(const Params& p, T* x, T* a)
      : p_(p),
        lane_(threadIdx.x),
        row_(threadIdx.x / kWarp / p.groups),
        ld_(padded(p.col_tiles)),
        x_(x),
        a_(a) {
    const int group = threadIdx.x / kWarp % p.groups;
    share(p.col_tiles, group, &x_col_, &x_count_);
    share(p.row_tiles, group, &a_col_, &a_count_);
  }

  // The owned part of X from shared memory, as it was loaded.
  DEV void load() {
    each(x_count_, [&](int j, int i, int row, int col) {
      const float2 pair = on_chip::load_pair(x_at(row, x_col_ * kTile + col));
      held_[j][i / 2][i % 2 * 2] = pair.x, held_[j][i / 2][i % 2 * 2 + 1] = pair.y;
    });
  }

  DEV void begin_mixture(float weight) {
#pragma unroll
    for (int j = 0; j < kOwned; ++j)
#pragma unroll
      for (int i = 0; i < 8; ++i) mixture_[j][i / 4][i % 4] = weight * held_[j][i / 4][i % 4];
  }

  // The owned part of X X' into registers. X has to be there.
  DEV void gram(Sums<kOwned>& sums) const {
    clear(sums);
    multiply<T, true, kOwned>(sums, {x_at(row_ * kTile, 0), ld_}, {x_at(a_col_ * kTile, 0), ld_},
                              p_.col_tiles, a_count_, lane_.index);
  }

  // This warp's part of |sums|_F^2.
  DEV double squares(const Sums<kOwned>& sums) const {
    double sum = 0;
    each(a_count_, [&](int j, int i, int, int) {
      const float* pair = &sums[j][i / 2][i % 2 * 2];
      sum += static_cast<double>(pair[0]) * pair[0] + static_cast<double>(pair[1]) * pair[1];
    });
    return sum;
  }

  // A = scale^2 sums, rounded.
  DEV void store_gram(const Sums<kOwned>& sums, float scale) {
    each(a_count_, [&](int j, int i, int row, int col) {
      const float* pair = &sums[j][i / 2][i % 2 * 2];
      on_chip::store_pair(a_at(row, a_col_ * kTile + col), pair[0] * scale * scale,
                          pair[1] * scale * scale);
    });
  }

  // The owned part of b A + c A^2 into registers. A has to be there.
  DEV void polynomial(float b, float c, Sums<kOwned>& sums) const {
    clear(sums);
    multiply<T, true, kOwned>(sums, {a_at(row_ * kTile, 0), ld_}, {a_at(a_col_ * kTile, 0), ld_},
                              p_.row_tiles, a_count_, lane_.index);
    each(a_count_, [&](int j, int i, int row, int col) {
      const float2 a = on_chip::load_pair(a_at(row, a_col_ * kTile + col));
      float* pair = &sums[j][i / 2][i % 2 * 2];
      pair[0] = b * a.x + c * pair[0], pair[1] = b * a.y + c * pair[1];
    });
  }

  // X <- scale (a X + P X) and mixture += weight X, in registers. P has to be there.
  DEV void update(float a, float scale, float weight) {
    each_held([&](int j, int i) { held_[j][i / 4][i % 4] *= a; });
    multiply<T, false, kOwned>(held_, {a_at(row_ * kTile, 0), ld_}, {x_at(0, x_col_ * kTile), ld_},
                               p_.row_tiles, x_count_, lane_.index);
    each_held([&](int j, int i) {
      held_[j][i / 4][i % 4] *= scale;
      mixture_[j][i / 4][i % 4] += weight * held_[j][i / 4][i % 4];
    });
  }

  // Nobody may be reading X any more. What is held becomes what is stored: a X + P X of two
  // roundings of X would blow their difference up by as much as P.
  DEV void store_iterate() {
    store(held_, 1);
    load();
  }
  DEV void store_mixture(float factor) { store(mixture_, factor); }

 private:
  static constexpr int kPairs =
      4;  // a lane's in a tile: columns col and col + 8, rows row, row + 8

  // The group's share of the tiles in a row.
  DEV void share(int tiles, int group, int* first, int* count) const {
    const int most = dev::div_up(tiles, p_.groups);
    *first = group * most;
    *count = max(0, min(most, tiles - *first));
  }

  DEV T* x_at(int row, int col) const { return x_ + row * ld_ + col; }
  DEV T* a_at(int row, int col) const { return a_ + row * ld_ + col; }

  DEV static void clear(Sums<kOwned>& sums) {
#pragma unroll
    for (int j = 0; j < kOwned; ++j)
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[j][i / 4][i % 4] = 0;
  }

  template <class Body>
  DEV static void each_held(Body body) {
#pragma unroll
    for (int j = 0; j < kOwned; ++j)
#pragma unroll
      for (int i = 0; i < 8; ++i) body(j, i);
  }

  // body(j, i, row, col) for every pair of registers of `count` tiles: pair i of tile j, and its
  // place, counted in columns from the first tile.
  template <class Body>
  DEV void each(int count, Body body) const {
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      if (j >= count) continue;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        body(j, i, row_ * kTile + lane_.row + i % 2 * 8, j * kTile + lane_.col + i / 2 * 8);
      }
    }
  }

  DEV void store(const Sums<kOwned>& sums, float factor) {
    each(x_count_, [&](int j, int i, int row, int col) {
      const float* pair = &sums[j][i / 2][i % 2 * 2];
      on_chip::store_pair(x_at(row, x_col_ * kTile + col), factor * pair[0], factor * pair[1]);
    });
  }

  const Params& p_;
  const Lane lane_;
  const int row_, ld_;
  int x_col_, x_count_, a_col_, a_count_;  // tiles that are owned
  T *x_, *a_;
  Sums<kOwned> held_ = {}, mixture_ = {};  // of X; padding stays zero
};

DEV Scale scale_of(double squares, double power) {
  Scale scale;
  scale.norm = sqrt(squares);
  const float tau = static_cast<float>(sqrt(scale.norm));
  scale.inverse = 1 / tau;
  scale.factor = powf(tau, static_cast<float>(power));
  return scale;
}

// The direction from shared memory to where it belongs, with its products.
template <class T>
DEV on_chip::Overlap store_direction(const T* from, int ld, const Rows<const T>& wide,
                                     const Rows<T>& to) {
  on_chip::Overlap overlap;
  const int chunks = dev::div_up(to.cols, on_chip::kChunk<T>);
  for (int i = threadIdx.x; i < to.rows * chunks; i += blockDim.x) {
    const int row = i / chunks, col = i % chunks * on_chip::kChunk<T>;
    const uint4 chunk = *reinterpret_cast<const uint4*>(from + row * ld + col);
    float x[on_chip::kChunk<T>], y[on_chip::kChunk<T>];
    on_chip::unpack_chunk<T>(on_chip::load_chunk(wide, row, col), x);
    on_chip::unpack_chunk<T>(chunk, y);
    overlap.add(x, y);
    on_chip::store_chunk(to, row, col, chunk);
  }
  return overlap;
}

// All steps of the matrix in x, whose direction is left there. False: it has none but `constant`.
template <class T, int kOwned>
DEV bool solve(const Params& p, T* x, T* a, double* scratch, float* constant) {
  const double* weights = p.weights + static_cast<int64_t>(blockIdx.x) * (p.depth + 1);
  const int depth = on_chip::last_weight(weights, p.depth);
  Worker<T, kOwned> worker(p, x, a);
  worker.load();
  Sums<kOwned> sums;
  worker.gram(sums);
  const double squares = block_sum(worker.squares(sums), scratch);
  const Scale scale = scale_of(squares, p.powers[blockIdx.x]);
  const bool regular = on_chip::is_regular(scale.norm);
  if (!regular || depth < 0) {
    *constant = regular ? 0 : on_chip::constant_direction(scale.norm);
    return false;
  }
  worker.begin_mixture(static_cast<float>(weights[0]) * scale.inverse);
  float unit = scale.inverse;  // X_0 = unit x is not stored: the first step takes it in
  for (int k = 0; k < depth; ++k) {
    if (k > 0) worker.gram(sums);
    worker.store_gram(sums, unit);
    __syncthreads();
    worker.polynomial(p.b[k], p.c[k], sums);
    __syncthreads();
    worker.store_gram(sums, 1);
    __syncthreads();
    worker.update(p.a[k], unit, static_cast<float>(weights[k + 1]));
    unit = 1;
    __syncthreads();
    if (k + 1 == depth) break;
    worker.store_iterate();
    __syncthreads();
  }
  worker.store_mixture(scale.factor);
  __syncthreads();
  return true;
}

template <class T, int kOwned>
__global__ void __launch_bounds__(warps_with(kOwned) * kWarp, blocks_with(kOwned))
    chain(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  const int rows = p.row_tiles * kTile, ld = padded(p.col_tiles);
  T* x = memory.take<T>(rows * ld);
  T* a = memory.take<T>(rows * ld);
  double* scratch = memory.take<double>(kMostWarps);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * p.rows * p.cols;
  const Rows<const T> wide{static_cast<const T*>(p.wide) + begin, p.cols, p.rows, p.cols,
                           p.aligned};
  const Rows<T> to{static_cast<T*>(p.direction.data) + begin, p.cols, p.rows, p.cols, p.aligned};
  on_chip::load_matrix(wide, rows, p.col_tiles * kTile, x, ld);
  __syncthreads();
  float constant = 0;
  on_chip::Overlap overlap{};
  if (solve<T, kOwned>(p, x, a, scratch, &constant)) {
    overlap = store_direction(x, ld, wide, to);
    overlap.inner = block_sum(overlap.inner, scratch);
    overlap.square = block_sum(overlap.square, scratch);
  } else {
    on_chip::put_constant(to, constant);
    overlap.inner = overlap.square = constant;
  }
  if (threadIdx.x == 0) {
    p.direction.inner[blockIdx.x] = overlap.inner;
    p.direction.square[blockIdx.x] = overlap.square;
  }
}

int tiles_of(int64_t size) { return static_cast<int>((size + kTile - 1) / kTile); }

// Few tiles a warp where there are warps enough for that.
struct Layout {
  int row_tiles, col_tiles, owned, groups;

  explicit Layout(const ChainArgs& args)
      : row_tiles(tiles_of(args.rows)), col_tiles(tiles_of(args.cols)) {
    const bool few = row_tiles * dev::div_up(col_tiles, kFew) <= warps_with(kFew);
    owned = few ? kFew : kMany;
    groups = dev::div_up(col_tiles, owned);
  }
  int warps() const { return row_tiles * groups; }
  size_t shared_bytes() const {
    const size_t elements = size_t(row_tiles) * kTile * padded(col_tiles);
    return 2 * elements * sizeof(uint16_t) + kMostWarps * sizeof(double);
  }
};

Params params_of(const Layout& layout, const ChainArgs& args) {
  Params p{};
  p.wide = args.wide, p.direction = args.direction;
  p.weights = args.weights, p.powers = args.powers;
  p.rows = static_cast<int>(args.rows), p.cols = static_cast<int>(args.cols), p.depth = args.depth;
  p.row_tiles = layout.row_tiles, p.col_tiles = layout.col_tiles, p.groups = layout.groups;
  p.aligned = on_chip::has_aligned_rows<__half>(args.wide, args.cols) &&
              on_chip::has_aligned_rows<__half>(args.direction.data, args.cols);
  for (int k = 0; k < args.depth; ++k) {
    p.a[k] = static_cast<float>(args.steps[3 * k]);
    p.b[k] = static_cast<float>(args.steps[3 * k + 1]);
    p.c[k] = static_cast<float>(args.steps[3 * k + 2]);
  }
  return p;
}

template <class T>
cudaError_t launch(const Layout& layout, const ChainArgs& args, cudaStream_t stream) {
  const auto kernel = layout.owned == kFew ? chain<T, kFew> : chain<T, kMany>;
  const dim3 grid(static_cast<unsigned>(args.batch)), block(layout.warps() * kWarp);
  return dev::launch(kernel, grid, block, layout.shared_bytes(), stream, params_of(layout, args));
}

}  // namespace

namespace {

bool held_serve(const ChainArgs& args, const DeviceFacts& facts) {
  if (args.dtype != Dtype::kFloat16 && args.dtype != Dtype::kBFloat16) return false;
  if (args.depth < 1 || args.depth > kMostSteps || args.batch > INT32_MAX) return false;
  if (args.rows < 1 || args.rows > args.cols) return false;
  if (args.cols > kMostWarps * kMany * kTile) return false;
  const Layout layout(args);
  return layout.warps() <= warps_with(layout.owned) &&
         layout.shared_bytes() <= static_cast<size_t>(facts.shared_bytes);
}

}  // namespace

bool serves(const ChainArgs& args, const DeviceFacts& facts) {
  return held_serve(args, facts) || strips_serve(args, facts);
}

size_t workspace(const ChainArgs& args, const DeviceFacts& facts) {
  return held_serve(args, facts) ? 0 : strips_workspace(args, facts);
}

cudaError_t run(const ChainArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  DeviceFacts facts;
  const cudaError_t error = device_facts(&facts);
  if (error != cudaSuccess) return error;
  if (!held_serve(args, facts)) return run_strips(args, facts, workspace, stream);
  const Layout layout(args);
  if (args.dtype == Dtype::kFloat16) return launch<__half>(layout, args, stream);
  return launch<__nv_bfloat16>(layout, args, stream);
}

}  // namespace schattor::cuda::small

// One matrix a block, up to 256 rows: X in shared memory in half precision, and A = XX', then
// P = bA + cA^2 in its place, as a triangle of tiles. X <- aX + PX goes by strips of 16 columns,
// which one warp takes: no other reads them, so X is overwritten where it lies. The mixture is
// gathered in the workspace, in float: registers and shared memory are full, and the cache between
// them and memory holds one for every block that runs. So there are as many blocks as
// multiprocessors at most, and each takes one matrix after the other.
#include <algorithm>

#include "chain_small_strips.h"
#include "chain_small_triangle.cuh"

namespace schattor::cuda::small {
namespace {

using on_chip::kWarp;
using on_chip::Rows;

constexpr int kWarps = 8;  // so that a thread may have 255 registers
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostTiles = 16;                                                // of rows
constexpr int kMostSquares = (squares_of(kMostTiles) + kWarps - 1) / kWarps;  // of one warp

struct Params {
  const void* wide;
  Direction direction;
  const double *weights, *powers;
  float* mixtures;  // (gridDim.x, rows, cols), both padded to tiles
  int64_t batch;
  int rows, cols, depth;
  int row_tiles, col_tiles;
  bool aligned;
  float a[kMostSteps], b[kMostSteps], c[kMostSteps];
};

// The first A is stored divided by |X|_F^2, which is known before it is summed, and times this: its
// entries off the diagonal are then as far from subnormal as when divided by tau^2.
constexpr float kFirstScale = 16;

// What of the scale enters the first step, and all of the mixture.
struct Scale {
  float unit;    // 1 / tau: X_0 = unit x
  float gram;    // the first A, as stored, times this belongs to X_0
  float factor;  // tau^power
};

// The same number, of all lanes, which the compiler does not know to be the same: what follows from
// it is worked out again, and not kept in registers that there are not.
template <class Number>
DEV Number unknown(Number number) {
  return __shfl_sync(~0u, number, 0);
}

template <class T>
class Block {
 public:
  DEV Block(const Params& p, T* x, T* a, float* mixture)
      : p_(p),
        lane_(threadIdx.x),
        warp_(threadIdx.x / kWarp),
        ld_(padded(p.col_tiles)),
        x_(x),
        a_(a),
        mixture_(mixture) {}

  // A = scale^2 X X'. Returns this thread's part of |X X'|_F^2.
  DEV double gram(float scale) const {
    double squares = 0;
    for (int index = warp_; index < squares_of(p_.row_tiles); index += kWarps) {
      const Square square(index, p_.row_tiles);
      SquareSums sums = {};
      multiply_square<T>(
          sums, square, p_.col_tiles,
          [&](uint32_t(&to)[4], int i, int k) { load_left<T>(to, x_tile(i, k), ld_, lane_.index); },
          [&](uint32_t(&to)[4], int k, int j) {
            load_transposed<T>(to, x_tile(j, k), ld_, lane_.index);
          });
      each_pair(square, lane_, [&](int a, int b, int i, int row, int col) {
        const float* pair = &sums[a][b][i / 2][i % 2 * 2];
        const double count = square.row + a == square.col + b ? 1 : 2;  // beside the diagonal: two
        squares += count * (static_cast<double>(pair[0]) * pair[0] +
                            static_cast<double>(pair[1]) * pair[1]);
        on_chip::store_pair(a_.at(square.row + a, square.col + b, row, col),
                            pair[0] * scale * scale, pair[1] * scale * scale);
      });
    }
    return squares;
  }

  // b A + c A^2 in A's place. Barriers have to come first and to follow.
  DEV void polynomial(float b, float c) const {
    uint32_t held[kMostSquares][2][2][4];
#pragma unroll
    for (int turn = 0; turn < kMostSquares; ++turn) {
      const int index = warp_ + turn * kWarps;
      if (index >= squares_of(p_.row_tiles)) continue;
      const Square square(index, p_.row_tiles);
      SquareSums sums = {};
      multiply_square<T>(
          sums, square, p_.row_tiles,
          [&](uint32_t(&to)[4], int i, int k) { a_.load_left(to, i, k, lane_.index); },
          [&](uint32_t(&to)[4], int k, int j) { a_.load_right(to, k, j, lane_.index); });
      each_pair(square, lane_, [&](int s, int t, int i, int row, int col) {
        const float2 old = on_chip::load_pair(a_.at(square.row + s, square.col + t, row, col));
        const float* pair = &sums[s][t][i / 2][i % 2 * 2];
        held[turn][s][t][i] = pack<T>(b * old.x + c * pair[0], b * old.y + c * pair[1]);
      });
    }
    __syncthreads();
    const int warp = unknown(warp_);
#pragma unroll
    for (int turn = 0; turn < kMostSquares; ++turn) {
      const int index = warp + turn * kWarps;
      if (index >= squares_of(p_.row_tiles)) continue;
      const Square square(index, p_.row_tiles);
      each_pair(square, lane_, [&](int s, int t, int i, int row, int col) {
        *reinterpret_cast<uint32_t*>(a_.at(square.row + s, square.col + t, row, col)) =
            held[turn][s][t][i];
      });
    }
  }

  // X <- unit (a X + P X), and the mixture += weight X, where it begins with first X.
  struct Update {
    float a, unit, weight;
    bool begins;
    float first;
  };
  DEV void update(const Update& step) const {
    for (int strip = warp_; strip < p_.col_tiles; strip += kWarps) {
      float sums[kMostTiles][2][4];
#pragma unroll
      for (int i = 0; i < kMostTiles * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll 1
      for (int k = 0; k < p_.row_tiles; ++k) {
        uint32_t right[4];
        load_right<T>(right, x_tile(k, strip), ld_, lane_.index);
#pragma unroll
        for (int i = 0; i < kMostTiles; ++i) {
          if (i >= p_.row_tiles) continue;
          uint32_t left[4];
          a_.load_left(left, i, k, lane_.index);
          multiply_tile<T>(sums[i], left, right);
        }
      }
      __syncwarp();  // the strip has been read
      each_in_strip(strip, [&](int tile, int i, int row, int col) {
        const float* product = &sums[tile][i / 2][i % 2 * 2];
        advance(step, row, col, product[0], product[1]);
      });
    }
  }

  // The mixture of the input alone.
  DEV void begin_mixture(float weight) const {
    for (int strip = warp_; strip < p_.col_tiles; strip += kWarps) {
      each_in_strip(strip, [&](int, int, int row, int col) {
        const float2 x = on_chip::load_pair(x_ + row * ld_ + col);
        *mixture(row, col) = make_float2(weight * x.x, weight * x.y);
      });
    }
  }

 private:
  DEV const T* x_tile(int i, int j) const { return x_ + (i * ld_ + j) * kTile; }

  // body(tile, i, row, col) for every pair i of registers of the strip's tiles, and its place.
  template <class Body>
  DEV void each_in_strip(int strip, Body body) const {
#pragma unroll
    for (int tile = 0; tile < kMostTiles; ++tile) {
      if (tile >= p_.row_tiles) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        body(tile, i, tile * kTile + lane_.row + i % 2 * 8, strip * kTile + lane_.col + i / 2 * 8);
      }
    }
  }

  // The pair at (row, col) of X, of which P X is given.
  DEV void advance(const Update& step, int row, int col, float low, float high) const {
    T* place = x_ + row * ld_ + col;
    const float2 x = on_chip::load_pair(place);
    const uint32_t next =
        pack<T>(step.unit * (step.a * x.x + low), step.unit * (step.a * x.y + high));
    *reinterpret_cast<uint32_t*>(place) = next;
    if (step.weight == 0 && !step.begins) return;
    const float2 before =
        step.begins ? make_float2(step.first * x.x, step.first * x.y) : *mixture(row, col);
    const float2 rounded = unpack<T>(next);
    *mixture(row, col) =
        make_float2(before.x + step.weight * rounded.x, before.y + step.weight * rounded.y);
  }

  DEV float2* mixture(int row, int col) const {
    return reinterpret_cast<float2*>(mixture_ + row * p_.col_tiles * kTile + col);
  }

  const Params& p_;
  const Lane lane_;
  const int warp_, ld_;
  T* x_;
  const Triangle<T> a_;
  float* mixture_;
};

// This thread's part of |X|_F^2.
template <class T>
DEV double squares_of_input(const Params& p, const T* x) {
  const int ld = padded(p.col_tiles), chunks = p.col_tiles * kTile / on_chip::kChunk<T>;
  double sum = 0;
  for (int i = threadIdx.x; i < p.row_tiles * kTile * chunks; i += kThreads) {
    float values[on_chip::kChunk<T>], squares = 0;
    on_chip::unpack_chunk<T>(
        *reinterpret_cast<const uint4*>(x + i / chunks * ld + i % chunks * on_chip::kChunk<T>),
        values);
#pragma unroll
    for (float value : values) squares += value * value;
    sum += static_cast<double>(squares);
  }
  return sum;
}

DEV Scale scale_of(double norm, double power, float first) {
  const float tau = static_cast<float>(sqrt(norm)), unit = 1 / tau;
  return {unit, unit / first * (unit / first), powf(tau, static_cast<float>(power))};
}

// Shared memory besides that of X and A. The scale lies there because registers are full.
struct Scratch {
  double* sums;
  Scale* scale;
};

// All steps of the matrix in x. False: the direction is `constant` throughout.
template <class T>
DEV bool solve(const Params& p, int64_t matrix, const Block<T>& block, const T* x,
               const Scratch& scratch, float* constant) {
  const double* weights = p.weights + matrix * (p.depth + 1);
  const int depth = on_chip::last_weight(weights, p.depth);
  const double size = sqrt(block_sum(squares_of_input(p, x), scratch.sums));
  const float first = sqrtf(kFirstScale) / static_cast<float>(size);
  const double norm = sqrt(block_sum(block.gram(first), scratch.sums));
  const bool regular = on_chip::is_regular(norm);
  if (!regular || depth < 0) {
    *constant = regular ? 0 : on_chip::constant_direction(norm);
    return false;
  }
  if (threadIdx.x == 0) *scratch.scale = scale_of(norm, p.powers[matrix], first);
  __syncthreads();
  const auto first_weight = [&] {
    return static_cast<float>(weights[0]) * scratch.scale->factor * scratch.scale->unit;
  };
  if (depth == 0) block.begin_mixture(first_weight());
  for (int k = 0; k < depth; ++k) {
    if (k > 0) {
      block.gram(1);
      __syncthreads();
    }
    const float gram = k == 0 ? scratch.scale->gram : 1;
    block.polynomial(p.b[k] * gram, p.c[k] * gram * gram);
    __syncthreads();
    const float weight = static_cast<float>(weights[k + 1]) * scratch.scale->factor;
    const float unit = k == 0 ? scratch.scale->unit : 1;
    block.update({p.a[k], unit, weight, k == 0, k == 0 ? first_weight() : 0});
    __syncthreads();
  }
  return true;
}

// The mixture of this block, rounded, to where it belongs.
template <class T>
DEV on_chip::Overlap store_direction(const float* mixture, int ld, const Rows<const T>& wide,
                                     const Rows<T>& to) {
  on_chip::Overlap overlap;
  const int chunks = dev::div_up(wide.cols, on_chip::kChunk<T>);
  for (int i = threadIdx.x; i < wide.rows * chunks; i += kThreads) {
    const int row = i / chunks, col = i % chunks * on_chip::kChunk<T>;
    float x[on_chip::kChunk<T>], y[on_chip::kChunk<T>];
    const float4* sums = reinterpret_cast<const float4*>(mixture + row * ld + col);
    *reinterpret_cast<float4*>(y) = sums[0];
    *reinterpret_cast<float4*>(y + 4) = sums[1];
    const uint4 stored = on_chip::pack_chunk<T>(y);
    on_chip::unpack_chunk<T>(stored, y);
    on_chip::unpack_chunk<T>(on_chip::load_chunk(wide, row, col), x);
    overlap.add(x, y);
    on_chip::store_chunk(to, row, col, stored);
  }
  return overlap;
}

// Matrix `index` of a batch.
template <class T>
DEV Rows<T> matrix_of(const Params& p, T* batch, int64_t index) {
  return {batch + index * p.rows * p.cols, p.cols, p.rows, p.cols, p.aligned};
}

template <class T>
DEV void take(const Params& p, int64_t matrix, T* x, T* a, float* mixture, const Scratch& scratch) {
  const T* inputs = static_cast<const T*>(p.wide);
  on_chip::load_matrix(matrix_of(p, inputs, matrix), p.row_tiles * kTile, p.col_tiles * kTile, x,
                       padded(p.col_tiles));
  __syncthreads();
  float constant = 0;
  const bool solved = solve(p, matrix, Block<T>(p, x, a, mixture), x, scratch, &constant);
  __syncthreads();
  const int64_t index = unknown(matrix);
  const Rows<T> to = matrix_of(p, static_cast<T*>(p.direction.data), index);
  on_chip::Overlap overlap{constant, constant};
  if (solved) {
    overlap = store_direction(mixture, p.col_tiles * kTile, matrix_of(p, inputs, index), to);
    overlap.inner = block_sum(overlap.inner, scratch.sums);
    overlap.square = block_sum(overlap.square, scratch.sums);
  } else {
    on_chip::put_constant(to, constant);
  }
  if (threadIdx.x == 0) {
    p.direction.inner[index] = overlap.inner;
    p.direction.square[index] = overlap.square;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) chain_strips(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  const int rows = p.row_tiles * kTile;
  T* x = memory.take<T>(rows * padded(p.col_tiles));
  T* a = memory.take<T>(triangle_tiles(p.row_tiles) * kTileSize);
  const Scratch scratch{memory.take<double>(kWarps), memory.take<Scale>(1)};
  float* mixture = p.mixtures + static_cast<int64_t>(blockIdx.x) * rows * p.col_tiles * kTile;
  for (int64_t matrix = blockIdx.x; matrix < p.batch; matrix += gridDim.x) {
    take(p, matrix, x, a, mixture, scratch);
    __syncthreads();
  }
}

int tiles_of(int64_t size) { return static_cast<int>((size + kTile - 1) / kTile); }

int64_t shared_bytes(int row_tiles, int col_tiles) {
  const int64_t x = int64_t{row_tiles} * kTile * padded(col_tiles);
  const int64_t a = int64_t{triangle_tiles(row_tiles)} * kTileSize;
  return (x + a) * int64_t{sizeof(uint16_t)} + kWarps * int64_t{sizeof(double)} + 16;
}

int blocks_for(const ChainArgs& args, const DeviceFacts& facts) {
  return static_cast<int>(std::min<int64_t>(args.batch, facts.multiprocessors));
}

Params params_of(const ChainArgs& args) {
  Params p{};
  p.wide = args.wide, p.direction = args.direction;
  p.weights = args.weights, p.powers = args.powers, p.batch = args.batch;
  p.rows = static_cast<int>(args.rows), p.cols = static_cast<int>(args.cols), p.depth = args.depth;
  p.row_tiles = tiles_of(args.rows), p.col_tiles = tiles_of(args.cols);
  p.aligned = on_chip::has_aligned_rows<__half>(args.wide, args.cols) &&
              on_chip::has_aligned_rows<__half>(args.direction.data, args.cols);
  for (int k = 0; k < args.depth; ++k) {
    p.a[k] = static_cast<float>(args.steps[3 * k]);
    p.b[k] = static_cast<float>(args.steps[3 * k + 1]);
    p.c[k] = static_cast<float>(args.steps[3 * k + 2]);
  }
  return p;
}

}  // namespace

bool strips_serve(const ChainArgs& args, const DeviceFacts& facts) {
  if (args.dtype != Dtype::kFloat16 && args.dtype != Dtype::kBFloat16) return false;
  if (args.depth < 1 || args.depth > kMostSteps || args.batch > INT32_MAX) return false;
  if (args.rows < 1 || args.rows > args.cols || args.rows > kMostTiles * kTile) return false;
  // Rows of this length alone would fill any shared memory; the product below does not overflow.
  if (args.cols > (1 << 14)) return false;
  return shared_bytes(tiles_of(args.rows), tiles_of(args.cols)) <= facts.shared_bytes;
}

size_t strips_workspace(const ChainArgs& args, const DeviceFacts& facts) {
  const int64_t entries = int64_t{tiles_of(args.rows)} * tiles_of(args.cols) * kTileSize;
  return static_cast<size_t>(blocks_for(args, facts) * entries) * sizeof(float);
}

cudaError_t run_strips(const ChainArgs& args, const DeviceFacts& facts, void* workspace,
                       cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  Params p = params_of(args);
  p.mixtures = static_cast<float*>(workspace);
  const auto kernel =
      args.dtype == Dtype::kFloat16 ? chain_strips<__half> : chain_strips<__nv_bfloat16>;
  return dev::launch(kernel, dim3(blocks_for(args, facts)), dim3(kThreads),
                     static_cast<size_t>(shared_bytes(p.row_tiles, p.col_tiles)), stream, p);
}

}  // namespace schattor::cuda::small

// Directions back into lists of weights, and gradients into lists of first and second moments, in
// one pass: every byte is read once and every byte of weights and moments written once, which is
// the floor.
#include <algorithm>

#include "rounding.cuh"
#include "views.cuh"

namespace schattor::cuda {
namespace {

constexpr int kTable = 128;  // matrices a launch

struct Params {
  int64_t rows, cols;
  Dtype param_dtype, grad_dtype, momentum_dtype, direction_dtype;
  bool has_momentum;
  MomentumRule rule;
  char* direction;  // of the first matrix of the launch, as all that follow
  const double* scale;
  const double* decay;
  const uint8_t* finite;
  const int64_t* rounding_seed;
  int64_t first;  // number of the first matrix in the batch
  int tiles;      // of a matrix, and as many blocks
  struct {
    View param, grad, momentum;
  } matrices[kTable];
};

// Apart, so that launches without second moments carry no more than before.
struct SquareParams : Params {
  Dtype square_dtype;
  const double* beta;
  View squares[kTable];
};

// w <- decay w - scale direction, cut as the weights lie.
template <class T>
DEV void step(const Params& p, int index, int t, T* turning) {
  const double decay = *p.decay, scale = p.scale[index];
  if (decay == 1 && scale == 0) return;  // keeps every bit, of NaN too
  const T kept = static_cast<T>(decay), moved = static_cast<T>(-scale);
  const View& view = p.matrices[index].param;
  const Cut cut = is_contiguous(view, p.rows, p.cols) ? Cut::kFlat
                  : lies_transposed(view, p.rows)     ? Cut::kColumns
                                                      : Cut::kRows;
  const Grid tiles = grid(p.rows, p.cols, cut);
  if (t >= tiles.count()) return;
  const Side weights(view, p.param_dtype, cut);
  const Side directions(
      {p.direction + index * (p.rows * p.cols) * size_of(p.direction_dtype), p.cols, 1},
      p.direction_dtype, cut);
  const Tile tile = tiles.tile(t);
  const Loads<T> loads(weights, tile), moves(directions, tile);
  Entries<T> w, direction;
  loads.finish(turning, w);
  moves.finish(turning, direction);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) w.x[k] = blend(kept, w.x[k], moved, direction.x[k]);
  if (p.rounding_seed != nullptr && p.param_dtype == Dtype::kBFloat16) {
    round_randomly(w, tiles, tile, *p.rounding_seed, p.first + index);
  }
  store(w, weights, tile, turning);
}

// m <- momentum m + c g, cut as the moments lie.
template <class T>
DEV void accumulate(const Params& p, int index, int t, T* turning) {
  if (!p.has_momentum) return;
  const View &g = p.matrices[index].grad, &m = p.matrices[index].momentum;
  // No wide batch is concerned, so alike and contiguous is enough, transposed or not.
  const bool flat = (is_contiguous(g, p.rows, p.cols) && is_contiguous(m, p.rows, p.cols)) ||
                    (is_contiguous_transposed(g, p.rows) && is_contiguous_transposed(m, p.rows));
  const Cut cut = flat ? Cut::kFlat : lies_transposed(m, p.rows) ? Cut::kColumns : Cut::kRows;
  const Side grads(g, p.grad_dtype, cut), momenta(m, p.momentum_dtype, cut);
  const Blend<T> blend(p.rule);
  const Grid tiles = grid(p.rows, p.cols, cut);
  if (t >= tiles.count()) return;
  const Tile tile = tiles.tile(t);
  const Loads<T> loads(momenta, tile), additions(grads, tile);
  Entries<T> moment, grad;
  loads.finish(turning, moment);
  additions.finish(turning, grad);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) moment.x[k] = blend(moment.x[k], grad.x[k]);
  store(moment, momenta, tile, turning);
}

// The same and v <- beta v + (1 - beta) g^2 with one read of g, cut as the second moments lie.
template <class T>
DEV void accumulate(const SquareParams& p, int index, int t, T* turning) {
  const View &g = p.matrices[index].grad, &m = p.matrices[index].momentum, &v = p.squares[index];
  const auto all = [&](const auto& lies) {
    return lies(g) && lies(v) && (!p.has_momentum || lies(m));
  };
  const bool flat = all([&](const View& view) { return is_contiguous(view, p.rows, p.cols); }) ||
                    all([&](const View& view) { return is_contiguous_transposed(view, p.rows); });
  const Cut cut = flat ? Cut::kFlat : lies_transposed(v, p.rows) ? Cut::kColumns : Cut::kRows;
  const Grid tiles = grid(p.rows, p.cols, cut);
  if (t >= tiles.count()) return;
  const Tile tile = tiles.tile(t);
  const Side squares(v, p.square_dtype, cut);
  const Loads<T> loads(squares, tile), additions(Side(g, p.grad_dtype, cut), tile);
  Entries<T> square, grad;
  loads.finish(turning, square);
  additions.finish(turning, grad);
  const Average<T> average(p.beta);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) square.x[k] = average(square.x[k], grad.x[k]);
  store(square, squares, tile, turning);
  if (!p.has_momentum) return;
  const Side momenta(m, p.momentum_dtype, cut);
  Entries<T> moment;
  Loads<T>(momenta, tile).finish(turning, moment);
  const Blend<T> blend(p.rule);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) moment.x[k] = blend(moment.x[k], grad.x[k]);
  store(moment, momenta, tile, turning);
}

// Weights are computed in T; moments in U, which is the type that gather_momentum computed in.
template <class T, class U, class P>
__global__ void __launch_bounds__(kThreads, std::min(kResident<T>, kResident<U>))
    scatter(const __grid_constant__ P p) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  using Widest = std::conditional_t<sizeof(T) >= sizeof(U), T, U>;
  Widest* turning = sm.take<Widest>(kTileSize);
  const int index = blockIdx.x / p.tiles, t = blockIdx.x % p.tiles;
  if (!p.finite[index]) return;
  step(p, index, t, reinterpret_cast<T*>(turning));
  accumulate(p, index, t, reinterpret_cast<U*>(turning));
}

bool has_moments(const ScatterArgs& args) {
  return args.momenta != nullptr || args.squares != nullptr;
}

void fill(const ScatterArgs& args, int64_t first, int count, Params& p) {
  p.rows = args.rows, p.cols = args.cols;
  p.param_dtype = args.param_dtype, p.grad_dtype = args.grad_dtype;
  p.momentum_dtype = args.momentum_dtype, p.direction_dtype = args.direction_dtype;
  p.has_momentum = args.momenta != nullptr;
  p.rule = args.rule;
  const int64_t entries = first * args.rows * args.cols;
  p.direction = static_cast<char*>(const_cast<void*>(args.direction)) +
                entries * size_of(args.direction_dtype);
  p.scale = args.scale + first;
  p.decay = args.decay;
  p.finite = args.finite + first;
  p.rounding_seed = args.rounding_seed;
  p.first = first;
  p.tiles = static_cast<int>(grid(args.rows, args.cols, Cut::kRows).count());
  for (int i = 0; i < count; ++i) {
    p.matrices[i].param = args.params[first + i];
    p.matrices[i].grad = has_moments(args) ? args.grads[first + i] : View{};
    p.matrices[i].momentum = p.has_momentum ? args.momenta[first + i] : View{};
  }
}

void fill(const ScatterArgs& args, int64_t first, int count, SquareParams& p) {
  fill(args, first, count, static_cast<Params&>(p));
  p.square_dtype = args.square_dtype;
  p.beta = args.beta;
  std::copy(args.squares + first, args.squares + first + count, p.squares);
}

template <class T, class U, class P>
cudaError_t run(const ScatterArgs& args, cudaStream_t stream) {
  for (int64_t first = 0; first < args.batch; first += kTable) {
    const int count = static_cast<int>(std::min<int64_t>(args.batch - first, kTable));
    P p;
    fill(args, first, count, p);
    const cudaError_t error = dev::launch(scatter<T, U, P>, count * p.tiles, kThreads,
                                          kTileSize * std::max(sizeof(T), sizeof(U)), stream, p);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T, class U>
cudaError_t run(const ScatterArgs& args, cudaStream_t stream) {
  return args.squares == nullptr ? run<T, U, Params>(args, stream)
                                 : run<T, U, SquareParams>(args, stream);
}

}  // namespace

cudaError_t scatter_update(const ScatterArgs& args, cudaStream_t stream) {
  if (args.rows * args.cols == 0) return cudaSuccess;
  const Dtype wide = Dtype::kFloat64;
  const bool step_in_double = args.param_dtype == wide || args.direction_dtype == wide;
  const bool moments_in_double =
      has_moments(args) && (args.grad_dtype == wide || args.direction_dtype == wide ||
                            (args.momenta != nullptr && args.momentum_dtype == wide) ||
                            (args.squares != nullptr && args.square_dtype == wide));
  if (step_in_double) {
    return moments_in_double ? run<double, double>(args, stream) : run<double, float>(args, stream);
  }
  return moments_in_double ? run<float, double>(args, stream) : run<float, float>(args, stream);
}

}  // namespace schattor::cuda

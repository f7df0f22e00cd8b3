// Lists of gradients and moments into a normalised wide batch, with or without weights.
//
// A matrix of up to two tiles is one block's: M stays in shared memory between its norm and its
// division, one launch, everything read once. Larger ones take two launches: partial sums of
// squares, then M once more. The floor of those is gradients and moments read twice (the second
// time from L2 as far as it holds them) and the wide batch written once. Keeping M between the
// launches would cost more: it is a float, and wide may not hold it.
//
// Weights are computed once, where M is first, and stored: the second launch reads them in place of
// second moments.
#include <algorithm>

#include "gather_matrix.cuh"
#include "reduce.cuh"

namespace schattor::cuda {
namespace {

using namespace gather;

constexpr int kMostStrips = 512;  // blocks a matrix; each adds up the partial sums of all
constexpr int kMostKept = 2;      // tiles that one block keeps

template <class T>
DEV double* take_scratch(dev::Carve& sm) {
  return sm.take<double>(kThreads / 32 * Squares<T>::kParts);
}

// One block a matrix.
template <class M>
__global__ void __launch_bounds__(kThreads, kResident<typename M::Number>)
    gather_small(const __grid_constant__ typename M::Given p) {
  using T = typename M::Number;
  DYN_SMEM(base);
  dev::Carve sm{base};
  T* turning = sm.take<T>(kTileSize);
  double* scratch = take_scratch<T>(sm);
  T* kept = sm.take<T>(static_cast<int>(grid(p.rows, p.cols, Cut::kRows).count()) * kTileSize);
  const M matrix(p, blockIdx.x, turning);
  const Grid tiles = matrix.tiles();
  Squares<T> squares;
  Entries<T> entries;
  // A thread keeps its own entries, so no barrier is needed, and neighbours lie in different banks.
  const auto place = [&](int t, int k) { return (t * kUnit + k) * kThreads + threadIdx.x; };
  for (int t = 0; t < tiles.count(); ++t) {
    matrix.apply(tiles.tile(t), entries);
    squares.add(entries.x);
#pragma unroll
    for (int k = 0; k < kUnit; ++k) kept[place(t, k)] = entries.x[k];
  }
  block_sum(squares.parts, scratch);
  const Norm norm(squares.parts);
  const bool usable = matrix.conclude(norm, threadIdx.x == 0);
  const Scaling<T> scaling(norm, p.size);
  for (int t = 0; t < tiles.count(); ++t) {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) entries.x[k] = usable ? kept[place(t, k)] : T(0);
    if (usable) scaling.apply(entries);
    matrix.write(entries, tiles.tile(t));
  }
}

// Block s of a matrix takes its tiles s, s + strips, ...
template <class M>
__global__ void __launch_bounds__(kThreads, kResident<typename M::Number>)
    gather_squares(const __grid_constant__ typename M::Given p) {
  using T = typename M::Number;
  DYN_SMEM(base);
  dev::Carve sm{base};
  T* turning = sm.take<T>(kTileSize);
  double* scratch = take_scratch<T>(sm);
  const int index = blockIdx.x / p.strips, strip = blockIdx.x % p.strips;
  const M matrix(p, index, turning);
  const Grid tiles = matrix.tiles();
  Squares<T> squares;
  for (int64_t t = strip; t < tiles.count(); t += p.strips) {
    Entries<T> entries;
    matrix.apply(tiles.tile(t), entries);
    squares.add(entries.x);
  }
  block_sum(squares.parts, scratch);
  constexpr int kParts = Squares<T>::kParts;
  if (threadIdx.x > 0) return;
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    p.partials[static_cast<int64_t>(blockIdx.x) * kParts + j] = squares.parts[j];
  }
}

template <class M>
__global__ void __launch_bounds__(kThreads, kResident<typename M::Number>)
    gather_divide(const __grid_constant__ typename M::Given p) {
  using T = typename M::Number;
  DYN_SMEM(base);
  dev::Carve sm{base};
  T* turning = sm.take<T>(kTileSize);
  double* scratch = take_scratch<T>(sm);
  constexpr int kParts = Squares<T>::kParts;
  // Backwards: what the launch before read last is the likeliest to be in L2 still.
  const int block = gridDim.x - 1 - blockIdx.x;
  const int index = block / p.strips, strip = block % p.strips;
  Squares<T> squares;
  for (int s = threadIdx.x; s < p.strips; s += kThreads) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      squares.parts[j] += p.partials[(static_cast<int64_t>(index) * p.strips + s) * kParts + j];
    }
  }
  block_sum(squares.parts, scratch);
  const M matrix(p, index, turning);
  const Norm norm(squares.parts);
  const bool usable = matrix.conclude(norm, strip == 0 && threadIdx.x == 0);
  const Scaling<T> scaling(norm, p.size);
  const Grid tiles = matrix.tiles();
  for (int64_t t = strip; t < tiles.count(); t += p.strips) {
    Entries<T> entries = {};
    if (usable) {
      matrix.apply(tiles.tile(t), entries);
      scaling.apply(entries);
    }
    matrix.write(entries, tiles.tile(t));
  }
}

// By the shape alone, so that sums are added up in an order of the shape.
int64_t tile_count(const GatherArgs& args) {
  return grid(args.rows, args.cols, Cut::kRows).count();
}

int strip_count(const GatherArgs& args) {
  return static_cast<int>(std::min<int64_t>(tile_count(args), kMostStrips));
}

bool has_squares(const GatherArgs& args) {
  return args.second.weights != nullptr && args.second.squares != nullptr;
}

bool in_double(const GatherArgs& args) {
  return args.grad_dtype == Dtype::kFloat64 || args.wide_dtype == Dtype::kFloat64 ||
         (args.momenta != nullptr && args.momentum_dtype == Dtype::kFloat64) ||
         (has_squares(args) && args.second.dtype == Dtype::kFloat64);
}

void fill(const GatherArgs& args, int64_t first, int count, double* partials, Params& p) {
  p.rows = args.rows, p.cols = args.cols;
  p.grad_dtype = args.grad_dtype, p.wide_dtype = args.wide_dtype;
  p.has_momentum = args.momenta != nullptr;
  p.momentum_dtype = p.has_momentum ? args.momentum_dtype : args.grad_dtype;
  p.rule = args.rule;
  p.size = args.size;
  p.wide = static_cast<char*>(args.wide) + first * args.rows * args.cols * size_of(args.wide_dtype);
  p.norms = args.norms + first;
  p.finite = args.finite + first;
  p.partials = partials;
  p.strips = strip_count(args);
  for (int i = 0; i < count; ++i) {
    p.matrices[i].grad = args.grads[first + i];
    p.matrices[i].momentum = p.has_momentum ? args.momenta[first + i] : View{};
  }
}

void fill(const GatherArgs& args, int64_t first, int count, double* partials, WeightedParams& p) {
  fill(args, first, count, partials, static_cast<Params&>(p));
  const int64_t size = in_double(args) ? sizeof(double) : sizeof(float);
  p.weights = static_cast<char*>(args.second.weights) + first * args.rows * args.cols * size;
}

void fill(const GatherArgs& args, int64_t first, int count, double* partials, AdaptiveParams& p) {
  fill(args, first, count, partials, static_cast<WeightedParams&>(p));
  const SecondMoments& second = args.second;
  p.square_dtype = second.dtype, p.square_root = second.square_root;
  p.beta = second.beta, p.corrections = second.corrections + first;
  p.eps = second.eps + first, p.exponent = second.exponent + first;
  std::copy(second.squares + first, second.squares + first + count, p.squares);
}

// M is the matrix that is gathered, Again the same of which the second launch finds more stored.
template <class M, class Again = M>
cudaError_t run(const GatherArgs& args, double* partials, cudaStream_t stream) {
  using T = typename M::Number;
  constexpr int kParts = Squares<T>::kParts;
  const int tiles = static_cast<int>(std::min<int64_t>(tile_count(args), kMostKept + 1));
  const size_t shared = kTileSize * sizeof(T) + kThreads / 32 * kParts * sizeof(double);
  for (int64_t first = 0; first < args.batch; first += kTable) {
    const int count = static_cast<int>(std::min<int64_t>(args.batch - first, kTable));
    typename M::Given p;
    fill(args, first, count, partials, p);
    cudaError_t error;
    if (tiles <= kMostKept) {
      error = dev::launch(gather_small<M>, count, kThreads, shared + tiles * kTileSize * sizeof(T),
                          stream, p);
    } else {
      error = dev::launch(gather_squares<M>, count * p.strips, kThreads, shared, stream, p);
      if (error != cudaSuccess) return error;
      error = dev::launch(gather_divide<Again>, count * p.strips, kThreads, shared, stream, p);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t run_in(const GatherArgs& args, double* partials, cudaStream_t stream) {
  if (has_squares(args)) return run<AdaptiveMatrix<T>, WeightedMatrix<T>>(args, partials, stream);
  if (args.second.weights != nullptr) return run<WeightedMatrix<T>>(args, partials, stream);
  return run<Matrix<T>>(args, partials, stream);
}

}  // namespace

size_t gather_momentum_workspace(const GatherArgs& args) {
  if (tile_count(args) <= kMostKept) return 0;
  const int parts = in_double(args) ? Squares<double>::kParts : Squares<float>::kParts;
  return std::min<size_t>(args.batch, kTable) * strip_count(args) * parts * sizeof(double);
}

cudaError_t gather_momentum(const GatherArgs& args, void* workspace, cudaStream_t stream) {
  double* partials = static_cast<double*>(workspace);
  return in_double(args) ? run_in<double>(args, partials, stream)
                         : run_in<float>(args, partials, stream);
}

}  // namespace schattor::cuda

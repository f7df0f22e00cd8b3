// Lists of gradients and moments into a normalised wide batch.
//
// A matrix of up to two tiles is one block's: M stays in shared memory between its norm and its
// division, one launch, everything read once. Larger ones take two launches: partial sums of
// squares, then M once more. The floor of those is gradients and moments read twice (the second
// time from L2 as far as it holds them) and the wide batch written once. Keeping M between the
// launches would cost more: it is a float, and wide may not hold it.
#include <algorithm>

#include "reduce.cuh"
#include "views.cuh"

namespace schattor::cuda {
namespace {

constexpr int kTable = 128;       // matrices a launch
constexpr int kMostStrips = 512;  // blocks a matrix; each adds up the partial sums of all
constexpr int kMostKept = 2;      // tiles that one block keeps

struct Params {
  int64_t rows, cols;
  Dtype grad_dtype, momentum_dtype, wide_dtype;
  bool has_momentum;
  MomentumRule rule;
  double size;
  char* wide;  // of the first matrix of the launch, as all that follow
  double* norms;
  uint8_t* finite;
  double* partials;  // (matrices, strips, kParts): launches follow each other and share them
  int strips;
  struct {
    View grad, momentum;
  } matrices[kTable];
};

// sum x^2. Squares of float are within the range of double; squares of double are summed in three
// ranges of their own: x 2^600 for small x, x, and x 2^-600 for large x.
template <class T>
struct Squares {
  static constexpr int kParts = sizeof(T) == sizeof(double) ? 3 : 1;
  double parts[kParts] = {};

  DEV void add(const float (&x)[kUnit]) {
    float sum = x[0] * x[0] + x[4] * x[4];
#pragma unroll
    for (int k = 1; k < 4; ++k) sum += x[k] * x[k] + x[k + 4] * x[k + 4];
    // Far from both ends of float's range nothing that matters was lost; elsewhere (rare, but for
    // zeros) each square is taken in double.
    if (sum > 0x1p-80f && sum < 0x1p100f) {
      parts[0] += sum;
    } else {
#pragma unroll
      for (int k = 0; k < kUnit; ++k) parts[0] += static_cast<double>(x[k]) * x[k];
    }
  }
  DEV void add(const double (&x)[kUnit]) {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) {
      const double size = fabs(x[k]);
      const int range = size < 0x1p-400 ? 0 : size > 0x1p400 ? 2 : 1;
      const double scaled = x[k] * (range == 0 ? 0x1p600 : range == 2 ? 0x1p-600 : 1);
#pragma unroll
      for (int j = 0; j < 3; ++j) parts[j % kParts] += range == j ? scaled * scaled : 0;
    }
  }
};

// |M|_F = root 2^exponent: a root that neither over- nor underflowed. Not finite where M is not.
struct Norm {
  double root;
  int exponent;

  DEV explicit Norm(const double (&sum)[1]) : root(sqrt(sum[0])), exponent(0) {}
  DEV explicit Norm(const double (&sum)[3]) {
    // A range beside a larger one counts where they meet; NaN in any of them stays.
    constexpr double kStep = 0x1p-600;
    if (!(sum[2] == 0)) {
      root = sqrt(sum[2] + sum[1] * kStep * kStep), exponent = 600;
    } else if (!(sum[1] == 0)) {
      root = sqrt(sum[1] + sum[0] * kStep * kStep), exponent = 0;
    } else {
      root = sqrt(sum[0]), exponent = -600;
    }
  }
  DEV bool is_finite() const { return root <= 0x1.fffffffffffffp1023; }
  // |M|_F / size, at most the largest double.
  DEV double over(double size) const {
    return fmin(ldexp(root / size, exponent), 0x1.fffffffffffffp1023);
  }
};

// size / |M|_F in two factors, since the reciprocal of a small norm may be beyond T.
template <class T>
struct Scaling {
  T power, rest;

  DEV Scaling(const Norm& norm, double size) {
    constexpr int kMost = sizeof(T) == sizeof(double) ? 1021 : 125;
    int exponent;
    const double fraction = frexp(norm.root, &exponent);
    exponent += norm.exponent;
    const int shift = min(max(-exponent, -kMost), kMost);
    power = static_cast<T>(ldexp(1.0, shift));
    rest = static_cast<T>(ldexp(size / fraction, -exponent - shift));
  }
  DEV void apply(Entries<T>& entries) const {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) entries.x[k] = entries.x[k] * power * rest;
  }
};

// One matrix, cut as its gradient lies.
template <class T>
class Matrix {
 public:
  DEV Matrix(const Params& p, int index, T* turning)
      : p_(p),
        index_(index),
        turning_(turning),
        cut_(cut_of(p, index)),
        grad_(p.matrices[index].grad, p.grad_dtype, cut_),
        momentum_(p.matrices[index].momentum, p.momentum_dtype, cut_),
        wide_({p.wide + index * (p.rows * p.cols) * size_of(p.wide_dtype), p.cols, 1}, p.wide_dtype,
              cut_) {}

  DEV Grid tiles() const { return grid(p_.rows, p_.cols, cut_); }

  // A tile of M.
  DEV void apply(const Tile& tile, Entries<T>& entries) const {
    const Loads<T> grads(grad_, tile);
    if (!p_.has_momentum) return grads.finish(turning_, entries);
    const Loads<T> momenta(momentum_, tile);
    Entries<T> m;
    grads.finish(turning_, entries);
    momenta.finish(turning_, m);
    const Blend<T> blend(p_.rule);
#pragma unroll
    for (int k = 0; k < kUnit; ++k) {
      const T g = entries.x[k], updated = blend(m.x[k], g);
      entries.x[k] = p_.rule.nesterov ? blend(updated, g) : updated;
    }
  }
  DEV void write(Entries<T>& entries, const Tile& tile) const {
    store(entries, wide_, tile, turning_);
  }
  // Norm and flag, by one thread of all the matrix's blocks. True where there is M to divide.
  DEV bool conclude(const Norm& norm, bool writer) const {
    const bool usable = norm.is_finite() && norm.root > 0;
    if (writer) {
      p_.norms[index_] = usable ? norm.over(p_.size) : 0;
      p_.finite[index_] = norm.is_finite();
    }
    return usable;
  }

 private:
  DEV static Cut cut_of(const Params& p, int index) {
    const View &grad = p.matrices[index].grad, &momentum = p.matrices[index].momentum;
    const bool flat = is_contiguous(grad, p.rows, p.cols) &&
                      (!p.has_momentum || is_contiguous(momentum, p.rows, p.cols));
    if (flat) return Cut::kFlat;
    return lies_transposed(grad, p.rows) ? Cut::kColumns : Cut::kRows;
  }

  const Params& p_;
  const int index_;
  T* const turning_;
  const Cut cut_;
  const Side grad_, momentum_, wide_;
};

template <class T>
DEV double* take_scratch(dev::Carve& sm) {
  return sm.take<double>(kThreads / 32 * Squares<T>::kParts);
}

// One block a matrix.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    gather_small(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  T* turning = sm.take<T>(kTileSize);
  double* scratch = take_scratch<T>(sm);
  T* kept = sm.take<T>(static_cast<int>(grid(p.rows, p.cols, Cut::kRows).count()) * kTileSize);
  const Matrix<T> matrix(p, blockIdx.x, turning);
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
template <class T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    gather_squares(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  T* turning = sm.take<T>(kTileSize);
  double* scratch = take_scratch<T>(sm);
  const int index = blockIdx.x / p.strips, strip = blockIdx.x % p.strips;
  const Matrix<T> matrix(p, index, turning);
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

template <class T>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    gather_divide(const __grid_constant__ Params p) {
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
  const Matrix<T> matrix(p, index, turning);
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

bool in_double(const GatherArgs& args) {
  return args.grad_dtype == Dtype::kFloat64 || args.wide_dtype == Dtype::kFloat64 ||
         (args.momenta != nullptr && args.momentum_dtype == Dtype::kFloat64);
}

Params params(const GatherArgs& args, int64_t first, int count, double* partials) {
  Params p;
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
  return p;
}

template <class T>
cudaError_t gather(const GatherArgs& args, double* partials, cudaStream_t stream) {
  constexpr int kParts = Squares<T>::kParts;
  const int tiles = static_cast<int>(std::min<int64_t>(tile_count(args), kMostKept + 1));
  const size_t shared = kTileSize * sizeof(T) + kThreads / 32 * kParts * sizeof(double);
  for (int64_t first = 0; first < args.batch; first += kTable) {
    const int count = static_cast<int>(std::min<int64_t>(args.batch - first, kTable));
    const Params p = params(args, first, count, partials);
    cudaError_t error;
    if (tiles <= kMostKept) {
      error = dev::launch(gather_small<T>, count, kThreads, shared + tiles * kTileSize * sizeof(T),
                          stream, p);
    } else {
      error = dev::launch(gather_squares<T>, count * p.strips, kThreads, shared, stream, p);
      if (error != cudaSuccess) return error;
      error = dev::launch(gather_divide<T>, count * p.strips, kThreads, shared, stream, p);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

size_t gather_momentum_workspace(const GatherArgs& args) {
  if (tile_count(args) <= kMostKept) return 0;
  const int parts = in_double(args) ? Squares<double>::kParts : Squares<float>::kParts;
  return std::min<size_t>(args.batch, kTable) * strip_count(args) * parts * sizeof(double);
}

cudaError_t gather_momentum(const GatherArgs& args, void* workspace, cudaStream_t stream) {
  double* partials = static_cast<double*>(workspace);
  return in_double(args) ? gather<double>(args, partials, stream)
                         : gather<float>(args, partials, stream);
}

}  // namespace schattor::cuda

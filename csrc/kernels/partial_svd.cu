// Leading singular triples by block subspace iteration, V <- orth(X'(X V)), with a Rayleigh-Ritz
// step at the end: X V = Q B, B = W S P', u = Q W, v = V P, so that X v = u s to rounding however
// far the iteration has come.
//
// Matrices that fit one block take one launch (partial_svd_small.cu). Others take a few an
// iteration, for the whole batch at once: two products, and one or two passes of Cholesky QR of
// three launches each (Gram, factor, combination). What a matrix still lacks then, one block gives
// it: a launch that for most matrices has nothing to do.
#include "partial_svd_panels.h"
#include "partial_svd_paths.h"
#include "partial_svd_ritz.cuh"
#include "partial_svd_start.cuh"

namespace schattor::cuda {
namespace svd {
namespace {

constexpr int kThreads = 256, kMostThreads = 512;

// maxima (batch, slices) = the bits of the largest magnitude of each slice of a matrix.
template <class T>
__global__ void __launch_bounds__(kThreads)
    inspect_kernel(const T* wide, int64_t size, int64_t slice, int slices, BitsOf<T>* maxima) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  BitsOf<T>* shared = sm.take<BitsOf<T>>(kThreads / kWarp);
  const T* x = wide + blockIdx.x / slices * size;
  const int64_t begin = blockIdx.x % slices * slice, end = min(size, begin + slice);
  BitsOf<T> largest = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const BitsOf<T> bits = magnitude_bits(x[i]);
    largest = bits > largest ? bits : largest;
  }
  largest = block_max(largest, shared);
  if (threadIdx.x == 0) maxima[blockIdx.x] = largest;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const BitsOf<T>* maxima, int slices, const T* start, int cols, int rank,
                   T* right, MatrixState* states) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  int* flags = sm.take<int>(kThreads / kWarp);
  const int64_t matrix = blockIdx.x, offset = matrix * cols * rank;
  const bool finite = load_start(start + offset, cols, rank, right + offset, flags);
  if (threadIdx.x != 0) return;
  BitsOf<T> largest = 0;
  for (int i = 0; i < slices; ++i) {
    const BitsOf<T> bits = maxima[matrix * slices + i];
    largest = bits > largest ? bits : largest;
  }
  states[matrix] = state_of<T>(largest, finite);
}

// The small matrices and numbers of all matrices of a batch, in the workspace.
struct Scratch {
  double* sums;                                // (batch, slices, count, count), as gram leaves them
  double *a, *b, *p;                           // (batch, count, count)
  double *inverse_lengths, *remains, *values;  // (batch, count)
  int* fates;
  MatrixState* states;
  int count;
  bool squares_fit;  // one (factor, rest) or three (ritz) squares fit shared memory

  DEV Factor factor(int64_t matrix, double* square, double* line) const {
    const int64_t offset = matrix * count;
    return {square, line, inverse_lengths + offset, remains + offset, fates + offset};
  }
};

DEV double* square_of(double* all, int64_t matrix, int count) {
  return all + matrix * count * count;
}

// square = the sum of a matrix's slices of inner products, on and below the diagonal if lower.
DEV void add_slices(const double* sums, int slices, int count, bool lower, double* square) {
  const int64_t size = int64_t(count) * count;
  for (int64_t index = threadIdx.x; index < size; index += blockDim.x) {
    if (lower && index % count > index / count) continue;
    double sum = 0;
    for (int slice = 0; slice < slices; ++slice) sum += sums[slice * size + index];
    square[index] = sum;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    factor_kernel(const __grid_constant__ Scratch scratch, int slices, int pass, int skipped) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  const int64_t matrix = blockIdx.x;
  const int count = scratch.count;
  MatrixState& state = scratch.states[matrix];
  const bool active = pass == 0 ? state.mode < skipped : state.pending != 0;
  __syncthreads();
  if (!active) {
    if (threadIdx.x == 0) state.active = state.pending = 0;
    return;
  }
  double *line = sm.take<double>(count), *out = square_of(scratch.a, matrix, count);
  double* a = scratch.squares_fit ? sm.take<double>(count * count) : out;
  add_slices(scratch.sums + matrix * slices * count * count, slices, count, true, a);
  const bool done = factorise<T>(scratch.factor(matrix, a, line), count, pass == 0);
  if (threadIdx.x == 0) state.active = 1, state.pending = !done;
  if (!scratch.squares_fit) return;
  for (int index = threadIdx.x; index < count * count; index += blockDim.x) {
    if (index % count <= index / count) out[index] = a[index];
  }
}

// The passes that the launches before have left.
template <class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    rest_kernel(const __grid_constant__ Scratch scratch, T* panel, int length, int pass) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  const int64_t matrix = blockIdx.x;
  const int count = scratch.count;
  if (!scratch.states[matrix].pending) return;
  double* line = sm.take<double>(count);
  double* a =
      scratch.squares_fit ? sm.take<double>(count * count) : square_of(scratch.a, matrix, count);
  const Panel<T> view{panel + matrix * length * count, count, 1, length, count};
  block_orthonormalise(view, scratch.factor(matrix, a, line), pass);
}

// scratch.b = W, scratch.p = P, one column a row, and s.
template <class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    ritz_kernel(const __grid_constant__ Scratch scratch, int slices, T* s) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  const int64_t matrix = blockIdx.x;
  const int count = scratch.count, size = count * count;
  const MatrixState& state = scratch.states[matrix];
  if (state.mode == kNotFinite) {
    for (int k = threadIdx.x; k < count; k += blockDim.x) s[matrix * count + k] = T(nan(""));
    return;
  }
  double* line = sm.take<double>(count);
  int* flags = sm.take<int>(kMostThreads / kWarp);
  double* global[3];
  double* local[3];
  int each = 0;
  for (double* all : {scratch.a, scratch.b, scratch.p}) {
    global[each] = square_of(all, matrix, count);
    local[each] = scratch.squares_fit ? sm.take<double>(size) : global[each];
    ++each;
  }
  add_slices(scratch.sums + matrix * slices * size, slices, count, false, local[1]);
  double* values = scratch.values + matrix * count;
  block_ritz(local[1], local[2], values, scratch.factor(matrix, local[0], line), count, flags);
  for (int k = threadIdx.x; k < count; k += blockDim.x) {
    s[matrix * count + k] = T(ldexp(values[k], state.exponent));
  }
  for (int index = threadIdx.x; scratch.squares_fit && index < size; index += blockDim.x) {
    global[1][index] = local[1][index], global[2][index] = local[2][index];
  }
}

// Where everything lies in the workspace, and how it is launched.
template <class T>
class Iteration {
 public:
  Iteration(const PartialSvdArgs& args, void* workspace, cudaStream_t stream,
            const GridLimits& limits)
      : args_(args),
        limits_(limits),
        base_(static_cast<unsigned char*>(workspace)),
        stream_(stream),
        rows_(args.rows),
        cols_(args.cols),
        rank_(args.rank) {
    const int64_t batch = args.batch, squares = batch * rank_ * rank_, lines = batch * rank_;
    inspected_ = int(std::min<int64_t>((args.rows * args.cols + kInspected - 1) / kInspected, 64));
    maxima_ = take<BitsOf<T>>(batch * inspected_);
    right_ = take<T>(batch * cols_ * rank_);
    left_ = take<T>(batch * rows_ * rank_);
    image_ = take<T>(batch * rows_ * rank_);
    const int slices = std::max(gram_slices(rows_, rank_), gram_slices(cols_, rank_));
    scratch_.sums = take<double>(squares * slices);
    for (double** square : {&scratch_.a, &scratch_.b, &scratch_.p}) *square = take<double>(squares);
    for (double** line : {&scratch_.inverse_lengths, &scratch_.remains, &scratch_.values}) {
      *line = take<double>(lines);
    }
    scratch_.fates = take<int>(lines);
    scratch_.states = take<MatrixState>(batch);
    scratch_.count = rank_;
    const size_t forward = product_partials(product(false, nullptr, nullptr, 0));
    const size_t backward = product_partials(product(true, nullptr, nullptr, 0));
    partials_ = take<unsigned char>(std::max(forward, backward));
  }

  size_t bytes() const { return used_; }

  cudaError_t run() {
    begin();
    orthonormalise(right_, right_, cols_, kNotFinite);
    for (int64_t step = 0; step < args_.iterations; ++step) {
      also(multiply(product(false, right_, left_, kZero), stream_));
      also(multiply(product(true, left_, right_, kZero), stream_));
      orthonormalise(right_, right_, cols_, kZero);
    }
    also(multiply(product(false, right_, image_, kNotFinite), stream_));
    orthonormalise(image_, left_, rows_, kNotFinite);
    finish();
    return error_;
  }

 private:
  static constexpr int64_t kInspected = 1 << 16;  // entries a block

  template <class U>
  U* take(int64_t count) {
    used_ = (used_ + 255) / 256 * 256;
    U* array = base_ ? reinterpret_cast<U*>(base_ + used_) : nullptr;
    used_ += size_t(count) * sizeof(U);
    return array;
  }

  void also(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }
  template <class Kernel, class... Args>
  void launch(Kernel kernel, int64_t grid, int threads, size_t shared, const Args&... args) {
    if (error_ == cudaSuccess) {
      error_ = dev::launch(kernel, dim3(grid), dim3(threads), shared, stream_, args...);
    }
  }

  PanelProduct product(bool transposed, const T* panel, T* out, int skipped) const {
    PanelProduct product{};
    product.batch = args_.batch, product.dtype = args_.dtype;
    product.rows = rows_, product.cols = cols_, product.count = rank_;
    product.transposed = transposed, product.x = args_.wide, product.panel = panel;
    product.out = out, product.partials = partials_;
    product.states = scratch_.states, product.skipped = skipped;
    return product;
  }

  // Latency rules here: more threads only where they have work.
  int threads() const { return rank_ > 96 ? kMostThreads : rank_ > 24 ? 256 : 128; }

  // Shared memory for `squares` squares where they fit; scratch says whether they do.
  size_t shared_for(int squares, Scratch* scratch) const {
    const size_t lines = rank_ * sizeof(double) + kMostThreads / kWarp * sizeof(int) + 64;
    const size_t all = lines + size_t(squares) * rank_ * rank_ * sizeof(double);
    scratch->squares_fit = all <= limits_.shared;
    return scratch->squares_fit ? all : lines;
  }

  void begin() {
    const int64_t size = args_.rows * args_.cols, slice = (size + inspected_ - 1) / inspected_;
    const T *wide = static_cast<const T*>(args_.wide), *start = static_cast<const T*>(args_.start);
    launch(inspect_kernel<T>, args_.batch * inspected_, kThreads, 256, wide, size, slice,
           inspected_, maxima_);
    launch(prepare_kernel<T>, args_.batch, kThreads, 256, maxima_, inspected_, start, cols_, rank_,
           right_, scratch_.states);
  }

  void orthonormalise(const T* from, T* to, int length, int skipped) {
    // Where one block would take long for a second pass, it is launched too.
    const int passes = int64_t(rank_) * rank_ * length > limits_.block_work ? 2 : 1;
    const int slices = gram_slices(length, rank_);
    Scratch scratch = scratch_;
    const size_t shared = shared_for(1, &scratch);
    for (int pass = 0; pass < passes; ++pass, from = to) {
      also(gram({args_.batch, length, rank_, args_.dtype, true, from, from, scratch_.sums,
                 scratch_.states, skipped, pass > 0},
                stream_));
      launch(factor_kernel<T>, args_.batch, threads(), shared, scratch, slices, pass, skipped);
      also(combine({args_.batch, length, rank_, args_.dtype, from, scratch_.a, to, scratch_.fates,
                    pass, scratch_.states},
                   stream_));
    }
    launch(rest_kernel<T>, args_.batch, threads(), shared, scratch, to, length, passes);
  }

  void finish() {
    also(gram({args_.batch, rows_, rank_, args_.dtype, false, image_, left_, scratch_.sums,
               scratch_.states, kNotFinite, false},
              stream_));
    Scratch scratch = scratch_;
    const size_t shared = shared_for(3, &scratch);
    launch(ritz_kernel<T>, args_.batch, threads(), shared, scratch, gram_slices(rows_, rank_),
           static_cast<T*>(args_.s));
    also(combine({args_.batch, rows_, rank_, args_.dtype, left_, scratch_.b, args_.u, nullptr, 0,
                  scratch_.states},
                 stream_));
    also(combine({args_.batch, cols_, rank_, args_.dtype, right_, scratch_.p, args_.v, nullptr, 0,
                  scratch_.states},
                 stream_));
  }

  const PartialSvdArgs& args_;
  const GridLimits limits_;
  unsigned char* base_;
  size_t used_ = 0;
  cudaStream_t stream_;
  int rows_, cols_, rank_, inspected_;
  BitsOf<T>* maxima_;
  T *right_, *left_, *image_;
  unsigned char* partials_ = nullptr;
  Scratch scratch_{};
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

size_t grid_workspace(const PartialSvdArgs& args) {
  return args.dtype == Dtype::kFloat64 ? Iteration<double>(args, nullptr, nullptr, {}).bytes()
                                       : Iteration<float>(args, nullptr, nullptr, {}).bytes();
}

cudaError_t grid(const PartialSvdArgs& args, void* workspace, cudaStream_t stream,
                 const GridLimits& limits) {
  return args.dtype == Dtype::kFloat64 ? Iteration<double>(args, workspace, stream, limits).run()
                                       : Iteration<float>(args, workspace, stream, limits).run();
}

}  // namespace svd

size_t partial_svd_workspace(const PartialSvdArgs& args) {
  return args.batch == 0 || svd::small_serves(args) ? 0 : svd::grid_workspace(args);
}

cudaError_t partial_svd(const PartialSvdArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  return svd::small_serves(args) ? svd::small(args, stream) : svd::grid(args, workspace, stream);
}

}  // namespace schattor::cuda

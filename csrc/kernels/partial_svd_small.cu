#include "partial_svd_paths.h"
#include "partial_svd_ritz.cuh"
#include "partial_svd_start.cuh"

namespace schattor::cuda::svd {
namespace {

constexpr int kMostThreads = 256, kLeastThreads = 64;

template <class T>
struct Arguments {
  const T* wide;
  const T* start;
  T* u;
  T* s;
  T* v;
  int rows, cols, rank, iterations;
};

// What a block keeps in shared memory.
template <class T>
struct Kept {
  T* x;  // rows of odd length, so that neither rows nor columns meet in one bank
  T* right;
  T* left;
  T* image;
  double *a, *b, *p, *line, *inverse_lengths, *remains, *values;
  int *fates, *flags;
  BitsOf<T>* maxima;
};

__host__ __device__ constexpr int lead_of(int cols) { return cols | 1; }

template <class T>
size_t shared_bytes(int64_t rows, int64_t cols, int64_t rank) {
  const int64_t entries = rows * (cols | 1) + (cols + 2 * rows) * rank;
  const int64_t numbers = 3 * rank * rank + 4 * rank;
  // Arrays begin at multiples of 16 bytes.
  return size_t(entries * sizeof(T) + numbers * 8 + rank * 4 +
                kMostThreads / kWarp * (4 + sizeof(T)) + 14 * 16);
}

template <class T>
DEV Kept<T> carve(dev::Carve& sm, const Arguments<T>& args) {
  const int rows = args.rows, cols = args.cols, rank = args.rank;
  Kept<T> kept;
  kept.x = sm.take<T>(rows * lead_of(cols));
  kept.right = sm.take<T>(cols * rank);
  kept.left = sm.take<T>(rows * rank);
  kept.image = sm.take<T>(rows * rank);
  for (double** square : {&kept.a, &kept.b, &kept.p}) *square = sm.take<double>(rank * rank);
  for (double** line : {&kept.line, &kept.inverse_lengths, &kept.remains, &kept.values}) {
    *line = sm.take<double>(rank);
  }
  kept.fates = sm.take<int>(rank);
  kept.flags = sm.take<int>(kMostThreads / kWarp);
  kept.maxima = sm.take<BitsOf<T>>(kMostThreads / kWarp);
  return kept;
}

// out (outer, count) = A panel, A's entry (i, j) at a[i * step_i + j * step_j]; a thread sums 2
// by 2.
template <class T>
DEV void block_multiply(const T* a, int step_i, int step_j, int outer, int inner, const T* panel,
                        int count, T* out) {
  const int across = dev::div_up(count, 2), down = dev::div_up(outer, 2);
  for (int tile = threadIdx.x; tile < across * down; tile += blockDim.x) {
    // The second of a pair repeats the first where there is none.
    const int i = tile / across * 2, k = tile % across * 2;
    const int di = i + 1 < outer ? step_i : 0, dk = k + 1 < count ? 1 : 0;
    const T *at = a + i * step_i, *vectors = panel + k;
    T sums[2][2] = {};
#pragma unroll 4
    for (int j = 0; j < inner; ++j, at += step_j, vectors += count) {
      const T a0 = at[0], a1 = at[di], b0 = vectors[0], b1 = vectors[dk];
      sums[0][0] += a0 * b0, sums[0][1] += a0 * b1;
      sums[1][0] += a1 * b0, sums[1][1] += a1 * b1;
    }
    for (int e = 0; e < 4; ++e) {
      if (i + e / 2 < outer && k + e % 2 < count)
        out[(i + e / 2) * count + k + e % 2] = sums[e / 2][e % 2];
    }
  }
  __syncthreads();
}

// kept.x = X / 2^exponent.
template <class T>
DEV MatrixState load_matrix(const Arguments<T>& args, const Kept<T>& kept) {
  const int64_t size = int64_t(args.rows) * args.cols, matrix = blockIdx.x;
  const T* x = args.wide + matrix * size;
  BitsOf<T> largest = 0;
  for (int64_t index = threadIdx.x; index < size; index += blockDim.x) {
    const BitsOf<T> bits = magnitude_bits(x[index]);
    largest = bits > largest ? bits : largest;
  }
  largest = block_max(largest, kept.maxima);
  const int64_t panel = int64_t(args.cols) * args.rank;
  const bool finite =
      load_start(args.start + matrix * panel, args.cols, args.rank, kept.right, kept.flags);
  const MatrixState state = state_of<T>(largest, finite);
  const Scaling<T> scaling(state.exponent);
  for (int i = threadIdx.x / kWarp; i < args.rows; i += blockDim.x / kWarp) {
    for (int j = threadIdx.x % kWarp; j < args.cols; j += kWarp) {
      kept.x[i * lead_of(args.cols) + j] = scaling(x[int64_t(i) * args.cols + j]);
    }
  }
  __syncthreads();
  return state;
}

// kept.b[k][l] = <image_k, left_l>.
template <class T>
DEV void project(const Arguments<T>& args, const Kept<T>& kept) {
  const int rank = args.rank;
  for (int index = threadIdx.x; index < rank * rank; index += blockDim.x) {
    const int k = index / rank, l = index % rank;
    double sum = 0;
    for (int i = 0; i < args.rows; ++i) {
      sum += double(kept.image[i * rank + k]) * double(kept.left[i * rank + l]);
    }
    kept.b[index] = sum;
  }
  __syncthreads();
}

// out (length, rank) = panel factors'.
template <class T>
DEV void combine(const T* panel, int length, int rank, const double* factors, T* out) {
  for (int64_t index = threadIdx.x; index < int64_t(length) * rank; index += blockDim.x) {
    const int j = index / rank, k = index % rank;
    double sum = 0;
    for (int l = 0; l < rank; ++l) sum += factors[k * rank + l] * double(panel[j * rank + l]);
    out[index] = T(sum);
  }
}

template <class T>
DEV void fill_nan(const Arguments<T>& args, T* u, T* s, T* v) {
  for (int64_t i = threadIdx.x; i < int64_t(args.rows) * args.rank; i += blockDim.x)
    u[i] = T(nan(""));
  for (int64_t i = threadIdx.x; i < int64_t(args.cols) * args.rank; i += blockDim.x)
    v[i] = T(nan(""));
  for (int i = threadIdx.x; i < args.rank; i += blockDim.x) s[i] = T(nan(""));
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 2)
    small_kernel(const __grid_constant__ Arguments<T> args) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  const Kept<T> kept = carve(sm, args);
  const int rows = args.rows, cols = args.cols, rank = args.rank, lead = lead_of(cols);
  const int64_t matrix = blockIdx.x;
  T *u = args.u + matrix * rows * rank, *s = args.s + matrix * rank;
  T* v = args.v + matrix * cols * rank;
  const MatrixState state = load_matrix(args, kept);
  if (state.mode == kNotFinite) {
    fill_nan(args, u, s, v);
    return;
  }
  const Factor factor{kept.a, kept.line, kept.inverse_lengths, kept.remains, kept.fates};
  const Panel<T> right{kept.right, rank, 1, cols, rank}, left{kept.left, rank, 1, rows, rank};
  block_orthonormalise(right, factor, 0);
  for (int step = 0; step < (state.mode == kZero ? 0 : args.iterations); ++step) {
    block_multiply(kept.x, lead, 1, rows, cols, kept.right, rank, kept.left);
    block_multiply(kept.x, 1, lead, cols, rows, kept.left, rank, kept.right);
    block_orthonormalise(right, factor, 0);
  }
  block_multiply(kept.x, lead, 1, rows, cols, kept.right, rank, kept.left);
  for (int i = threadIdx.x; i < rows * rank; i += blockDim.x) kept.image[i] = kept.left[i];
  __syncthreads();
  block_orthonormalise(left, factor, 0);
  project(args, kept);
  block_ritz(kept.b, kept.p, kept.values, factor, rank, kept.flags);
  combine(kept.left, rows, rank, kept.b, u);
  combine(kept.right, cols, rank, kept.p, v);
  for (int k = threadIdx.x; k < rank; k += blockDim.x)
    s[k] = T(ldexp(kept.values[k], state.exponent));
}

template <class T>
cudaError_t launch_small(const PartialSvdArgs& args, cudaStream_t stream) {
  const Arguments<T> a{static_cast<const T*>(args.wide),
                       static_cast<const T*>(args.start),
                       static_cast<T*>(args.u),
                       static_cast<T*>(args.s),
                       static_cast<T*>(args.v),
                       int(args.rows),
                       int(args.cols),
                       int(args.rank),
                       int(args.iterations)};
  // As many as tiles of the longer product.
  const int64_t tiles = (args.cols + 1) / 2 * ((args.rank + 1) / 2);
  const int threads = int(std::min<int64_t>(
      kMostThreads, std::max<int64_t>(kLeastThreads, (tiles + kWarp - 1) / kWarp * kWarp)));
  return dev::launch(small_kernel<T>, dim3(args.batch), dim3(threads),
                     shared_bytes<T>(args.rows, args.cols, args.rank), stream, a);
}

}  // namespace

bool small_serves(const PartialSvdArgs& args) {
  // The products alone bound the sides, so that nothing overflows below.
  if (args.rows * args.cols > int64_t(kMostShared) || args.rank > 128) return false;
  const size_t bytes = args.dtype == Dtype::kFloat64
                           ? shared_bytes<double>(args.rows, args.cols, args.rank)
                           : shared_bytes<float>(args.rows, args.cols, args.rank);
  return bytes <= kMostShared;
}

cudaError_t small(const PartialSvdArgs& args, cudaStream_t stream) {
  return args.dtype == Dtype::kFloat64 ? launch_small<double>(args, stream)
                                       : launch_small<float>(args, stream);
}

}  // namespace schattor::cuda::svd

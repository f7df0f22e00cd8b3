// Gram matrices and combinations of panels, in double, by tiles of 32 by 32 over the grid.
#include "partial_svd_block.cuh"
#include "partial_svd_panels.h"

namespace schattor::cuda::svd {
namespace {

constexpr int kTile = 32, kLead = kTile + 1;
constexpr int kAcross = 8, kThreads = kAcross * kAcross;  // a thread sums kEach by kEach,
constexpr int kEach = kTile / kAcross;                    // kAcross apart
constexpr size_t kShared = 2 * kTile * kLead * sizeof(double);

// sums[i][j] += <a, b> over the first index of both tiles, entries (down + kAcross i, across +
// kAcross j).
DEV void multiply_tiles(const double* a, const double* b, double (&sums)[kEach][kEach]) {
  const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
#pragma unroll 8
  for (int depth = 0; depth < kTile; ++depth) {
    double row_a[kEach], row_b[kEach];
    for (int e = 0; e < kEach; ++e) {
      row_a[e] = a[depth * kLead + down + e * kAcross];
      row_b[e] = b[depth * kLead + across + e * kAcross];
    }
    for (int i = 0; i < kEach; ++i) {
      for (int j = 0; j < kEach; ++j) sums[i][j] += row_a[i] * row_b[j];
    }
  }
}

// tile[r][c] = source[(row + r) * ld + col + c], or tile[c][r] if turned; zero outside.
template <class T>
DEV void load_tile(const T* source, int ld, int row, int rows, int col, int cols, bool turned,
                   double* tile) {
  for (int index = threadIdx.x; index < kTile * kTile; index += kThreads) {
    const int r = index / kTile, c = index % kTile;
    const bool inside = row + r < rows && col + c < cols;
    tile[turned ? c * kLead + r : r * kLead + c] =
        inside ? double(source[int64_t(row + r) * ld + col + c]) : 0.0;
  }
}

template <class T>
struct GramArguments {
  const T* x;
  const T* y;
  double* sums;
  const MatrixState* states;
  int length, count, slices, slice, tiles, skipped;
  bool lower, pending_only;
};

// Tile t of a square of them, or of its lower triangle.
DEV void tile_place(int t, int across, bool lower, int* k, int* l) {
  *k = 0;
  for (int width = lower ? 1 : across; t >= width; width += lower ? 1 : 0) t -= width, ++*k;
  *l = t;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gram_kernel(const __grid_constant__ GramArguments<T> args) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  int64_t block = blockIdx.x;
  const int tile = int(block % args.tiles), slice = int(block / args.tiles % args.slices);
  const int64_t matrix = block / args.tiles / args.slices;
  const MatrixState& state = args.states[matrix];
  if (state.mode >= args.skipped || (args.pending_only && !state.pending)) return;
  double *a = sm.take<double>(kTile * kLead), *b = sm.take<double>(kTile * kLead);
  const int count = args.count, begin = slice * args.slice;
  const int end = min(args.length, begin + args.slice);
  int k0, l0;
  tile_place(tile, dev::div_up(count, kTile), args.lower, &k0, &l0);
  k0 *= kTile, l0 *= kTile;
  const int64_t offset = matrix * args.length * count;
  double sums[kEach][kEach] = {};
  for (int j = begin; j < end; j += kTile) {
    load_tile(args.x + offset, count, j, end, k0, count, false, a);
    load_tile(args.y + offset, count, j, end, l0, count, false, b);
    __syncthreads();
    multiply_tiles(a, b, sums);
    __syncthreads();
  }
  double* out = args.sums + (matrix * args.slices + slice) * count * count;
  for (int i = 0; i < kEach; ++i) {
    for (int j = 0; j < kEach; ++j) {
      const int k = k0 + int(threadIdx.x) / kAcross + i * kAcross;
      const int l = l0 + int(threadIdx.x) % kAcross + j * kAcross;
      if (k < count && l < count) out[int64_t(k) * count + l] = sums[i][j];
    }
  }
}

template <class T>
struct CombinationArguments {
  const T* panel;
  const double* factors;
  T* out;
  const int* fates;
  const MatrixState* states;
  int length, count, strips, pass;
};

// A strip of kTile entries of all vectors, the last vectors first: with lower triangular factors
// none is read after it was written, and the strip may be written in place.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ CombinationArguments<T> args) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  const int64_t matrix = blockIdx.x / args.strips;
  const int count = args.count, j0 = int(blockIdx.x % args.strips) * kTile;
  const MatrixState& state = args.states[matrix];
  const bool triangular = args.fates != nullptr, finite = state.mode != kNotFinite;
  if (triangular && !state.active) return;
  double *a = sm.take<double>(kTile * kLead), *b = sm.take<double>(kTile * kLead);
  const int64_t offset = matrix * args.length * count;
  const double* factors = args.factors + matrix * count * count;
  for (int k0 = (count - 1) / kTile * kTile; k0 >= 0; k0 -= kTile) {
    double sums[kEach][kEach] = {};
    const int end = !finite ? 0 : triangular ? min(count, k0 + kTile) : count;
    for (int l = 0; l < end; l += kTile) {
      load_tile(args.panel + offset, count, j0, args.length, l, count, true, a);
      load_tile(factors, count, k0, count, l, count, true, b);
      __syncthreads();
      if (triangular && l == k0) {
        for (int index = threadIdx.x; index < kTile * kTile; index += kThreads) {
          const int r = index / kTile, c = index % kTile;  // factor of vector c for vector r
          if (r > c) b[r * kLead + c] = 0;
        }
        __syncthreads();
      }
      multiply_tiles(a, b, sums);
      __syncthreads();
    }
    for (int i = 0; i < kEach; ++i) {
      for (int j = 0; j < kEach; ++j) {
        const int entry = j0 + int(threadIdx.x) / kAcross + i * kAcross;
        const int k = k0 + int(threadIdx.x) % kAcross + j * kAcross;
        if (entry >= args.length || k >= count) continue;
        double value = sums[i][j];
        if (!finite) value = nan("");
        if (triangular && args.fates[matrix * count + k] == kReplaced) {
          value = scattered(k, entry, args.pass);
        }
        args.out[offset + int64_t(entry) * count + k] = T(value);
      }
    }
  }
}

template <class T>
cudaError_t launch_gram(const PanelGram& g, cudaStream_t stream) {
  GramArguments<T> args{};
  args.x = static_cast<const T*>(g.x), args.y = static_cast<const T*>(g.y), args.sums = g.sums;
  args.states = g.states, args.length = g.length, args.count = g.count;
  args.slices = gram_slices(g.length, g.count);
  args.slice = dev::div_up(g.length, args.slices);
  const int across = dev::div_up(g.count, kTile);
  args.tiles = g.lower ? across * (across + 1) / 2 : across * across;
  args.skipped = g.skipped, args.lower = g.lower, args.pending_only = g.pending_only;
  return dev::launch(gram_kernel<T>, dim3(g.batch * args.slices * args.tiles), dim3(kThreads),
                     kShared, stream, args);
}

template <class T>
cudaError_t launch_combination(const PanelCombination& c, cudaStream_t stream) {
  CombinationArguments<T> args{};
  args.panel = static_cast<const T*>(c.panel), args.factors = c.factors;
  args.out = static_cast<T*>(c.out), args.fates = c.fates, args.states = c.states;
  args.length = c.length, args.count = c.count, args.pass = c.pass;
  args.strips = dev::div_up(c.length, kTile);
  return dev::launch(combine_kernel<T>, dim3(c.batch * args.strips), dim3(kThreads), kShared,
                     stream, args);
}

}  // namespace

int gram_slices(int length, int count) {
  constexpr int kWantedBlocks = 64, kLeastSlice = 256;
  const int across = dev::div_up(count, kTile), tiles = across * (across + 1) / 2;
  return std::max(1, std::min(kWantedBlocks / tiles, length / kLeastSlice));
}

cudaError_t gram(const PanelGram& args, cudaStream_t stream) {
  return args.dtype == Dtype::kFloat64 ? launch_gram<double>(args, stream)
                                       : launch_gram<float>(args, stream);
}

cudaError_t combine(const PanelCombination& args, cudaStream_t stream) {
  return args.dtype == Dtype::kFloat64 ? launch_combination<double>(args, stream)
                                       : launch_combination<float>(args, stream);
}

}  // namespace schattor::cuda::svd

// X V and X'Y, X large and V, Y panels, by FMA in the dtype of X.
//
// A block makes a tile of kTileM entries by kTileN vectors. Depth by depth the next tiles of X and
// of the panel wait in registers while the present ones are multiplied from shared memory. Both
// products keep X with the summed index first, so that the inner loop is one and the same.
#include "partial_svd.cuh"
#include "partial_svd_panels.h"

namespace schattor::cuda::svd {
namespace {

constexpr int kThreads = 128;

// A thread's share of the tile is kEachM by kEachN.
template <class T, int kN, int kM, int kEn>
struct Tiling {
  static constexpr int kTileN = kN, kEachM = kM, kEachN = kEn;
  static constexpr int kAcross = kTileN / kEachN, kTileM = kThreads / kAcross * kEachM;
  static constexpr int kDepth = 64 / sizeof(T);
  // Rows of the tile of X start at multiples of 16 bytes, and not all in one bank.
  static constexpr int kLead = kTileM + 16 / int(sizeof(T));
  static constexpr int kShareX = kTileM * kDepth / kThreads;
  static constexpr int kShareV = kTileN * kDepth / kThreads;
  static constexpr size_t kShared = 2 * kDepth * (kLead + kTileN) * sizeof(T);
};
template <class T>
using Narrow = Tiling<T, 16, 4, 4>;
template <class T>
using Middle = Tiling<T, 32, sizeof(T) == 4 ? 8 : 4, 4>;
template <class T>
using Broad = Tiling<T, 64, sizeof(T) == 4 ? 8 : 4, 8>;

template <class T>
struct Arguments {
  const T* x;
  const T* panel;
  T* out;  // (batch, slices, outer, count)
  const MatrixState* states;
  int rows, cols, count, outer, inner;
  int slices, slice, tiles_m, tiles_n;  // slice: entries of the inner side
  int skipped;
};

template <class T, int kSize>
DEV void load_fragment(T (&fragment)[kSize], const T* shared) {
  constexpr int kPack = 16 / sizeof(T);
  struct alignas(16) Pack {
    T entries[kPack];
  };
  for (int i = 0; i < kSize; i += kPack) {
    const Pack pack = *reinterpret_cast<const Pack*>(shared + i);
    for (int e = 0; e < kPack; ++e) fragment[i + e] = pack.entries[e];
  }
}

// Where a block works: entries from m of vectors from n, over inner entries in [begin, end).
struct Place {
  int64_t matrix;
  int slice, m, n, begin, end;
};

template <class Tiles, class T>
DEV Place place_of(const Arguments<T>& args) {
  int64_t block = blockIdx.x;
  Place place;
  place.n = int(block % args.tiles_n) * Tiles::kTileN, block /= args.tiles_n;
  place.m = int(block % args.tiles_m) * Tiles::kTileM, block /= args.tiles_m;
  place.slice = int(block % args.slices), place.matrix = block / args.slices;
  place.begin = place.slice * args.slice;
  place.end = min(args.inner, place.begin + args.slice);
  return place;
}

// A thread's share of the next tiles, on its way through registers. Consecutive threads follow
// memory, and each takes entries that are one stride apart.
template <class Tiles, class T, bool kTransposed>
class Stage {
 public:
  DEV Stage(const Arguments<T>& args, const Place& place)
      : place_(place),
        m_left_(args.outer - place.m - first_m()),
        n_inside_(place.n + first_n() < args.count) {
    const int depth_x = place.begin + first_depth(), depth_v = place.begin + first_depth_v();
    const int64_t line = kTransposed ? depth_x : place.m + first_m();
    const int64_t entry = kTransposed ? place.m + first_m() : depth_x;
    x_ = args.x + (place.matrix * args.rows + line) * args.cols + entry;
    v_ = args.panel + (place.matrix * args.inner + depth_v) * args.count + place.n + first_n();
    step_x_ = int64_t(kStrideX) * args.cols;
    step_v_ = int64_t(kStrideV) * args.count;
    next_x_ = kTransposed ? int64_t(Tiles::kDepth) * args.cols : Tiles::kDepth;
  }

  // The tiles from `begin` on; every call goes one tile further.
  DEV void load(int begin) {
    const int depth_left = place_.end - begin - first_depth();
    const int limit = kTransposed ? (m_left_ > 0 ? depth_left : 0) : (depth_left > 0 ? m_left_ : 0);
    const T* at = x_;
#pragma unroll
    for (int i = 0; i < Tiles::kShareX; ++i, at += step_x_) {
      loaded_x_[i] = i * kStrideX < limit ? *at : T(0);
    }
    x_ += next_x_;
    const int limit_v = n_inside_ ? place_.end - begin - first_depth_v() : 0;
#pragma unroll
    for (int i = 0; i < Tiles::kShareV; ++i, v_ += step_v_) {
      loaded_v_[i] = i * kStrideV < limit_v ? *v_ : T(0);
    }
  }

  DEV void store(const Scaling<T>& scaling, T* shared_x, T* shared_v) const {
    constexpr int kStep = kStrideX * (kTransposed ? Tiles::kLead : 1);
    T* at = shared_x + first_depth() * Tiles::kLead + first_m();
#pragma unroll
    for (int i = 0; i < Tiles::kShareX; ++i) at[i * kStep] = scaling(loaded_x_[i]);
#pragma unroll
    for (int i = 0; i < Tiles::kShareV; ++i)
      shared_v[int(threadIdx.x) + i * kThreads] = loaded_v_[i];
  }

 private:
  // In depth if transposed, else in m.
  static constexpr int kStrideX = kThreads / (kTransposed ? Tiles::kTileM : Tiles::kDepth);
  static constexpr int kStrideV = kThreads / Tiles::kTileN;
  DEV static int first_depth() {
    return kTransposed ? threadIdx.x / Tiles::kTileM : threadIdx.x % Tiles::kDepth;
  }
  DEV static int first_m() {
    return kTransposed ? threadIdx.x % Tiles::kTileM : threadIdx.x / Tiles::kDepth;
  }
  DEV static int first_n() { return threadIdx.x % Tiles::kTileN; }
  DEV static int first_depth_v() { return threadIdx.x / Tiles::kTileN; }

  const Place place_;
  const int m_left_;
  const bool n_inside_;
  const T *x_, *v_;
  int64_t step_x_, step_v_, next_x_;
  T loaded_x_[Tiles::kShareX], loaded_v_[Tiles::kShareV];
};

template <class Tiles, class T>
DEV void multiply_tiles(const T* x, const T* v, T (&sums)[Tiles::kEachM][Tiles::kEachN]) {
#pragma unroll
  for (int depth = 0; depth < Tiles::kDepth; ++depth) {
    T a[Tiles::kEachM], b[Tiles::kEachN];
    load_fragment(a, x + depth * Tiles::kLead + threadIdx.x / Tiles::kAcross * Tiles::kEachM);
    load_fragment(b, v + depth * Tiles::kTileN + threadIdx.x % Tiles::kAcross * Tiles::kEachN);
#pragma unroll
    for (int i = 0; i < Tiles::kEachM; ++i) {
#pragma unroll
      for (int j = 0; j < Tiles::kEachN; ++j) sums[i][j] += a[i] * b[j];
    }
  }
}

template <class Tiles, class T>
DEV void store_sums(const Arguments<T>& args, const Place& place,
                    const T (&sums)[Tiles::kEachM][Tiles::kEachN]) {
  T* out = args.out + (place.matrix * args.slices + place.slice) * args.outer * args.count;
  const int m0 = place.m + int(threadIdx.x) / Tiles::kAcross * Tiles::kEachM;
  const int n0 = place.n + int(threadIdx.x) % Tiles::kAcross * Tiles::kEachN;
#pragma unroll
  for (int i = 0; i < Tiles::kEachM; ++i) {
#pragma unroll
    for (int j = 0; j < Tiles::kEachN; ++j) {
      const int m = m0 + i, n = n0 + j;
      if (m < args.outer && n < args.count) out[int64_t(m) * args.count + n] = sums[i][j];
    }
  }
}

template <class Tiles, class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    product_kernel(const __grid_constant__ Arguments<T> args) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  const Place place = place_of<Tiles>(args);
  const MatrixState& state = args.states[place.matrix];
  if (state.mode >= args.skipped) return;
  const Scaling<T> scaling(state.exponent);
  constexpr int kSizeX = Tiles::kDepth * Tiles::kLead, kSizeV = Tiles::kDepth * Tiles::kTileN;
  T *x = sm.take<T>(2 * kSizeX), *v = sm.take<T>(2 * kSizeV);
  T sums[Tiles::kEachM][Tiles::kEachN] = {};
  Stage<Tiles, T, kTransposed> stage(args, place);
  stage.load(place.begin);
  stage.store(scaling, x, v);
  __syncthreads();
  int now = 0;
  for (int begin = place.begin; begin < place.end; begin += Tiles::kDepth, now ^= 1) {
    const bool more = begin + Tiles::kDepth < place.end;
    if (more) stage.load(begin + Tiles::kDepth);
    multiply_tiles<Tiles>(x + now * kSizeX, v + now * kSizeV, sums);
    if (more) stage.store(scaling, x + (now ^ 1) * kSizeX, v + (now ^ 1) * kSizeV);
    __syncthreads();
  }
  store_sums<Tiles>(args, place, sums);
}

// out (batch, size) = the sums over slices of partials (batch, slices, size).
template <class T>
__global__ void __launch_bounds__(256)
    add_slices_kernel(const T* partials, T* out, int64_t size, int slices, int blocks,
                      const MatrixState* states, int skipped) {
  const int64_t matrix = blockIdx.x / blocks;
  if (states[matrix].mode >= skipped) return;
  const int64_t index = int64_t(blockIdx.x % blocks) * blockDim.x + threadIdx.x;
  if (index >= size) return;
  const T* first = partials + matrix * slices * size + index;
  double sum = 0;
  for (int slice = 0; slice < slices; ++slice) sum += double(first[slice * size]);
  out[matrix * size + index] = T(sum);
}

// Enough blocks for a device where the outer side gives too few, and slices worth their sums.
constexpr int kWantedBlocks = 512, kLeastSlice = 256, kMostSlices = 32;

template <class Tiles, class T>
Arguments<T> arguments(const PanelProduct& product) {
  Arguments<T> args{};
  args.rows = product.rows, args.cols = product.cols, args.count = product.count;
  args.outer = product.transposed ? product.cols : product.rows;
  args.inner = product.transposed ? product.rows : product.cols;
  args.tiles_m = dev::div_up(args.outer, Tiles::kTileM);
  args.tiles_n = dev::div_up(args.count, Tiles::kTileN);
  const int wanted = dev::div_up(kWantedBlocks, args.tiles_m * args.tiles_n);
  const int worth = args.inner / kLeastSlice;
  const int slices = std::max(1, std::min(std::min(wanted, worth), kMostSlices));
  args.slice = dev::div_up(dev::div_up(args.inner, slices), Tiles::kDepth) * Tiles::kDepth;
  args.slices = dev::div_up(args.inner, args.slice);
  args.x = static_cast<const T*>(product.x), args.panel = static_cast<const T*>(product.panel);
  args.out = static_cast<T*>(args.slices > 1 ? product.partials : product.out);
  args.states = product.states, args.skipped = product.skipped;
  return args;
}

// Calls body(Tiles, T) of the product's dtype and count.
template <class T, class Body>
auto with_tiling(const PanelProduct& product, const Body& body) {
  if (product.count <= Narrow<T>::kTileN) return body(Narrow<T>(), T());
  if (product.count <= Middle<T>::kTileN) return body(Middle<T>(), T());
  return body(Broad<T>(), T());
}
template <class Body>
auto with_types(const PanelProduct& product, const Body& body) {
  return product.dtype == Dtype::kFloat64 ? with_tiling<double>(product, body)
                                          : with_tiling<float>(product, body);
}

template <class Tiles, class T>
cudaError_t launch_product(const PanelProduct& product, cudaStream_t stream) {
  const Arguments<T> args = arguments<Tiles, T>(product);
  const int64_t grid = product.batch * args.slices * args.tiles_m * args.tiles_n;
  const auto kernel =
      product.transposed ? product_kernel<Tiles, T, true> : product_kernel<Tiles, T, false>;
  const cudaError_t error =
      dev::launch(kernel, dim3(grid), dim3(kThreads), Tiles::kShared, stream, args);
  if (error != cudaSuccess || args.slices == 1) return error;
  const int64_t size = int64_t(args.outer) * args.count;
  const int blocks = int((size + 255) / 256);
  return dev::launch(add_slices_kernel<T>, dim3(product.batch * blocks), dim3(256), 0, stream,
                     args.out, static_cast<T*>(product.out), size, args.slices, blocks,
                     product.states, product.skipped);
}

}  // namespace

size_t product_partials(const PanelProduct& product) {
  return with_types(product, [&](auto tiles, auto zero) {
    const auto args = arguments<decltype(tiles), decltype(zero)>(product);
    if (args.slices == 1) return size_t(0);
    return size_t(product.batch) * args.slices * args.outer * args.count * sizeof(zero);
  });
}

cudaError_t multiply(const PanelProduct& product, cudaStream_t stream) {
  return with_types(product, [&](auto tiles, auto zero) {
    return launch_product<decltype(tiles), decltype(zero)>(product, stream);
  });
}

}  // namespace schattor::cuda::svd

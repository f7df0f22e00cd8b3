// The chain of long thin matrices, on the Gram side: R = XX' summed all but exactly, the small side
// solved in one block (chain_thin_side.cuh), direction = S X. The restarts that args lists are for
// half precision, or float, on the small side, and are of no account here.
//
// One launch, one block a matrix, where X fits a block's shared memory: X is read once. Else four:
// Gram matrices of panels of columns, the small side, S X by panels, and the sums of the products.
//
// Floor for 448 float16 matrices of 4096 x 16: 117 MB read and written, 27 us at 4.3 TB/s.
#include <algorithm>

#include "chain_thin.h"
#include "chain_thin_side.cuh"

namespace schattor::cuda::thin {
namespace {

struct Params {
  const void* wide;
  Direction direction;
  const double *weights, *powers;
  int64_t batch;
  int rows, cols;
  int panel_cols, panels;
  bool aligned;
  double* grams;      // (batch, panels, side, side), lower triangles
  float* sides;       // (batch, side, side_ld): S
  Overlap* overlaps;  // (batch, panels)
  Steps steps;
};

// One panel of one matrix: its columns in global and in shared memory.
template <class T>
struct Slice {
  Rows<const T> wide;
  Rows<T> direction;
  int ld;  // in shared memory

  DEV Slice(const Params& p, int64_t matrix, int panel) {
    const int64_t begin = matrix * p.rows * p.cols + int64_t{panel} * p.panel_cols;
    const int cols = min(p.panel_cols, p.cols - panel * p.panel_cols);
    wide = {static_cast<const T*>(p.wide) + begin, p.cols, p.rows, cols, p.aligned};
    direction = {static_cast<T*>(p.direction.data) + begin, p.cols, p.rows, cols, p.aligned};
    ld = dev::div_up(cols, kChunk<T>) * kChunk<T>;
  }
  DEV void load(T* to) const { on_chip::load_matrix(wide, padded_rows(wide.rows), ld, to, ld); }
  DEV Panel<T> in(const T* data) const { return {data, ld, wide.rows, ld / kChunk<T>}; }
};

DEV Matrices<double> take_matrices(dev::Carve& memory, int side) {
  Matrices<double> m;
  m.r = memory.take<double>(side * side);
  m.z = memory.take<double>(side * side);
  m.q = memory.take<double>(side * side);
  return m;
}

// The number of entries of a panel in shared memory.
template <class T>
constexpr int panel_size(int rows, int panel_cols) {
  return padded_rows(rows) * dev::div_up(panel_cols, kChunk<T>) * kChunk<T>;
}

DEV Overlap block_overlap(const Overlap& overlap, double* scratch) {
  return {block_sum(overlap.inner, scratch), block_sum(overlap.square, scratch)};
}

DEV void put_overlap(const Params& p, int64_t matrix, const Overlap& overlap) {
  p.direction.inner[matrix] = overlap.inner;
  p.direction.square[matrix] = overlap.square;
}

// ---- One launch. ----

template <class T>
__global__ void __launch_bounds__(kThreads, 1) whole(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  const int side = padded_rows(p.rows), s_ld = padded_side(p.rows), parts = parts_of(p.rows);
  T* x = memory.take<T>(panel_size<T>(p.rows, p.cols));
  const Matrices<double> m = take_matrices(memory, side);
  float* s = memory.take<float>(side * s_ld);
  double* scratch = memory.take<double>(kWarps);
  const int64_t matrix = blockIdx.x;
  const Slice<T> slice(p, matrix, 0);
  slice.load(x);
  for (int i = threadIdx.x; i < side * (s_ld - side); i += kThreads) {
    s[i / (s_ld - side) * s_ld + side + i % (s_ld - side)] = 0;
  }
  __syncthreads();
  gram(slice.in(x), side, parts, m);
  __syncthreads();
  if (parts > 1) {
    for (int i = threadIdx.x; i < side * side; i += kThreads) {
      if (i % side <= i / side) m.r[i] += m.z[i] + m.q[i];
    }
    __syncthreads();
  }
  const double* weights = p.weights + matrix * (p.steps.depth + 1);
  solve_any(p.steps, side, weights, p.powers[matrix], m, scratch, s, s_ld);
  __syncthreads();
  const Overlap overlap = block_overlap(apply(slice.in(x), s, s_ld, slice.direction), scratch);
  if (threadIdx.x == 0) put_overlap(p, matrix, overlap);
}

// ---- By panels. ----

template <class T>
__global__ void __launch_bounds__(kThreads) panel_grams(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  const int side = padded_rows(p.rows);
  T* x = memory.take<T>(panel_size<T>(p.rows, p.panel_cols));
  const Slice<T> slice(p, blockIdx.x, blockIdx.y);
  slice.load(x);
  __syncthreads();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * p.panels + blockIdx.y;
  gram(slice.in(x), side, 1, {p.grams + index * side * side, nullptr, nullptr});
}

__global__ void __launch_bounds__(kThreads, 1) small_side(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  const int side = padded_rows(p.rows), s_ld = padded_side(p.rows);
  const Matrices<double> m = take_matrices(memory, side);
  double* scratch = memory.take<double>(kWarps);
  const int64_t matrix = blockIdx.x;
  const double* grams = p.grams + matrix * p.panels * side * side;
  for (int i = threadIdx.x; i < side * side; i += kThreads) {
    if (i % side > i / side) continue;
    double sum = 0;
    for (int panel = 0; panel < p.panels; ++panel) {
      sum += grams[static_cast<int64_t>(panel) * side * side + i];
    }
    m.r[i] = sum;
  }
  __syncthreads();
  const double* weights = p.weights + matrix * (p.steps.depth + 1);
  solve_any(p.steps, side, weights, p.powers[matrix], m, scratch, p.sides + matrix * side * s_ld,
            s_ld);
}

template <class T>
__global__ void __launch_bounds__(kThreads) panel_directions(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  const int side = padded_rows(p.rows), s_ld = padded_side(p.rows);
  T* x = memory.take<T>(panel_size<T>(p.rows, p.panel_cols));
  float* s = memory.take<float>(side * s_ld);
  double* scratch = memory.take<double>(kWarps);
  const int64_t matrix = blockIdx.x;
  const Slice<T> slice(p, matrix, blockIdx.y);
  slice.load(x);
  for (int i = threadIdx.x; i < p.rows * s_ld; i += kThreads) {
    s[i] = i % s_ld < side ? p.sides[matrix * side * s_ld + i] : 0;
  }
  __syncthreads();
  const Overlap overlap = block_overlap(apply(slice.in(x), s, s_ld, slice.direction), scratch);
  if (threadIdx.x == 0) p.overlaps[matrix * p.panels + blockIdx.y] = overlap;
}

__global__ void __launch_bounds__(kThreads) sum_overlaps(const __grid_constant__ Params p) {
  const int64_t matrix = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (matrix >= p.batch) return;
  Overlap sum;
  for (int panel = 0; panel < p.panels; ++panel) {
    sum.inner += p.overlaps[matrix * p.panels + panel].inner;
    sum.square += p.overlaps[matrix * p.panels + panel].square;
  }
  put_overlap(p, matrix, sum);
}

// ---- Host. ----

constexpr int64_t kPanelBytes = 48 << 10;  // several panels then share a multiprocessor
constexpr int64_t kMostPanels = 65535;     // gridDim.y
constexpr int kLeastAspect = 8;

// Of one matrix or its panels, and of one block.
struct Layout {
  int rows, side, s_ld, element;
  int64_t cols, panel_cols, panels;

  explicit Layout(const ChainArgs& args)
      : rows(static_cast<int>(args.rows)),
        side(padded_rows(rows)),
        s_ld(padded_side(rows)),
        element(args.dtype == Dtype::kFloat32 ? 4 : 2),
        cols(args.cols) {
    const int64_t sweep = kWarp * 16 / element;  // columns that a warp takes at a time
    panel_cols = std::max<int64_t>(1, kPanelBytes / (side * element) / sweep) * sweep;
    panels = (cols + panel_cols - 1) / panel_cols;
  }

  int64_t matrix_bytes() const { return 3 * int64_t{side} * side * int64_t{sizeof(double)}; }
  int64_t s_bytes() const { return int64_t{side} * s_ld * int64_t{sizeof(float)}; }
  int64_t x_bytes(int64_t columns) const { return side * (columns * element + 16); }
  static constexpr int64_t kScratchBytes = kWarps * sizeof(double) + 64;

  int64_t whole_bytes() const { return x_bytes(cols) + matrix_bytes() + s_bytes() + kScratchBytes; }
  int64_t side_bytes() const { return matrix_bytes() + kScratchBytes; }
  int64_t panel_bytes() const { return x_bytes(panel_cols) + s_bytes() + kScratchBytes; }

  bool is_whole(const DeviceFacts& facts) const { return whole_bytes() <= facts.shared_bytes; }
  bool has_panels(const DeviceFacts& facts) const {
    return panels <= kMostPanels &&
           std::max(side_bytes(), panel_bytes()) <= int64_t{facts.shared_bytes};
  }
};

// What the panels leave for the launches after them, one after the other in the workspace.
struct Pieces {
  int64_t grams, sides, overlaps;
  Pieces(const Layout& layout, int64_t batch)
      : grams(batch * layout.panels * layout.side * layout.side * int64_t{sizeof(double)}),
        sides((batch * layout.s_bytes() + 15) / 16 * 16),
        overlaps(batch * layout.panels * int64_t{sizeof(Overlap)}) {}
  size_t bytes() const { return static_cast<size_t>(grams + sides + overlaps); }
};

Params params_of(const ChainArgs& args) {
  Params p{};
  p.wide = args.wide, p.direction = args.direction;
  p.weights = args.weights, p.powers = args.powers, p.batch = args.batch;
  p.rows = static_cast<int>(args.rows), p.cols = static_cast<int>(args.cols);
  p.panel_cols = p.cols, p.panels = 1;
  const auto aligned = [&](const void* data) {
    return args.dtype == Dtype::kFloat32 ? on_chip::has_aligned_rows<float>(data, args.cols)
                                         : on_chip::has_aligned_rows<__half>(data, args.cols);
  };
  p.aligned = aligned(args.wide) && aligned(args.direction.data);
  p.steps.depth = args.depth;
  for (int k = 0; k < args.depth; ++k) {
    p.steps.a[k] = args.steps[3 * k];
    p.steps.b[k] = args.steps[3 * k + 1];
    p.steps.c[k] = args.steps[3 * k + 2];
  }
  return p;
}

template <class T>
cudaError_t run_whole(const Layout& layout, const ChainArgs& args, cudaStream_t stream) {
  return dev::launch(whole<T>, dim3(static_cast<unsigned>(args.batch)), dim3(kThreads),
                     static_cast<size_t>(layout.whole_bytes()), stream, params_of(args));
}

template <class T>
cudaError_t run_panels(const Layout& layout, const ChainArgs& args, void* workspace,
                       cudaStream_t stream) {
  Params p = params_of(args);
  p.panel_cols = static_cast<int>(layout.panel_cols), p.panels = static_cast<int>(layout.panels);
  const Pieces pieces(layout, args.batch);
  char* memory = static_cast<char*>(workspace);
  p.grams = reinterpret_cast<double*>(memory);
  p.sides = reinterpret_cast<float*>(memory + pieces.grams);
  p.overlaps = reinterpret_cast<Overlap*>(memory + pieces.grams + pieces.sides);
  const unsigned batch = static_cast<unsigned>(args.batch);
  const dim3 grid(batch, static_cast<unsigned>(layout.panels)), block(kThreads);
  const size_t panel_bytes = static_cast<size_t>(layout.panel_bytes());
  cudaError_t error = dev::launch(panel_grams<T>, grid, block, panel_bytes, stream, p);
  if (error != cudaSuccess) return error;
  error = dev::launch(small_side, dim3(batch), block, static_cast<size_t>(layout.side_bytes()),
                      stream, p);
  if (error != cudaSuccess) return error;
  error = dev::launch(panel_directions<T>, grid, block, panel_bytes, stream, p);
  if (error != cudaSuccess) return error;
  return dev::launch(sum_overlaps, dim3((batch - 1) / kThreads + 1), block, 0, stream, p);
}

template <class T>
cudaError_t run_as(const ChainArgs& args, const DeviceFacts& facts, void* workspace,
                   cudaStream_t stream) {
  const Layout layout(args);
  if (layout.is_whole(facts)) return run_whole<T>(layout, args, stream);
  return run_panels<T>(layout, args, workspace, stream);
}

}  // namespace

bool serves(const ChainArgs& args, const DeviceFacts& facts) {
  if (args.dtype == Dtype::kFloat64 || args.depth < 1 || args.depth > kMostSteps) return false;
  if (args.rows < 1 || args.rows > kMostRows || args.cols < kLeastAspect * args.rows) return false;
  if (args.batch > INT32_MAX || args.cols > INT32_MAX / kMostRows) return false;
  const Layout layout(args);
  return layout.is_whole(facts) || layout.has_panels(facts);
}

size_t workspace(const ChainArgs& args, const DeviceFacts& facts) {
  const Layout layout(args);
  return layout.is_whole(facts) ? 0 : Pieces(layout, args.batch).bytes();
}

cudaError_t run(const ChainArgs& args, const DeviceFacts& facts, void* workspace,
                cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  if (args.dtype == Dtype::kFloat16) return run_as<__half>(args, facts, workspace, stream);
  if (args.dtype == Dtype::kBFloat16) return run_as<__nv_bfloat16>(args, facts, workspace, stream);
  return run_as<float>(args, facts, workspace, stream);
}

cudaError_t run(const ChainArgs& args, void* workspace, cudaStream_t stream) {
  DeviceFacts facts;
  const cudaError_t error = device_facts(&facts);
  return error != cudaSuccess ? error : run(args, facts, workspace, stream);
}

}  // namespace schattor::cuda::thin

// The CUDA kernels: the whole API on one page. Knows nothing of torch.
//
// Everything works on a *wide batch*: one contiguous array (batch, rows, cols) of matrices of one
// shape, rows <= cols; a taller matrix enters transposed, which is only another pair of strides.
// Pointers are to device memory unless a comment says host. Numbers that may change between replays
// of a captured graph (momentum, weights, powers, scale, decay) are read on the device; the host
// reads nothing back, allocates nothing and waits for nothing. Functions enqueue on a stream and
// return the first error of CUDA. Results do not depend on the batch a matrix is in, nor change
// from run to run: sums are added in an order that the shape gives. NaN, inf and zero have defined
// results. Shapes, dtypes and pointers are checked by the caller (csrc/ops).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace schattor::cuda {

enum class Dtype { kFloat64, kFloat32, kBFloat16, kFloat16 };

// What choices depend on. Asked of the driver once per device.
struct DeviceFacts {
  int arch;  // 80, 86, 89, 90, 100, 120
  int multiprocessors;
  int shared_bytes;  // of dynamic shared memory that one block may have
};
cudaError_t device_facts(DeviceFacts* facts);  // of the current device

// One matrix of a list, (rows, cols) by element strides. Fast where one stride is 1.
struct View {
  void* data;
  int64_t row_stride, col_stride;
};

// m <- momentum m + c g, c = 1 - momentum (ema) or 1 (heavy ball); what is applied is
// M = momentum m + c g of the new m (nesterov), or the new m.
struct MomentumRule {
  const double* momentum;
  bool ema;
  bool nesterov;
};

// Weights of M, entry by entry: w = ((v / correction)^root + eps)^-exponent of
// v = beta v + (1 - beta) g^2 (v + g^2 where beta is 1), and 0 where v is 0.
struct SecondMoments {
  const View* squares;  // host (batch), only read; or null: weights are read
  Dtype dtype;
  const double* beta;
  const double* corrections;  // (batch)
  const double* eps;          // (batch)
  bool square_root;           // root is 0.5, else 1
  const double* exponent;     // (batch)
  // (batch, rows, cols) of float64 if any list or the wide batch is, else of float32: written,
  // unless squares is null. Null: no weights.
  void* weights;
};

// wide = size M / |M|_F and norms = |M|_F / size with the M of the rule above, so M = norms wide.
// With weights, w M stands for M. Moments are read, not written.
struct GatherArgs {
  int64_t batch, rows, cols;
  const View* grads;    // host (batch)
  const View* momenta;  // host (batch), or null: no momentum, M = g
  Dtype grad_dtype, momentum_dtype, wide_dtype;
  MomentumRule rule;
  double size;      // a power of two that keeps float16 entries from being subnormal
  void* wide;       // (batch, rows, cols); zero where M is zero or not finite
  double* norms;    // (batch) zero where M is zero or not finite
  uint8_t* finite;  // (batch) 1 where every entry of M, and of v if there is one, is finite, else 0
  SecondMoments second;
};
size_t gather_momentum_workspace(const GatherArgs& args);  // bytes
cudaError_t gather_momentum(const GatherArgs& args, void* workspace, cudaStream_t stream);

// w <- decay w - scale direction, m <- rule(m, g) and v <- beta v + (1 - beta) g^2 (v + g^2 where
// beta is 1), where finite; elsewhere all stay.
struct ScatterArgs {
  int64_t batch, rows, cols;
  const View* params;     // host (batch)
  const View* grads;      // host (batch)
  const View* momenta;    // host (batch), or null: no momentum
  const void* direction;  // (batch, rows, cols)
  Dtype param_dtype, grad_dtype, momentum_dtype, direction_dtype;
  MomentumRule rule;      // nesterov is of no account here
  const double* scale;    // (batch)
  const double* decay;    // one number
  const uint8_t* finite;  // (batch)
  // null: round to nearest. Else one number, different at every step: bfloat16 params are rounded
  // up or down at random with the chance that keeps their mean (Philox of seed, matrix and entry).
  const int64_t* rounding_seed;
  const View* squares;  // host (batch), or null: no second moments
  Dtype square_dtype;
  const double* beta;
};
cudaError_t scatter_update(const ScatterArgs& args, cudaStream_t stream);

// inner[i] = <x_i, y_i>, summed in double.
struct InnerArgs {
  int64_t batch, size;
  Dtype x_dtype, y_dtype;
  const void* x;  // (batch, size)
  const void* y;  // (batch, size)
  double* inner;  // (batch)
};
size_t inner_products_workspace(const InnerArgs& args);
cudaError_t inner_products(const InnerArgs& args, void* workspace, cudaStream_t stream);

// w <- w direction, entry by entry, and square[i] = |w|_F^2 of the new w, summed in double.
struct WeighArgs {
  int64_t batch, size;
  Dtype weights_dtype, direction_dtype;
  void* weights;          // (batch, size)
  const void* direction;  // (batch, size)
  double* square;         // (batch)
};
size_t weigh_workspace(const WeighArgs& args);
cudaError_t weigh(const WeighArgs& args, void* workspace, cudaStream_t stream);

// F <- decay F + share X X', or X' X. Exactly symmetric, of the lower triangles of F.
struct AverageGramsArgs {
  int64_t batch, rows, cols;
  bool right;           // X' X
  Dtype dtype;          // kFloat32 or kFloat64, of both
  void* factors;        // (batch, d, d), d = right ? cols : rows
  const void* wide;     // (batch, rows, cols)
  const double* decay;  // (batch)
  const double* share;  // (batch)
};
size_t average_grams_workspace(const AverageGramsArgs& args);
cudaError_t average_grams(const AverageGramsArgs& args, void* workspace, cudaStream_t stream);

// What a direction comes with: its inner product with the input, and its squared norm.
struct Direction {
  void* data;      // (batch, rows, cols)
  double* inner;   // (batch) <wide, direction> = sum s^q
  double* square;  // (batch) |direction|_F^2
};

// direction = U s^power V' of wide = U s V' by a chain of odd quintic steps
// X <- X (a I + b A + c A^2), A = X'X, and the mixture sum_k w_k X_k over its iterates.
// The input is first divided by its Schatten-4 norm, and the mixture multiplied by that to power.
struct ChainArgs {
  int64_t batch, rows, cols;
  Dtype dtype;            // of wide, direction and the stored iterates; sums are float (double)
  const void* wide;       // (batch, rows, cols)
  int depth;              // 1 .. kMostSteps
  const double* steps;    // host (depth, 3) a, b, c
  const double* weights;  // (batch, depth + 1)
  const double* powers;   // (batch)
  // Gram side: R = XX', Q and R are iterated as rows x rows matrices, and X is read again only
  // after the steps listed in restarts (ascending, in 1 .. depth - 1) and at the end.
  bool gram;
  const int64_t* restarts;  // host (restart_count)
  int restart_count;
  Direction direction;
};
constexpr int kMostSteps = 16;

// Where a chain runs. Which of them a shape takes is decided by chain_kernel alone.
enum class ChainKernel {
  kSmall,   // all steps of a matrix in one block's shared memory (half precision)
  kThin,    // long thin ones: the small side in one block, X read once
  kTiles,   // products over tiles, tensor cores by mma.sync in half precision, FMA in float, double
  kHopper,  // the same with TMA and wgmma (sm_90a, half precision)
};
bool chain_kernel_serves(ChainKernel kernel, const ChainArgs& args, const DeviceFacts& facts);
ChainKernel chain_kernel(const ChainArgs& args, const DeviceFacts& facts);
size_t chain_workspace(ChainKernel kernel, const ChainArgs& args, const DeviceFacts& facts);
cudaError_t chain_direction(ChainKernel kernel, const ChainArgs& args, void* workspace,
                            cudaStream_t stream);

// direction = X (c_0 I + c_1 A + c_2 A^2 + c_3 A^4 + c_4 A^8 + ...), A = X'X, of the input divided
// by an upper bound of its largest singular value taken from the highest power of A, multiplied by
// that bound to power: the odd powers 1, 3, 5, 9, 17, 33 of the singular values.
struct SquaringsArgs {
  int64_t batch, rows, cols;
  Dtype dtype;
  const void* wide;            // (batch, rows, cols)
  int count;                   // of coefficients, 3 .. 6
  const double* coefficients;  // host (count)
  const double* powers;        // (batch)
  Direction direction;
};
size_t squarings_workspace(const SquaringsArgs& args);
cudaError_t squarings_direction(const SquaringsArgs& args, void* workspace, cudaStream_t stream);

// The rank leading singular triples by block subspace iteration from start, with Cholesky QR
// (second pass where the first lost orthogonality) and a Jacobi Rayleigh-Ritz at the end.
struct PartialSvdArgs {
  int64_t batch, rows, cols, rank;  // 1 <= rank <= rows
  int64_t iterations;               // >= 1
  Dtype dtype;                      // kFloat32 or kFloat64, of everything
  const void* wide;                 // (batch, rows, cols)
  const void* start;                // (batch, cols, rank): where the iteration begins
  void* u;                          // (batch, rows, rank)
  void* s;                          // (batch, rank), descending
  void* v;                          // (batch, cols, rank)
};
size_t partial_svd_workspace(const PartialSvdArgs& args);
cudaError_t partial_svd(const PartialSvdArgs& args, void* workspace, cudaStream_t stream);

}  // namespace schattor::cuda

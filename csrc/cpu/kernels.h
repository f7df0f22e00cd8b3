// The processor's kernels: the whole API on one page. Plain C++17; knows nothing of torch.
//
// Everything works on a *wide batch*: one contiguous array (batch, rows, cols) of matrices of one
// shape, rows <= cols; a taller matrix enters transposed, which is only another pair of strides.
// Functions take ranges and a Parallel to run them on; results depend on neither the number of
// threads nor the size of the batch. They never throw on values: NaN, inf and zero have defined
// results. Shapes, dtypes and pointers are checked by the caller (csrc/ops).
#pragma once

#include <cstdint>
#include <functional>

namespace schattor::cpu {

enum class Dtype { kFloat64, kFloat32, kBFloat16, kFloat16 };

int64_t size_of(Dtype dtype);

// The caller's thread pool: run(count, body) calls body(begin, end) on disjoint ranges that cover
// [0, count), perhaps at the same time, and returns when all are done. Not to be nested.
struct Parallel {
  int threads = 1;
  std::function<void(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body)>
      run = [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
        if (count > 0) body(0, count);
      };
};

// One matrix of a list, (rows, cols) by element strides. Fast where one stride is 1.
struct View {
  void* data;
  int64_t row_stride, col_stride;
};

// m <- momentum m + c g, c = 1 - momentum (ema) or 1 (heavy ball); what is applied is
// M = momentum m + c g of the new m (nesterov), or the new m.
struct MomentumRule {
  double momentum = 0;
  bool ema = true;
  bool nesterov = false;
};

// Elementwise weights w = ((v / correction)^root + eps)^-exponent of second moments
// v = beta v + (1 - beta) g^2 (v + g^2 where beta is 1); 0 where v is 0. The moments themselves are
// read, not written.
struct SecondMoments {
  const View* squares;  // (batch), or null: the weights are read instead
  Dtype dtype;          // of squares
  double beta;
  const double* corrections;  // (batch)
  const double* eps;          // (batch)
  bool square_root;           // root is 0.5, else 1
  const double* exponent;     // (batch)
  // (batch, rows, cols), or null: no weights. In double where the gradients, a moment or the wide
  // batch are float64, else in float.
  void* weights;
};

// wide = size M / |M|_F and norms = |M|_F / size with the M of the rule above, so M = norms wide;
// with weights, w M in place of M. Moments are read, not written.
struct GatherArgs {
  int64_t batch, rows, cols;
  const View* grads;    // (batch)
  const View* momenta;  // (batch), or null: no momentum, M = g
  Dtype grad_dtype, momentum_dtype, wide_dtype;
  MomentumRule rule;
  double size;      // a power of two that keeps float16 entries from being subnormal
  void* wide;       // (batch, rows, cols); zero where M is zero or not finite
  double* norms;    // (batch) zero where M is zero or not finite
  uint8_t* finite;  // (batch) 1 where every entry of M (and of w M and v) is finite, else 0
  SecondMoments second{};
};
void gather_momentum(const GatherArgs& args, const Parallel& parallel);

// w <- decay w - scale direction, m <- rule(m, g) and v <- beta v + (1 - beta) g^2 (v + g^2 where
// beta is 1), where finite; elsewhere all stay.
struct ScatterArgs {
  int64_t batch, rows, cols;
  const View* params;     // (batch)
  const View* grads;      // (batch)
  const View* momenta;    // (batch), or null: no momentum
  const void* direction;  // (batch, rows, cols)
  Dtype param_dtype, grad_dtype, momentum_dtype, direction_dtype;
  MomentumRule rule;
  const double* scale;  // (batch)
  double decay;
  const uint8_t* finite;          // (batch)
  const View* squares = nullptr;  // (batch), or null: no second moments
  Dtype square_dtype = Dtype::kFloat32;
  double beta = 0;
};
void scatter_update(const ScatterArgs& args, const Parallel& parallel);

// weights <- weights direction, elementwise in the dtype of the weights, and square = |weights|_F^2
// of the result.
struct WeighArgs {
  int64_t batch, size;
  Dtype weights_dtype, direction_dtype;  // weights: kFloat32 or kFloat64
  void* weights;                         // (batch, size)
  const void* direction;                 // (batch, size)
  double* square;                        // (batch)
};
void weigh(const WeighArgs& args, const Parallel& parallel);

// factors <- decay factors + share X X', or share X'X on the right. They come and stay exactly
// symmetric: of most only the upper triangle is read.
struct AverageGramsArgs {
  int64_t batch, rows, cols;
  bool right;
  Dtype dtype;          // kFloat32 or kFloat64, of both
  void* factors;        // (batch, rows, rows), right: (batch, cols, cols)
  const void* wide;     // (batch, rows, cols)
  const double* decay;  // (batch)
  const double* share;  // (batch)
};
void average_grams(const AverageGramsArgs& args, const Parallel& parallel);

// rotated = Q_L' X Q_R, or back, Q_L X Q_R', with entries of at most least made 0, times scale.
struct RotateArgs {
  int64_t batch, rows, cols;
  Dtype dtype;        // kFloat32 or kFloat64, of all matrices
  const void* x;      // (batch, rows, cols)
  const void* left;   // (batch, rows, rows), or null: the identity
  const void* right;  // (batch, cols, cols), or null: the identity
  bool back;
  const double* least;  // (batch), or null: all stay
  const double* scale;  // (batch), or null: 1
  void* rotated;        // (batch, rows, cols)
};
void rotate(const RotateArgs& args, const Parallel& parallel);

// stepped = the Q of a QR of F Q; with orders, of its columns in the descending order of
// diag(Q' F Q), of equal ones the earlier first, NaN last.
struct PowerStepArgs {
  int64_t batch, size;
  Dtype dtype;          // kFloat32 or kFloat64, of all matrices
  const void* factors;  // (batch, size, size) F, symmetric
  const void* bases;    // (batch, size, size) Q
  void* stepped;        // (batch, size, size)
  int64_t* orders;      // (batch, size) the column that each was, or null: none is moved
};
void power_step(const PowerStepArgs& args, const Parallel& parallel);

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
  // Of wide and direction. Iterates are float64 or float32; bfloat16 on AMX; and float16 in the
  // direct form, where there are vectors of it.
  Dtype dtype;
  const void* wide;  // (batch, rows, cols)
  int64_t depth;
  const double* steps;    // (depth, 3) a, b, c
  const double* weights;  // (batch, depth + 1)
  const double* powers;   // (batch)
  // Gram side: R = XX', Q and R are iterated as rows x rows matrices, and X is read again only
  // after the steps listed in restarts (ascending, in 1 .. depth - 1) and at the end.
  bool gram;
  const int64_t* restarts;
  int64_t restart_count;
  Direction direction;
  // wide and direction hold every matrix transposed, (cols, rows): where takes_tall() says so.
  bool tall = false;
};
void chain_direction(const ChainArgs& args, const Parallel& parallel);

// gather_momentum, chain_direction and scatter_update of one matrix after the other, each while it
// is in a core's cache, one to a worker. What the three share must be the same in all, and what
// differs by matrix comes from here.
struct ChainUpdateArgs {
  GatherArgs gather;    // but wide
  ChainArgs chain;      // but wide and direction.data
  ScatterArgs scatter;  // but direction and scale
  int64_t workers;      // at least 1
  void* scratch;        // (2 workers, rows, cols) in the dtype of the chain
  // scale = lr factors lengths / |direction|, by the norm of p, or frobenius; times dual where
  // regularized; 0 where the direction is.
  double lr;
  const double *factors, *lengths;  // (batch)
  const double* corrections;        // (batch) what dual is divided by
  bool frobenius, regularized;
  double* dual;   // (batch) |M|_q
  double* scale;  // (batch)
};
void chain_update(const ChainUpdateArgs& args, const Parallel& parallel);

// Whether such matrices may come tall: as they lie they are what the chain computes on.
bool takes_tall(const ChainArgs& args);

// Bytes of workspace that chain_direction allocates, all threads together.
int64_t chain_workspace_bytes(const ChainArgs& args, int threads);

// direction = X (c_0 I + c_1 A + c_2 A^2 + c_3 A^4 + c_4 A^8 + ...), A = X'X, of the input divided
// by an upper bound of its largest singular value taken from the highest power of A, multiplied by
// that bound to power: the odd powers 1, 3, 5, 9, 17, 33 of the singular values.
struct SquaringsArgs {
  int64_t batch, rows, cols;
  Dtype dtype;
  const void* wide;            // (batch, rows, cols)
  int64_t count;               // of coefficients, 3 .. 6
  const double* coefficients;  // (count)
  const double* powers;        // (batch)
  Direction direction;
};
void squarings_direction(const SquaringsArgs& args, const Parallel& parallel);

// inner[i] = <x_i, y_i>, summed in double.
struct InnerArgs {
  int64_t batch, size;
  Dtype x_dtype, y_dtype;
  const void* x;  // (batch, size)
  const void* y;  // (batch, size)
  double* inner;  // (batch)
};
void inner_products(const InnerArgs& args, const Parallel& parallel);

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
void partial_svd(const PartialSvdArgs& args, const Parallel& parallel);

// Instruction sets, in rising order. The level in force is the highest that the processor has,
// unless forced; forcing one that it lacks returns false and changes nothing. A processor has those
// below the highest, but may lack float16 vectors beside AMX, and bfloat16 products beside float16
// vectors.
enum class Level { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAvx512Fp16, kAmx };
bool has_level(Level level);
Level detected_level();
Level level();
bool force_level(Level level);

}  // namespace schattor::cpu

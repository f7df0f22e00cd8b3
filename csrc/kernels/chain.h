// What the chain and the squarings over products share: workspace, launches in order, and the small
// kernels between products.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "dtype.h"
#include "product.h"

namespace schattor::cuda {

// ---- The two forms over products: chain_products.cu. ----

bool products_serve(ChainKernel engine, const ChainArgs& args);
size_t products_workspace(ChainKernel engine, const ChainArgs& args);
cudaError_t products_direction(ChainKernel engine, const ChainArgs& args, void* workspace,
                               cudaStream_t stream);

// ---- Memory. ----

template <typename Args>
bool is_empty(const Args& args) {
  return args.batch == 0 || args.rows == 0 || args.cols == 0;
}

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Stands for memory where sizes alone are asked for. Aligned and not null, since null has a
// meaning.
inline char* nowhere() { return reinterpret_cast<char*>(uintptr_t{1} << 20); }

// Arrays one after the other in a workspace.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  void* take_bytes(size_t bytes) {
    void* taken = base_ + bytes_;
    bytes_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return taken;
  }
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }
  // A batch of matrices with rows of a length that every engine takes.
  Operand take_matrices(Dtype dtype, int64_t batch, int64_t rows, int64_t cols) {
    const int64_t ld = round_up(cols, kAlignment);
    return {take_bytes(batch * rows * ld * size_of(dtype)), ld, rows * ld};
  }

  size_t bytes() const { return bytes_; }
  void* end() const { return base_ + bytes_; }

 private:
  static constexpr size_t kAlign = 256;
  char* base_;
  size_t bytes_ = 0;
};

// What is launched, in order, up to the first error. A dry sequence launches nothing and learns
// what the products of it want.
class Sequence {
 public:
  Sequence(ChainKernel engine, bool dry, cudaStream_t stream)
      : hopper_(engine == ChainKernel::kHopper), dry_(dry), stream_(stream) {}

  // To be called before the first product of a sequence that is not dry.
  void use(void* product_workspace) { product_workspace_ = product_workspace; }

  void multiply(std::initializer_list<Product> products) {
    const int count = static_cast<int>(products.size());
    const Product* first = products.begin();
    if (dry_) {
      served_ = served_ && (!hopper_ || hopper::serves(first, count));
      if (served_) bytes_ = std::max(bytes_, workspace_of(first, count));
    } else if (error_ == cudaSuccess) {
      error_ = hopper_ ? hopper::multiply(first, count, product_workspace_, stream_)
                       : tiles::multiply(first, count, product_workspace_, stream_);
    }
  }

  // pass(arguments, stream) of the passes below.
  template <typename Pass>
  void run(cudaError_t (*pass)(const Pass&, cudaStream_t), const Pass& arguments) {
    if (!dry_ && error_ == cudaSuccess) error_ = pass(arguments, stream_);
  }

  cudaError_t error() const { return error_; }
  bool served() const { return served_; }
  size_t product_bytes() const { return bytes_; }

 private:
  size_t workspace_of(const Product* products, int count) const {
    return hopper_ ? hopper::workspace(products, count) : tiles::workspace(products, count);
  }

  bool hopper_, dry_;
  cudaStream_t stream_;
  void* product_workspace_ = nullptr;
  cudaError_t error_ = cudaSuccess;
  bool served_ = true;
  size_t bytes_ = 0;
};

// ---- Device numbers: chain_numbers.cu. ----

// The first Gram matrix of half precision is stored enlarged by so much. Its norm is tau^2: from 1
// to about sqrt(rows) for an input of the size that gather_momentum is told for float16, and down
// to rows^(-1/2) for one of norm 1, whose off-diagonal entries, about 1 / (rows sqrt(cols)), would
// be subnormal in float16 from 100 rows on. Entries of the Gram matrix are at most |wide|_F^2, so
// that norms up to 63 stay in range. Later Grams belong to iterates of norms known to be near 1.
inline double gram_scale(Dtype dtype) { return dtype == Dtype::kFloat16 ? 16 : 1; }

// What a chain multiplies by and what depends on tau: numbers, kFirstWeight + depth + 1 of
// them for every matrix. All are zero where tau is, and NaN where tau is not finite.
enum ChainNumber {
  kUnit,         // 1 / tau: the first iterate is the input times this
  kUnitA,        // a / tau of the first step
  kLinear,       // b / tau^2 of the first step, for the Gram matrix as stored
  kQuadratic,    // c / tau^4 of the first step, for the Gram matrix as stored
  kGramUnit,     // 1 / tau^2 for the Gram matrix as stored
  kGramUnitA,    // a times that
  kFirstWeight,  // w_0 tau^(power - 1), of the input; and w_k tau^power, of iterate k, behind it
};
constexpr int chain_numbers_count(int depth) { return kFirstWeight + depth + 1; }

struct ChainNumbers {
  int64_t batch;
  int depth;
  double a, b, c;  // the first step
  double gram_scale;
  const double* squares;  // (batch) |A|_F^2 of the first Gram matrix as stored
  const double* weights;  // (batch, depth + 1)
  const double* powers;   // (batch)
  double* numbers;        // (batch, chain_numbers_count(depth))
};
cudaError_t prepare_chain(const ChainNumbers& args, cudaStream_t stream);

// After A^(2^index) was computed: its logarithm, and what the next product or the sum needs.
constexpr int kMostPowers = 5;
enum SquaringsNumber {
  kSquare,   // scales the square of the power at hand to norm gram_scale at most
  kRestore,  // bound^(power - 1)
  kTerms,    // c_(j+1) times what power j as stored must be multiplied by
  kSquaringsNumbers = kTerms + kMostPowers,
};
struct SquaringsNumbers {
  int64_t batch;
  int index, count;  // of powers of A
  double gram_scale;
  double coefficients[kMostPowers];  // of the powers of A
  const double* squares;             // (batch) |A^(2^index)|_F^2 as stored
  const double* powers;              // (batch)
  double* logarithms;                // (batch, kMostPowers) A^(2^j) is exp of these times as stored
  double* numbers;                   // (batch, kSquaringsNumbers)
};
cudaError_t prepare_squarings(const SquaringsNumbers& args, cudaStream_t stream);

// ---- Passes: chain_passes.cu. ----

// to = from with rows of another length; what is beyond cols is zero.
struct PaddedCopy {
  Dtype dtype;
  int64_t batch, rows, cols;
  const void* from;  // contiguous
  Operand to;
};
cudaError_t copy_padded(const PaddedCopy& args, cudaStream_t stream);

// result = identity I + sum of factor_j terms_j, and scaled = scale result, all (rows, rows).
struct Combination {
  Dtype dtype;
  int64_t batch, rows;
  int count;
  Operand terms[kMostPowers];
  Coefficient factors[kMostPowers];
  double identity;
  Operand result;
  Operand scaled;  // data null: none
  Coefficient scale;
};
cudaError_t combine(const Combination& args, cudaStream_t stream);

// direction = mixture + weight wide, with its inner products. The mixture may be the direction's
// own memory.
struct Finish {
  Dtype dtype;
  int64_t batch, rows, cols;
  const void* wide;  // contiguous
  Operand mixture;
  Coefficient weight;  // data null and otherwise 0: the mixture is the direction
  Direction direction;
  double* partial_sums;  // (batch, finish_chunks(...), 2)
};
int64_t finish_chunks(int64_t rows, int64_t cols);
cudaError_t finish(const Finish& args, cudaStream_t stream);

// inner and square of directions without entries: zero.
cudaError_t finish_empty(const Direction& direction, int64_t batch, cudaStream_t stream);

// ---- Products. ----

inline Coefficient constant(double value) { return {nullptr, 0, value}; }

// C = alpha A op(B) of a batch, to which addends and mixtures are added by hand.
inline Product product_of(Dtype dtype, int64_t batch, int64_t rows, int64_t inner, int64_t cols,
                          const Operand& a, const Operand& b, const Operand& c) {
  Product product{};
  product.dtype = dtype;
  product.batch = static_cast<int>(batch), product.rows = static_cast<int>(rows);
  product.cols = static_cast<int>(cols), product.inner = static_cast<int>(inner);
  product.a = a, product.b = b, product.c = c;
  product.alpha = product.beta = product.gamma = constant(1);
  product.weight = constant(0);
  return product;
}

// The matrices of a wide batch as the engines take them. Rows that do not begin at multiples of 16
// bytes are copied to rows that do, and the mixture comes back through such a copy.
template <typename Args>
class WideMemory {
 public:
  WideMemory(const Args& args, Arena& arena) : args_(args) {
    const bool aligned = args.cols % kAlignment == 0;
    copies_ = !aligned || !is_aligned(args.wide);
    // Engines take what they read by a pointer to void: the input is never a result.
    input_ = copies_ ? take(arena) : Operand{const_cast<void*>(args.wide), args.cols, size()};
    const bool in_place = aligned && is_aligned(args.direction.data);
    mixture_ = in_place ? Operand{args.direction.data, args.cols, size()} : take(arena);
    partial_sums_ = arena.take<double>(args.batch * finish_chunks(args.rows, args.cols) * 2);
  }

  const Operand& input() const { return input_; }
  const Operand& mixture() const { return mixture_; }

  void begin(Sequence& sequence) const {
    if (!copies_) return;
    sequence.run(copy_padded,
                 PaddedCopy{args_.dtype, args_.batch, args_.rows, args_.cols, args_.wide, input_});
  }
  void end(Sequence& sequence, const Coefficient& weight) const {
    sequence.run(finish, Finish{args_.dtype, args_.batch, args_.rows, args_.cols, args_.wide,
                                mixture_, weight, args_.direction, partial_sums_});
  }

 private:
  static bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
  int64_t size() const { return args_.rows * args_.cols; }
  Operand take(Arena& arena) const {
    return arena.take_matrices(args_.dtype, args_.batch, args_.rows, args_.cols);
  }

  const Args& args_;
  bool copies_;
  Operand input_, mixture_;
  double* partial_sums_;
};

}  // namespace schattor::cuda

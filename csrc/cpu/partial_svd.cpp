// Leading singular triples by block subspace iteration, V <- orth(X'(X V)), with a Rayleigh-Ritz
// step at the end: X V = Q B, B = W S P', u = Q W, v = V P, so that X v = u s to rounding however
// far the iteration has come.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "orthonormalise.h"
#include "panels.h"
#include "small_dense.h"

namespace schattor::cpu {
namespace {

// The exponent of the largest |entry|, x = f 2^e with f in [1/2, 1); 0 for zeros. False where an
// entry is not finite.
template <class T>
bool largest_exponent(const T* x, int64_t size, int* exponent) {
  // Magnitudes order as their bits do, NaN above infinity above all: one integer maximum, which
  // the compiler vectorises.
  using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  Bits largest_bits = 0;
  for (int64_t i = 0; i < size; ++i) {
    Bits bits;
    std::memcpy(&bits, x + i, sizeof(T));
    largest_bits = std::max<Bits>(largest_bits, bits & std::numeric_limits<Bits>::max());
  }
  T largest;
  std::memcpy(&largest, &largest_bits, sizeof(T));
  std::frexp(largest, exponent);
  return std::isfinite(largest);
}

// Within 2^+-kSafeExponent X'(X V) and all squares stay far from overflow and underflow.
constexpr int kSafeExponent = 20;

// One matrix at a time; the workspace is kept from one to the next.
template <class T>
class SubspaceIteration {
 public:
  explicit SubspaceIteration(const PartialSvdArgs& args)
      : args_(args),
        count_(padded_count(args.rank)),
        kernels_(panel_kernels<T>()),
        orthonormalise_(kernels_),
        right_(count_ * args.cols),
        left_(count_ * args.rows) {}

  void run(int64_t index) {
    const int64_t rows = args_.rows, cols = args_.cols, rank = args_.rank;
    const T* x = static_cast<const T*>(args_.wide) + index * rows * cols;
    int exponent = 0;
    if (!largest_exponent(x, rows * cols, &exponent) || !load_start(index)) {
      fill_outputs(index, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    const bool safe = std::abs(exponent) <= kSafeExponent;
    if (!safe) x = scaled(x, exponent);
    orthonormalise_(right_.data(), rank, cols);
    for (int64_t step = 0; step < args_.iterations; ++step) {
      kernels_.multiply(x, rows, cols, right_.data(), count_, left_.data());
      kernels_.multiply_transposed(x, rows, cols, left_.data(), count_, right_.data());
      orthonormalise_(right_.data(), rank, cols);
    }
    kernels_.multiply(x, rows, cols, right_.data(), count_, left_.data());
    rayleigh_ritz();
    store(index, safe ? 0 : exponent);
  }

 private:
  // right_ = the start transposed, each vector scaled to entries of at most 1.
  bool load_start(int64_t index) {
    const int64_t cols = args_.cols, rank = args_.rank;
    const T* start = static_cast<const T*>(args_.start) + index * cols * rank;
    std::fill(right_.begin(), right_.end(), T(0));
    for (int64_t k = 0; k < rank; ++k) {
      T* row = right_.data() + k * cols;
      for (int64_t j = 0; j < cols; ++j) row[j] = start[j * rank + k];
      int exponent = 0;
      if (!largest_exponent(row, cols, &exponent)) return false;
      for (int64_t j = 0; j < cols; ++j) row[j] = std::ldexp(row[j], -exponent);
    }
    return true;
  }

  const T* scaled(const T* x, int exponent) {
    scaled_.resize(args_.rows * args_.cols);
    std::transform(x, x + scaled_.size(), scaled_.begin(),
                   [exponent](T entry) { return std::ldexp(entry, -exponent); });
    return scaled_.data();
  }

  // left_ = Q, ritz_ = the columns of B P = W S, rotation_ those of P, and values_ = S, with
  // ritz_ then W.
  void rayleigh_ritz() {
    const int64_t rows = args_.rows, rank = args_.rank;
    image_ = left_;
    orthonormalise_(left_.data(), rank, rows);
    ritz_.resize(rank * rank);
    rotation_.resize(rank * rank);
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t l = 0; l < rank; ++l) {
        ritz_[k * rank + l] = kernels_.dot(image_.data() + k * rows, left_.data() + l * rows, rows);
      }
    }
    jacobi_columns(ritz_.data(), rotation_.data(), rank);
    const PanelKernels<double>& small = panel_kernels<double>();
    values_.resize(rank);
    for (int64_t k = 0; k < rank; ++k) {
      const double* column = ritz_.data() + k * rank;
      values_[k] = std::sqrt(small.dot(column, column, rank));
    }
    Orthonormaliser<double> orthonormalise(small);
    orthonormalise(ritz_.data(), rank, rank);
  }

  // out (length, rank) = panel' columns: panel (rank, length), `columns` rank vectors one a row.
  void rotate(const std::vector<T>& panel, int64_t length, const std::vector<double>& columns,
              T* out) {
    const int64_t rank = args_.rank;
    for (int64_t j = 0; j < length; ++j) {
      for (int64_t k = 0; k < rank; ++k) {
        double sum = 0;
        for (int64_t l = 0; l < rank; ++l) sum += columns[k * rank + l] * panel[l * length + j];
        out[j * rank + k] = static_cast<T>(sum);
      }
    }
  }

  void store(int64_t index, int exponent) {
    const int64_t rows = args_.rows, cols = args_.cols, rank = args_.rank;
    rotate(left_, rows, ritz_, static_cast<T*>(args_.u) + index * rows * rank);
    rotate(right_, cols, rotation_, static_cast<T*>(args_.v) + index * cols * rank);
    T* s = static_cast<T*>(args_.s) + index * rank;
    for (int64_t k = 0; k < rank; ++k) s[k] = static_cast<T>(std::ldexp(values_[k], exponent));
  }

  void fill_outputs(int64_t index, T value) {
    const int64_t rows = args_.rows, cols = args_.cols, rank = args_.rank;
    std::fill_n(static_cast<T*>(args_.u) + index * rows * rank, rows * rank, value);
    std::fill_n(static_cast<T*>(args_.s) + index * rank, rank, value);
    std::fill_n(static_cast<T*>(args_.v) + index * cols * rank, cols * rank, value);
  }

  const PartialSvdArgs& args_;
  const int64_t count_;
  const PanelKernels<T>& kernels_;
  Orthonormaliser<T> orthonormalise_;
  std::vector<T> right_, left_;  // panels (count, cols) and (count, rows)
  std::vector<T> image_, scaled_;
  std::vector<double> ritz_, rotation_, values_;
};

template <class T>
void run_batch(const PartialSvdArgs& args, const Parallel& parallel) {
  parallel.run(args.batch, [&](int64_t begin, int64_t end) {
    SubspaceIteration<T> iteration(args);
    for (int64_t index = begin; index < end; ++index) iteration.run(index);
  });
}

}  // namespace

void partial_svd(const PartialSvdArgs& args, const Parallel& parallel) {
  if (args.dtype == Dtype::kFloat64) {
    run_batch<double>(args, parallel);
  } else {
    run_batch<float>(args, parallel);
  }
}

}  // namespace schattor::cpu

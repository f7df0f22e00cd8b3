// What the two forms of the chain share. T is the compute type.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "held.h"
#include "levels.h"
#include "strips.h"

namespace schattor::cpu {

void gram_chain(const ChainArgs& args, const Parallel& parallel);
int64_t gram_chain_bytes(const ChainArgs& args, const Parallel& parallel);

// Where matrix `index` of a wide batch, and of its direction, begins.
template <typename Args>
const char* input_of(const Args& args, int64_t index) {
  return static_cast<const char*>(args.wide) + index * args.rows * args.cols * size_of(args.dtype);
}
template <typename Args>
char* direction_of(const Args& args, int64_t index) {
  return static_cast<char*>(args.direction.data) +
         index * args.rows * args.cols * size_of(args.dtype);
}

template <typename Args>
void put_overlap(const Args& args, int64_t index, Overlap overlap) {
  args.direction.inner[index] = overlap.inner;
  args.direction.square[index] = overlap.square;
}

template <typename Args>
bool is_empty(const Args& args) {
  return args.batch == 0 || args.rows == 0 || args.cols == 0;
}

// What comes with directions of no entries.
template <typename Args>
void put_empty(const Args& args) {
  for (int64_t index = 0; index < args.batch; ++index) put_overlap(args, index, Overlap{});
}

// The direction of a zero matrix is zero, and that of one with an inf or a NaN is NaN: every entry
// of value, and inner and square as well.
template <typename T, typename Args>
void put_constant(const Args& args, int64_t index, Scalar<T> value) {
  const RowLoops<Scalar<T>>& rows = kernels().rows.in<Scalar<T>>();
  char* to = direction_of(args, index);
  const int64_t size = args.rows * args.cols, bytes = size_of(args.dtype);
  for (int64_t i = 0; i < size; ++i) rows.store(&value, 1, args.dtype, 1, to + i * bytes);
  put_overlap(args, index, Overlap{value, value});
}

// The mixture of one matrix: its weights times scale^power, up to the last that is not zero.
class Mixture {
 public:
  Mixture(const ChainArgs& args, int64_t index, double scale)
      : weights_(args.weights + index * (args.depth + 1)),
        factor_(std::pow(scale, args.powers[index])),
        depth_(args.depth) {
    while (depth_ >= 0 && weights_[depth_] == 0) --depth_;
  }

  // The last iterate that counts, or -1 where none does.
  int64_t depth() const { return depth_; }
  double operator[](int64_t k) const { return weights_[k] * factor_; }

 private:
  const double* weights_;
  double factor_;
  int64_t depth_;
};

// Whether a direction can be computed at all, given the norm of A; else it is written.
template <typename T, typename Args>
bool is_regular(const Args& args, int64_t index, double norm) {
  if (norm > 0 && std::isfinite(norm)) return true;
  put_constant<T>(args, index, norm == 0 ? 0 : std::numeric_limits<Scalar<T>>::quiet_NaN());
  return false;
}

// X <- a X + (b A + c A^2) X.
struct Step {
  double a, b, c;

  // The same step for X and A scaled by so much, which may be other than the square of X's.
  Step scaled(double scale, double square) const {
    return {a * scale, b * scale * square, c * scale * square * square};
  }
  Step scaled(double scale) const { return scaled(scale, scale * scale); }

  // Given A less so much of the identity, the same step.
  void shift(double mean) {
    a += mean * (b + mean * c);
    b += 2 * mean * c;
  }
};

inline Step step_of(const ChainArgs& args, int64_t k) {
  const double* step = args.steps + 3 * k;
  return {step[0], step[1], step[2]};
}

// result = b A + c A^2, all square and symmetric.
template <typename T>
Product<T> polynomial(const StripLayout& layout, const T* a, double linear, double quadratic,
                      T* result) {
  const int64_t rows = layout.columns;
  Product<T> product{layout, rows, rows, a, a, false, true, result};
  product.scale = static_cast<Scalar<T>>(quadratic * Held<T>::kB);
  product.addend = a;
  product.addend_scale = static_cast<Scalar<T>>(linear * Held<T>::kB);
  return product;
}

}  // namespace schattor::cpu

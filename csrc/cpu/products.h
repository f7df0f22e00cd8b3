// Matrix products for the chain, one table per instruction set (products.inc, thin_products.inc).
//
// A matrix lies in *strips* of a few vectors' width, row after row, each strip contiguous. Every
// product reads its operands as they lie and writes its result the same way, so that nothing is
// packed between products. To that end the input is held transposed, Y = X' (cols, rows): then Y,
// Y'Y and its polynomials all have the same columns and the same strips.
#pragma once

#include <cstdint>

#include "rows.h"

namespace schattor::cpu {

struct StripLayout {
  int64_t columns;  // of every matrix
  int64_t lanes;    // of a vector
  int64_t width;    // columns of a strip, the last one padded: 1 .. kMaxStripVectors vectors
  int64_t strips;

  int64_t padded_rows(int64_t rows) const { return (rows + lanes - 1) / lanes * lanes; }
  // Elements of one strip, and of a matrix, of so many rows.
  int64_t stride(int64_t rows) const { return padded_rows(rows) * width; }
  int64_t size(int64_t rows) const { return stride(rows) * strips; }
};

constexpr int64_t kMaxStripVectors = 3;

// result = scale left right + addend_scale addend, and at the same time
// sum (+)= result_weight result + addend_weight addend. Result and sum overlap no operand, but the
// addend may be the result where a depth is at most a strip's width.
// Padding must hold zeros, and is left so.
template <typename T>
struct Product {
  StripLayout layout;
  int64_t rows, depth;  // result (rows, columns) of sums of depth terms
  const T* left;        // (rows, depth); transposed: (depth, rows)
  const T* right;       // (depth, columns)
  bool transposed;      // else left has strips of the layout's width
  bool symmetric;       // the result is: one triangle is computed and mirrored, of sum not mirrored
  T* result;
  Scalar<T> scale = 1;
  const T* addend = nullptr;  // like result, or none
  Scalar<T> addend_scale = 0;
  Sum<T>* sum = nullptr;  // like result, or none
  Scalar<T> result_weight = 0, addend_weight = 0;
  bool sum_begins = false;  // sum = instead of sum +=
  bool exact = false;       // in Float16: sums of products are float's, at half the rate
};

// The share of one of several workers in a job. Shares do not overlap, and the split changes no
// bit.
struct Share {
  int64_t worker, workers;

  int64_t begin(int64_t count) const { return count * worker / workers; }
  int64_t end(int64_t count) const { return count * (worker + 1) / workers; }
};

// In Float16 sums of products are rounded to it on the way, unless they are to be exact; all else
// in half precision is computed in float.
template <typename T>
struct Products {
  int64_t lanes;

  void (*multiply)(const Product<T>& product, Share share);
  // Copies the triangle on and above the diagonal of a square matrix onto the other.
  void (*mirror)(StripLayout layout, T* matrix, Share share);

  // inner += <x, y>, square += |y|^2 of row-major matrices, in double but for runs of terms.
  void (*overlap)(const T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t rows,
                  int64_t cols, double* inner, double* square);
};

// For a few long rows, x (rows, cols) row-major, padded with zeros to a multiple of kThinRows rows
// and of a vector's lanes of columns.
template <typename T>
struct ThinProducts {
  // sums += the terms of x x', kept apart by lane.
  void (*gram)(const T* x, int64_t stride, int64_t rows, int64_t cols, T* sums);
  // Elements of these sums.
  int64_t (*sums)(int64_t rows);
  // gram, in strips, = the totals of the sums.
  void (*total)(StripLayout layout, const T* sums, T* gram);
  // out = s x, for s symmetric, in strips, and out padded like x; and the overlap of x with out.
  void (*apply)(StripLayout layout, const T* s, const T* x, int64_t x_stride, int64_t cols, T* out,
                int64_t out_stride, double* inner, double* square);
};

constexpr int64_t kThinRows = 8;

// Householder's QR of the first columns of a strip (rows, width), padded with zeros: it becomes V,
// with ones on its diagonal and zeros above, and t (width, width) T', of I - V T V' = H_1 .. H_k.
template <typename T>
using Reflections = void (*)(const StripLayout& layout, int64_t rows, int64_t columns, T* strip,
                             T* t);

struct ProductKernels {
  Products<float> in_float;
  Products<double> in_double;
  ThinProducts<float> thin_in_float;
  ThinProducts<double> thin_in_double;
  Reflections<float> reflections_in_float;
  Reflections<double> reflections_in_double;
  Products<Float16> in_float16{};    // empty without float16 vectors
  Products<BFloat16> in_bfloat16{};  // empty without products of bfloat16 vectors

  template <typename T>
  const Products<T>& in() const {
    if constexpr (std::is_same_v<T, Float16>) {
      return in_float16;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return in_bfloat16;
    } else if constexpr (std::is_same_v<T, float>) {
      return in_float;
    } else {
      return in_double;
    }
  }
  template <typename T>
  const ThinProducts<T>& thin() const {
    if constexpr (std::is_same_v<T, float>) {
      return thin_in_float;
    } else {
      return thin_in_double;
    }
  }
  template <typename T>
  Reflections<T> reflections() const {
    if constexpr (std::is_same_v<T, float>) {
      return reflections_in_float;
    } else {
      return reflections_in_double;
    }
  }
};

}  // namespace schattor::cpu

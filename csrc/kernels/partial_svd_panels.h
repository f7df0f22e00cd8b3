// Products with panels for matrices that do not fit one block, batched over matrices and blocks.
#pragma once

#include "launch.h"

namespace schattor::cuda::svd {

struct MatrixState;

// out = X panel (rows, count), or X' panel (cols, count). A long inner side is cut into slices, by
// shape alone, whose sums lie in `partials` until they are added up.
struct PanelProduct {
  int64_t batch;
  int rows, cols, count;
  Dtype dtype;
  bool transposed;
  const void* x;      // (batch, rows, cols)
  const void* panel;  // (batch, cols, count), or (batch, rows, count)
  void* out;
  void* partials;
  const MatrixState* states;
  int skipped;  // nothing is done for matrices of this mode and above
};
size_t product_partials(const PanelProduct& product);  // bytes
cudaError_t multiply(const PanelProduct& product, cudaStream_t stream);

// sums: slices of the inner products of two panels' vectors, sum[k][l] = <x_k, y_l>; k >= l alone
// if lower. By slices of the length, slice_count of them, to be added by who reads them.
struct PanelGram {
  int64_t batch;
  int length, count;
  Dtype dtype;
  bool lower;
  const void* x;  // (batch, length, count)
  const void* y;
  double* sums;  // (batch, slice_count, count, count)
  const MatrixState* states;
  int skipped;
  bool pending_only;  // only matrices whose state is pending
};
int gram_slices(int length, int count);
cudaError_t gram(const PanelGram& args, cudaStream_t stream);

// out[j][k] = sum_l panel[j][l] factors[k][l].
struct PanelCombination {
  int64_t batch;
  int length, count;
  Dtype dtype;
  const void* panel;      // (batch, length, count)
  const double* factors;  // (batch, count, count)
  void* out;              // (batch, length, count)
  // A pass of Cholesky QR: factors are lower triangular, out may be the panel itself, only active
  // matrices are touched, and vectors that fates (batch, count) name are replaced. Null: matrices
  // that are not finite give NaN, and out is not the panel.
  const int* fates;
  int pass;
  const MatrixState* states;
};
cudaError_t combine(const PanelCombination& args, cudaStream_t stream);

}  // namespace schattor::cuda::svd

// Batched products with fused epilogues, the bricks of chains over tiles:
//
//   C = alpha A op(B) + beta D        S = gamma S + weight C        squares = |C|_F^2
//
// alpha, beta, gamma and weight are device numbers, one a matrix of the batch. C, S and squares are
// each optional. Two engines share this page: tiles.cu (mma.sync in half precision, FMA in float
// and double) and hopper.cu (TMA, wgmma).
#pragma once

#include "launch.h"

namespace schattor::cuda {

// Matrices of one shape, row-major. Leading dimensions and strides count elements.
struct Operand {
  void* data;
  int64_t ld;      // between rows
  int64_t stride;  // between matrices of the batch
};

// Device numbers: value[b * step] for matrix b; step 0 shares one number. data null: `otherwise`.
struct Coefficient {
  const double* data;
  int step;
  double otherwise;
};

struct Product {
  Dtype dtype;  // of A, B, C, D and S; sums are float, in double for kFloat64
  int batch, rows, cols, inner;
  Operand a;  // (rows, inner)
  Operand b;  // (inner, cols), or (cols, inner) if transposed_b
  bool transposed_b;
  // C is known to be symmetric (rows == cols, transposed_b): only tiles of the lower triangle are
  // computed, and stored mirrored too, so that C is exactly symmetric.
  bool symmetric;
  Coefficient alpha;
  Operand d;  // (rows, cols), data null: no addend. May be C itself. Symmetric if C is.
  Coefficient beta;
  Operand c;  // (rows, cols), data null: not stored. Must be neither A nor B.
  Operand s;  // (rows, cols), data null: no mixture. gamma 0 does not read S.
  Coefficient gamma, weight;
  double* squares;  // (batch), or null
};

// Several products, of any shapes, in one launch (two if any has squares): their tiles are dealt to
// a persistent grid. All of one dtype. At most kMostGroups.
constexpr int kMostGroups = 8;

// What the engine wants of leading dimensions and strides: multiples of this many elements, and
// base pointers as many elements' bytes apart. Other layouts are served, slower, by kTiles alone.
constexpr int kAlignment = 8;

namespace tiles {
size_t workspace(const Product* products, int count);
cudaError_t multiply(const Product* products, int count, void* workspace, cudaStream_t stream);
}  // namespace tiles

namespace hopper {
bool serves(const Product* products, int count);
size_t workspace(const Product* products, int count);
cudaError_t multiply(const Product* products, int count, void* workspace, cudaStream_t stream);
}  // namespace hopper

}  // namespace schattor::cuda

// Inside of the engine `tiles` of product.h, for its sources and its test.
//
// Three kernels share one schedule and one epilogue. *Tiles* deals the tiles of all products to a
// persistent grid (tiles_half.cu: mma.sync; tiles_wide.cu: FMA). A product with few tiles and a
// long inner dimension is cut into *slices* of that dimension: then the tiles leave sums in the
// workspace, and *finish* (tiles.cu) adds the slices up in order and runs the epilogue. Where
// squares are asked for, *add squares* (tiles.cu) adds the shares of a matrix's boxes in order.
//
// Squares are of C as rounded to its type, whether it is stored or not; S is of C before rounding.
// If C is symmetric, S need not be.
//
// No bit of a result depends on the grid, the size of the tiles, the batch or the neighbours: an
// entry is a sum over the inner dimension in ascending order, slices follow from rows, cols and
// inner alone, and squares are added up by boxes of 64 x 64, of which every tile is made.
#pragma once

#include "product.h"

namespace schattor::cuda::tiles {

constexpr int kBox = 64;  // side of the squares that epilogue, slices and squares are counted in
constexpr int kThreads = 128;  // of every block
constexpr int kWarps = kThreads / 32;

// A product, and what the host works out for the kernels.
struct Group {
  Product product;
  bool aligned_a, aligned_b, aligned_c, aligned_d, aligned_s;  // to 16 bytes, in every row
  bool one_operand;  // A is B: a tile on the diagonal reads one for both
  int slices;        // of the inner dimension
  int slice_length;  // inner elements of a slice, but for the last
  int box_cols;
  int boxes;  // of one matrix; of the lower triangle alone if it is symmetric
  int tile_rows, tile_cols;
  int tiles;       // of one matrix and slice
  double* shares;  // (batch, boxes) of squares, or null
  void* sums;      // (batch, slices, boxes, kBox * kBox), if slices > 1
};

struct Params {
  Group groups[kMostGroups];
  int count;
  int tiles;  // of all groups
};

// As multiply, on a device with these facts. Only time depends on them.
cudaError_t multiply_on(const DeviceFacts& facts, const Product* products, int count,
                        void* workspace, cudaStream_t stream);

// Launches of the first kernel, by type. The half ones choose among tiles of 64 and 128.
int half_tile(const Product* products, int count, const DeviceFacts& facts);
cudaError_t launch_half(const Params& params, int tile, const DeviceFacts& facts,
                        cudaStream_t stream);
cudaError_t launch_wide(const Params& params, const DeviceFacts& facts, cudaStream_t stream);

// Blocks of the persistent grid: as many as run at one time, and no more than tiles.
inline int persistent_blocks(const Params& params, const DeviceFacts& facts, size_t shared_bytes,
                             int most_per_multiprocessor) {
  const int fit = static_cast<int>(facts.shared_bytes / shared_bytes);
  const int each = fit < 1 ? 1 : fit > most_per_multiprocessor ? most_per_multiprocessor : fit;
  const int64_t blocks = static_cast<int64_t>(facts.multiprocessors) * each;
  return blocks < params.tiles ? static_cast<int>(blocks) : params.tiles;
}

// Slices of the inner dimension.
int slices_of(const Product& product);

}  // namespace schattor::cuda::tiles

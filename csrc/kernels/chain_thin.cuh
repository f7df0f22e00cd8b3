// The two ends of the chain of a thin matrix, on panels of its columns in shared memory: the Gram
// matrix, and the product with the small side.
#pragma once

#include "on_chip.cuh"

namespace schattor::cuda::thin {

using on_chip::kChunk;
using on_chip::kWarp;
using on_chip::Overlap;
using on_chip::Rows;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMostRows = 64;
constexpr int kTile = 4;       // rows and columns of the Gram matrix that a warp sums at a time
constexpr int kGroup = 8;      // rows of the direction that a thread computes at a time
constexpr int kRun = 32;       // terms that are summed in float before they go to double
constexpr int kMostParts = 3;  // of the columns, that different warps sum for the same tile

// Rows of the small side, padded.
constexpr int padded_rows(int rows) { return dev::div_up(rows, kTile) * kTile; }
constexpr int padded_side(int rows) { return dev::div_up(rows, kGroup) * kGroup; }
// Few tiles are not enough for the warps: then several share one.
constexpr int parts_of(int rows) { return rows <= 16 ? kMostParts : 1; }

// Place `index` in the lower triangle, row by row.
struct Place {
  int row, col;
  DEV explicit Place(int index) {
    row = static_cast<int>((sqrtf(8.0f * static_cast<float>(index) + 1.0f) - 1.0f) * 0.5f);
    while (row * (row + 1) / 2 > index) --row;
    while ((row + 1) * (row + 2) / 2 <= index) ++row;
    col = index - row * (row + 1) / 2;
  }
};
constexpr int places(int rows) { return rows * (rows + 1) / 2; }

// The matrices of the small side in shared memory, (side, side) each.
template <class E>
struct Matrices {
  E *r, *z, *q;
};

// Columns of a matrix in shared memory, rows padded with zeros to padded_rows, columns to chunks.
template <class T>
struct Panel {
  const T* data;
  int ld, rows, chunks;
  DEV uint4 at(int row, int chunk) const {
    return *reinterpret_cast<const uint4*>(data + row * ld + chunk * kChunk<T>);
  }
};

// sums += the products of chunk `chunk` of the tile's rows with those of its columns.
template <class T>
DEV void add_products(const Panel<T>& x, const Place& tile, int chunk,
                      float (&sums)[kTile][kTile]) {
  float left[kTile][kChunk<T>];
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    on_chip::unpack_chunk<T>(x.at(tile.row * kTile + i, chunk), left[i]);
  }
#pragma unroll
  for (int j = 0; j < kTile; ++j) {
    float right[kChunk<T>];
    on_chip::unpack_chunk<T>(x.at(tile.col * kTile + j, chunk), right);
#pragma unroll
    for (int e = 0; e < kChunk<T>; ++e)
#pragma unroll
      for (int i = 0; i < kTile; ++i) sums[i][j] = fmaf(left[i][e], right[e], sums[i][j]);
  }
}

// One lane's share of a tile: every 32nd chunk from `first` on. Products of half precision are
// exact in float, sums of a few of them nearly so, and the rest is double: a float Gram matrix
// loses singular values below 1e-3 of the largest, and tensor cores round its sums down.
template <class T>
DEV void tile_sums(const Panel<T>& x, const Place& tile, int first, int last,
                   double (&sums)[kTile * kTile]) {
#pragma unroll
  for (double& sum : sums) sum = 0;
  constexpr int kSteps = kRun / kChunk<T>;
  for (int begin = first; begin < last; begin += kSteps * kWarp) {
    float run[kTile][kTile] = {};
    for (int step = 0; step < kSteps; ++step) {
      const int chunk = begin + step * kWarp;
      if (chunk < last) add_products(x, tile, chunk, run);
    }
#pragma unroll
    for (int i = 0; i < kTile * kTile; ++i)
      sums[i] += static_cast<double>(run[i / kTile][i % kTile]);
  }
}

// One step of the sum over a warp: lanes that differ in bit kCount swap halves of what they hold,
// so that 16 sums take 16 shuffles and not 80.
template <int kCount>
DEV void fold(double (&sums)[kTile * kTile], int lane) {
  const bool upper = lane & (2 * kCount);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const double given = upper ? sums[i] : sums[i + kCount];
    const double kept = upper ? sums[i + kCount] : sums[i];
    sums[i] = kept + __shfl_xor_sync(~0u, given, 2 * kCount);
  }
}

// The lower triangle of the panel's Gram matrix, as the sum of the first `parts` of three. A
// barrier has to follow.
template <class T>
DEV void gram(const Panel<T>& x, int side, int parts, const Matrices<double>& sums_of) {
  const int lane = threadIdx.x % kWarp, tiles = places(side / kTile);
  for (int task = threadIdx.x / kWarp; task < tiles * parts; task += kWarps) {
    const Place tile(task / parts);
    const int part = task % parts;
    const int first = x.chunks * part / parts, last = x.chunks * (part + 1) / parts;
    double sums[kTile * kTile];
    tile_sums(x, tile, first + lane, last, sums);
    fold<8>(sums, lane);
    fold<4>(sums, lane);
    fold<2>(sums, lane);
    fold<1>(sums, lane);
    sums[0] += __shfl_xor_sync(~0u, sums[0], 1);
    const int entry = lane / 2;  // what was kept at the four folds spells it
    const int row = tile.row * kTile + entry / kTile, col = tile.col * kTile + entry % kTile;
    double* target = part == 0 ? sums_of.r : part == 1 ? sums_of.z : sums_of.q;
    if (lane % 2 == 0 && col <= row) target[row * side + col] = sums[0];
  }
}

// direction = S X on one panel, for a symmetric S (padded_rows, ld) in shared memory.
template <class T>
DEV Overlap apply(const Panel<T>& x, const float* s, int ld, const Rows<T>& to) {
  Overlap overlap;
  const int groups = ld / kGroup;
  for (int task = threadIdx.x; task < x.chunks * groups; task += kThreads) {
    const int chunk = task % x.chunks, begin = task / x.chunks * kGroup;
    float sums[kGroup][kChunk<T>] = {};
    for (int k = 0; k < x.rows; ++k) {
      float right[kChunk<T>], left[kGroup];
      on_chip::unpack_chunk<T>(x.at(k, chunk), right);
      *reinterpret_cast<float4*>(left) = *reinterpret_cast<const float4*>(s + k * ld + begin);
      *reinterpret_cast<float4*>(left + 4) =
          *reinterpret_cast<const float4*>(s + k * ld + begin + 4);
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
#pragma unroll
        for (int e = 0; e < kChunk<T>; ++e) sums[i][e] = fmaf(left[i], right[e], sums[i][e]);
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (begin + i >= x.rows) continue;
      const uint4 stored = on_chip::pack_chunk<T>(sums[i]);
      float values[kChunk<T>], inputs[kChunk<T>];
      on_chip::unpack_chunk<T>(stored, values);
      on_chip::unpack_chunk<T>(x.at(begin + i, chunk), inputs);
      overlap.add(inputs, values);  // past the last column both are zero
      on_chip::store_chunk(to, begin + i, chunk * kChunk<T>, stored);
    }
  }
  return overlap;
}

}  // namespace schattor::cuda::thin

// A symmetric matrix in shared memory as the tiles of its lower triangle, 512 bytes each, and the
// products with it. Half the room of the whole matrix: then 256 x 256 fits beside X.
#pragma once

#include "chain_small.cuh"

namespace schattor::cuda::small {

constexpr int kTileSize = kTile * kTile;
constexpr int triangle_tiles(int tiles) { return tiles * (tiles + 1) / 2; }

// Rows of a tile are 32 bytes, two chunks of 16; which of them comes first alternates every four
// rows, so that the eight rows that ldmatrix reads at a time lie in different banks.
template <class T>
class Triangle {
 public:
  DEV explicit Triangle(T* data) : data_(data) {}

  DEV T* at(int tile_row, int tile_col, int row, int col) const {
    const int tile = tile_row * (tile_row + 1) / 2 + tile_col;
    const int chunk = (col / 8) ^ (row / 4 % 2);
    return data_ + tile * kTileSize + row * kTile + chunk * 8 + col % 8;
  }

  // Tile (i, k) of the whole matrix as a left operand.
  DEV void load_left(uint32_t (&registers)[4], int i, int k, int lane) const {
    if (i >= k) {
      dev::ldmatrix_x4(registers, at(i, k, lane % 16, lane / 16 * 8));
    } else {
      dev::ldmatrix_x4_trans(registers, at(k, i, lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8));
    }
  }

  // Tile (k, j) of the whole matrix as a right operand.
  DEV void load_right(uint32_t (&registers)[4], int k, int j, int lane) const {
    if (k >= j) {
      dev::ldmatrix_x4_trans(registers, at(k, j, lane % 16, lane / 16 * 8));
    } else {
      dev::ldmatrix_x4(registers, at(j, k, lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8));
    }
  }

 private:
  T* data_;
};

// 2 x 2 tiles of the lower triangle: what a warp computes of a symmetric matrix at a time.
struct Square {
  int row, col;    // of the first tile
  bool has[2][2];  // tiles that exist and are not above the diagonal

  DEV Square(int index, int tiles) {
    int i = 0;
    while ((i + 1) * (i + 2) / 2 <= index) ++i;
    row = 2 * i, col = 2 * (index - i * (i + 1) / 2);
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int b = 0; b < 2; ++b) has[a][b] = row + a < tiles && col + b <= row + a;
  }
};

constexpr int squares_of(int tiles) { return triangle_tiles(dev::div_up(tiles, 2)); }

using SquareSums = float[2][2][2][4];

// sums += left right; load_left(registers, tile of rows, k) and load_right(registers, k, tile of
// columns) read what exists.
template <class T, class LoadLeft, class LoadRight>
DEV void multiply_square(SquareSums& sums, const Square& square, int inner, LoadLeft load_left,
                         LoadRight load_right) {
  const bool second = square.has[1][0], twice = square.has[0][1] || square.has[1][1];
#pragma unroll 1
  for (int k = 0; k < inner; ++k) {
    uint32_t left[2][4], right[4];  // one right operand after the other: registers are few
    load_left(left[0], square.row, k);
    if (second) load_left(left[1], square.row + 1, k);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (b == 1 && !twice) continue;
      load_right(right, k, square.col + b);
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        if (square.has[a][b]) multiply_tile<T>(sums[a][b], left[a], right);
      }
    }
  }
}

// body(a, b, i, row, col) for every pair i of registers of the square's tiles, and its place in
// tile (a, b).
template <class Body>
DEV void each_pair(const Square& square, const Lane& lane, Body body) {
#pragma unroll
  for (int a = 0; a < 2; ++a)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (!square.has[a][b]) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) body(a, b, i, lane.row + i % 2 * 8, lane.col + i / 2 * 8);
    }
}

}  // namespace schattor::cuda::small

// Products of one block on matrices in shared memory: a warp's share of them, by mma.sync.
#pragma once

#include "on_chip.cuh"

namespace schattor::cuda::small {

constexpr int kTile = 16;  // rows and columns of a tile
constexpr int kPad = 8;    // elements after each row: ldmatrix then meets no bank twice

// Leading dimension in shared memory of a matrix of so many tiles' columns.
constexpr int padded(int tiles) { return tiles * kTile + kPad; }

// Where in a tile a lane's registers of a 16 x 8 accumulator lie: rows row and row + 8, columns col
// and col + 1.
struct Lane {
  int index, row, col;
  DEV explicit Lane(int thread)
      : index(thread % on_chip::kWarp), row(index / 4), col(index % 4 * 2) {}
};

// A tile as left operand, or a tile of rows as right operand: what each lane's register holds.
template <class T>
DEV void load_left(uint32_t (&registers)[4], const T* tile, int ld, int lane) {
  dev::ldmatrix_x4(registers, tile + lane % 16 * ld + lane / 16 * 8);
}

// A right operand whose columns are the rows of `tile`, as in X X'.
template <class T>
DEV void load_transposed(uint32_t (&registers)[4], const T* tile, int ld, int lane) {
  dev::ldmatrix_x4(registers, tile + (lane % 8 + lane / 16 * 8) * ld + lane / 8 % 2 * 8);
}

// A right operand as it lies, as in P X.
template <class T>
DEV void load_right(uint32_t (&registers)[4], const T* tile, int ld, int lane) {
  dev::ldmatrix_x4_trans(registers, tile + lane % 16 * ld + lane / 16 * 8);
}

template <class T>
DEV void multiply_tile(float (&sum)[2][4], const uint32_t (&left)[4], const uint32_t (&right)[4]) {
  dev::mma<T>(sum[0], left, right[0], right[1]);
  dev::mma<T>(sum[1], left, right[2], right[3]);
}

template <class T>
struct Tiles {
  const T* data;
  int ld;
  DEV const T* at(int row, int col) const { return data + (row * ld + col) * kTile; }
};

// sums += left right for one row of tiles of the result and `count` of its columns, at most
// kCount: left is the row of tiles, right begins with the columns. Goes by pairs, so that one load
// covers the other's latency; of an odd last pair the second sum is left with what means nothing.
template <class T, bool kTransposed, int kCount>
DEV void multiply(float (&sums)[kCount][2][4], const Tiles<T>& left, const Tiles<T>& right,
                  int inner, int count, int lane) {
#pragma unroll 1
  for (int k = 0; k < inner; ++k) {
    uint32_t from_left[4], from_right[2][4];
    load_left(from_left, left.at(0, k), left.ld, lane);
#pragma unroll
    for (int j = 0; j < kCount; j += 2) {
      if (j >= count) continue;
      const int second = j + 1 < count ? j + 1 : j;
      if constexpr (kTransposed) {
        load_transposed(from_right[0], right.at(j, k), right.ld, lane);
        load_transposed(from_right[1], right.at(second, k), right.ld, lane);
      } else {
        load_right(from_right[0], right.at(k, j), right.ld, lane);
        load_right(from_right[1], right.at(k, second), right.ld, lane);
      }
      multiply_tile<T>(sums[j], from_left, from_right[0]);
      multiply_tile<T>(sums[j + 1], from_left, from_right[1]);
    }
  }
}

}  // namespace schattor::cuda::small

// What the engine `hopper` does with a tile of A op(B) that stands in a warpgroup's registers.
//
// It works in 64 x 64 boxes, the shape in which TMA reads D and S and writes C and S, rows of 128
// bytes with the 128-byte swizzle. Box (h, c) of a tile belongs to block row 2 row + h and block
// column 2 col + c of C. In a symmetric C a box below the diagonal is also stored transposed into
// its mirror, a box on it is made symmetric from its lower half in shared memory, and a box above
// it is left to its mirror: so every element is written once and C is exactly symmetric.
#pragma once

#include "coefficient.cuh"
#include "hopper_tiles.h"

namespace schattor::cuda::hopper {

constexpr int kBox = kBoxSide * kBoxSide;
constexpr int kBoxesOfTile = 4;
constexpr int kWarpgroup = 128;  // threads

// Element (row, 8 chunk) of a box: TMA's swizzle XORs the 16-byte chunks with the row.
DEV int in_box(int row, int chunk) { return row * kBoxSide + (chunk ^ (row & 7)) * 8; }

enum class BoxKind { kSkipped, kPlain, kMirrored, kDiagonal };

DEV BoxKind box_kind(const Job& job, int block_row, int block_col) {
  if (block_row * kBoxSide >= job.rows || block_col * kBoxSide >= job.cols) {
    return BoxKind::kSkipped;
  }
  if (!job.symmetric) return BoxKind::kPlain;
  if (block_row == block_col) return BoxKind::kDiagonal;
  return block_row > block_col ? BoxKind::kMirrored : BoxKind::kSkipped;
}

// A warpgroup's registers hold kHalves x 64 rows of the tile by 128 columns; `half` is the first.
// Register i of thread t is row t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column i / 4 * 8 +
// t % 4 * 2 + i % 2 of its half, so that eight successive registers are four 8 x 8 matrices of
// ldmatrix and stmatrix: 16 rows by 16 columns a warp.
template <class T, int kHalves>
struct Epilogue {
  const Job& job;
  const Tile& tile;
  int half;
  int thread;  // of the warpgroup

  DEV int warp() const { return thread / 32; }
  DEV int lane() const { return thread % 32; }
  // The row of a box whose address this lane gives to ldmatrix and stmatrix.
  DEV int own_row() const { return warp() * 16 + lane() % 16; }
  DEV int block_row(int h) const { return 2 * tile.row + half + h; }
  DEV int block_col(int c) const { return 2 * tile.col + c; }
  DEV BoxKind kind(int h, int c) const { return box_kind(job, block_row(h), block_col(c)); }
  DEV T* box(T* boxes, int h, int c) const { return boxes + ((half + h) * 2 + c) * kBox; }

  // sums <- scale sums + factor x, x in boxes; null: sums <- scale sums.
  DEV void combine(float (&sums)[kHalves][64], float scale, float factor, T* boxes) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (kind(h, c) == BoxKind::kSkipped) continue;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          float* v = sums[h] + (c * 8 + q * 2) * 4;
          uint32_t x[4] = {};
          if (boxes != nullptr) {
            dev::ldmatrix_x4(x, box(boxes, h, c) + in_box(own_row(), q * 2 + lane() / 16));
          }
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            const float2 pair = unpack<T>(x[m]);
            v[m * 2] = scale * v[m * 2];
            v[m * 2 + 1] = scale * v[m * 2 + 1];
            if (boxes != nullptr) {
              v[m * 2] += factor * pair.x;
              v[m * 2 + 1] += factor * pair.y;
            }
          }
        }
      }
    }
  }

  // The sum of squares of each half, over its warp and with mirrored elements counted twice, to
  // sums[h * 4 + warp].
  DEV void sum_squares(const float (&values)[kHalves][64], float* sums) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      float sum = 0.f;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const BoxKind which = kind(h, c);
        if (which == BoxKind::kSkipped) continue;
        const float count = which == BoxKind::kPlain ? 1.f : 2.f;
#pragma unroll
        for (int x = 0; x < 32; ++x) {
          const float v = values[h][c * 32 + x];
          const int row = warp() * 16 + lane() / 4 + (x / 2 & 1) * 8;
          const int col = x / 4 * 8 + lane() % 4 * 2 + (x & 1);
          const float square = v * v;
          if (which != BoxKind::kDiagonal || row > col) {
            sum += count * square;
          } else if (row == col) {
            sum += square;
          }
        }
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(~0u, sum, distance);
      }
      if (lane() == 0) sums[h * 4 + warp()] = sum;
    }
  }

  // Rounds the values into boxes, and into mirrored boxes where C is symmetric.
  DEV void write(const float (&values)[kHalves][64], T* boxes, T* mirrors) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const BoxKind which = kind(h, c);
        if (which == BoxKind::kSkipped) continue;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float* v = values[h] + (c * 8 + q * 2) * 4;
          if (which == BoxKind::kDiagonal) {
            write_diagonal(v, q, box(boxes, h, c));
            continue;
          }
          uint32_t packed[4];
#pragma unroll
          for (int m = 0; m < 4; ++m) packed[m] = pack<T>(v[m * 2], v[m * 2 + 1]);
          dev::stmatrix_x4(box(boxes, h, c) + in_box(own_row(), q * 2 + lane() / 16), packed);
          if (which == BoxKind::kMirrored) {
            dev::stmatrix_x4_trans(
                box(mirrors, h, c) +
                    in_box(q * 16 + lane() / 16 * 8 + lane() % 8, warp() * 2 + (lane() / 8 & 1)),
                packed);
          }
        }
      }
    }
  }

  // Eight values, 16 x 16 a warp, of a box on the diagonal: the lower half goes to both.
  DEV void write_diagonal(const float* v, int q, T* box) const {
#pragma unroll
    for (int x = 0; x < 8; ++x) {
      const int row = warp() * 16 + lane() / 4 + (x / 2 & 1) * 8;
      const int col = q * 16 + x / 4 * 8 + lane() % 4 * 2 + (x & 1);
      const T value = static_cast<T>(v[x]);
      if (row >= col) box[in_box(row, col / 8) + col % 8] = value;
      if (row > col) box[in_box(col, row / 8) + row % 8] = value;
    }
  }

  // By one thread: what write() wrote, to global memory. TMA clips at rows and cols.
  DEV void store(const dev::TensorMap* map, T* boxes, T* mirrors) const {
    for (int h = 0; h < kHalves; ++h) {
      for (int c = 0; c < 2; ++c) {
        const BoxKind which = kind(h, c);
        if (which == BoxKind::kSkipped) continue;
        const int row = block_row(h) * kBoxSide, col = block_col(c) * kBoxSide;
        dev::tma_store_3d(map, box(boxes, h, c), col, row, tile.matrix);
        if (which == BoxKind::kMirrored) {
          dev::tma_store_3d(map, box(mirrors, h, c), row, col, tile.matrix);
        }
      }
    }
    dev::bulk_commit();
  }
};

}  // namespace schattor::cuda::hopper

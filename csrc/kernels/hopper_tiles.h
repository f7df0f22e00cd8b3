// Tiles of the engine `hopper`: parameters of its kernel, and the order in which tiles are dealt.
#pragma once

#include "device.h"
#include "product.h"

namespace schattor::cuda::hopper {

constexpr int kTile = 128;    // rows and columns of a tile of C
constexpr int kDepth = 64;    // of the slices of A and B that a ring slot holds
constexpr int kBoxSide = 64;  // of the boxes in which C, D and S travel: 128 bytes a row
constexpr int kSuperRow = 8;  // tile rows that are dealt column by column
constexpr int kPartials = 2;  // sums of squares of a tile: one for each half of its rows

// One product in the kernel's parameters.
struct Job {
  dev::TensorMap a, b, c, d, s;
  int rows, cols;
  int steps;  // slices along the inner dimension
  int row_tiles, col_tiles;
  int tiles;  // of one matrix
  int first;  // tile of the launch
  bool symmetric;
  bool one_operand;  // A is B: a tile on the diagonal loads one slice for both
  bool b_row_major;  // B is (inner, cols)
  bool has_c, has_d, has_s;
  Coefficient alpha, beta, gamma, weight;  // beta and gamma are 0 without D and S
  float* partials;                         // (batch, tiles, kPartials), or null
};

// Under 7 of the 32 KB that parameters may have from sm_80 on.
struct Params {
  Job jobs[kMostGroups];
  int count;
  int tiles;
  int slots;  // of the ring: one fewer where a product has S, which is staged in its place
};

struct Tile {
  int job, matrix;
  int row, col;   // in tiles
  int in_matrix;  // number of the tile in its matrix
};

DEV_BOTH inline int triangle(int rows) { return rows * (rows + 1) / 2; }

// Row and column of entry `number` of a triangle that is counted row by row.
DEV_BOTH inline void locate_in_triangle(int number, int* row, int* col) {
  int i = static_cast<int>((sqrtf(8.f * number + 1.f) - 1.f) * 0.5f);  // may be one off
  while (triangle(i) > number) --i;
  while (triangle(i + 1) <= number) ++i;
  *row = i;
  *col = number - triangle(i);
}

// Tiles are counted in super-rows of kSuperRow tile rows, and in these column by column, so that
// the blocks at work at one time share slices: 132 successive tiles read 8 slices of A and 17 of B,
// near the least that is possible, 23.
DEV_BOTH inline void locate(const Job& job, int number, int* row, int* col) {
  int above;  // super-rows
  if (job.symmetric) {
    locate_in_triangle(number, row, col);
    above = *row / kSuperRow;  // counting row by row fills the same super-rows
    number -= triangle(above * kSuperRow);
  } else {
    above = number / (kSuperRow * job.col_tiles);
    number -= above * kSuperRow * job.col_tiles;
  }
  const int first = above * kSuperRow;
  const int height = job.row_tiles - first < kSuperRow ? job.row_tiles - first : kSuperRow;
  const int full = job.symmetric ? first : job.col_tiles;  // columns that meet all these rows
  if (number < full * height) {
    *col = number / height;
    *row = first + number % height;
  } else {
    locate_in_triangle(number - full * height, row, col);
    *row += first;
    *col += first;
  }
}

DEV_BOTH inline Tile tile_at(const Params& params, int number) {
  Tile tile;
  tile.job = 0;
  while (tile.job + 1 < params.count && number >= params.jobs[tile.job + 1].first) ++tile.job;
  const Job& job = params.jobs[tile.job];
  number -= job.first;
  tile.matrix = number / job.tiles;
  tile.in_matrix = number - tile.matrix * job.tiles;
  locate(job, tile.in_matrix, &tile.row, &tile.col);
  return tile;
}

}  // namespace schattor::cuda::hopper

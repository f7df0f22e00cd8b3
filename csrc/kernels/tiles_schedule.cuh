// Which tile a number stands for.
#pragma once

#include "device.h"
#include "tiles.h"

namespace schattor::cuda::tiles {

constexpr int kSuperRow = 8;  // tile rows that are dealt column by column

// Lies in shared memory: registers are needed for sums.
struct Tile {
  Group group;
  int matrix, slice;
  int row, col;  // in tiles, in boxes
};

struct Place {
  int row, col;
};

// Entry `number` of a lower triangle that is counted row by row.
DEV Place in_triangle(int number) {
  int row = static_cast<int>((sqrtf(8.f * number + 1.f) - 1.f) * 0.5f);  // may be one off
  while (row * (row + 1) / 2 > number) --row;
  while ((row + 1) * (row + 2) / 2 <= number) ++row;
  return {row, number - row * (row + 1) / 2};
}

// Tiles are counted by super-rows of eight, and in these column by column, so that blocks that work
// at one time share what they read: 132 successive tiles read 8 panels of A and 17 of B, where row
// by row they might read 2 and 132.
DEV Place in_super_rows(const Group& group, int number) {
  const bool symmetric = group.product.symmetric;
  // Row by row, a triangle fills the same super-rows.
  const int super =
      symmetric ? in_triangle(number).row / kSuperRow : number / (kSuperRow * group.tile_cols);
  const int first = super * kSuperRow;
  number -= symmetric ? first * (first + 1) / 2 : first * group.tile_cols;
  const int height = min(kSuperRow, group.tile_rows - first);
  const int full_cols = symmetric ? first : group.tile_cols;  // these meet all rows
  if (number < full_cols * height) return {first + number % height, number / height};
  const Place corner = in_triangle(number - full_cols * height);
  return {first + corner.row, first + corner.col};
}

// The group that piece `number` belongs to, if groups have so many pieces as `count` says; number
// becomes that in the group.
template <typename Count>
DEV const Group& group_at(const Params& params, int* number, const Count& count) {
  int index = 0;
  while (*number >= count(params.groups[index])) *number -= count(params.groups[index++]);
  return params.groups[index];
}

// By all threads of a block, before they meet.
DEV void copy_group(const Group& from, Group* to) {
  static_assert(sizeof(Group) % sizeof(int64_t) == 0, "a group is made of words");
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(Group) / sizeof(int64_t)); i += kThreads) {
    reinterpret_cast<int64_t*>(to)[i] = reinterpret_cast<const int64_t*>(&from)[i];
  }
}

// Writes the tile of this number, for all threads of the block to see.
DEV void take_tile(const Params& params, int number, Tile* tile) {
  const Group& group = group_at(params, &number, [](const Group& each) {
    return each.product.batch * each.slices * each.tiles;
  });
  copy_group(group, &tile->group);
  if (threadIdx.x == 0) {
    const int piece = number / group.tiles;
    const Place place = in_super_rows(group, number - piece * group.tiles);
    tile->matrix = piece / group.slices;
    tile->slice = piece % group.slices;
    tile->row = place.row;
    tile->col = place.col;
  }
  __syncthreads();
}

// Number of a box among those of its matrix.
DEV int box_number(const Group& group, int row, int col) {
  return group.product.symmetric ? row * (row + 1) / 2 + col : row * group.box_cols + col;
}

}  // namespace schattor::cuda::tiles

// Inside of the engine `hopper` of product.h, for hopper.cu and its test.
//
// Beyond what product.h says: beta 0 does not read D, as gamma 0 does not read S; where C is
// symmetric, S must be, and only the lower triangles of D and S count; squares are of C before it
// is rounded. A batch of several matrices needs operands that do not overlap, stride 0 included.
#pragma once

#include "product.h"

namespace schattor::cuda::hopper {

// How the two consumer warpgroups of a block share its tiles.
enum class Schedule {
  kCooperative,  // each owns 64 rows of every tile: shortest way through one tile
  kPingPong,     // each owns every second tile: one's epilogue runs under the other's products
};

// What multiply does, in the schedule given and on a persistent grid of `blocks`: at most one a
// multiprocessor. Neither changes a bit of the results.
cudaError_t multiply_as(const Product* products, int count, void* workspace, Schedule schedule,
                        int blocks, cudaStream_t stream);

// Cooperative while every block gets at most one tile, for then there is nothing for an epilogue to
// run under; ping-pong beyond.
Schedule schedule_of(const Product* products, int count, int multiprocessors);

// All that serves() asks but the architecture.
bool layout_fits(const Product* products, int count);

}  // namespace schattor::cuda::hopper

// The two ways of the partial SVD, for partial_svd alone, which chooses by shape, and for tests.
#pragma once

#include "launch.h"

namespace schattor::cuda::svd {

// For matrices that fit one block's shared memory: one launch for everything, and no workspace.
bool small_serves(const PartialSvdArgs& args);
cudaError_t small(const PartialSvdArgs& args, cudaStream_t stream);

// For all others: a few launches an iteration, over blocks of every matrix.
struct GridLimits {
  size_t shared = 96 << 10;      // bytes for small matrices; larger ones lie in the workspace
  int64_t block_work = 1 << 22;  // of a pass of Cholesky QR that one block may do where it is rare
};
size_t grid_workspace(const PartialSvdArgs& args);  // bytes
cudaError_t grid(const PartialSvdArgs& args, void* workspace, cudaStream_t stream,
                 const GridLimits& limits = {});

}  // namespace schattor::cuda::svd

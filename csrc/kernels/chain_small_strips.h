// The larger of the small matrices, up to 256 x 256 where a block may have 200 KB of shared memory:
// one block a matrix as before, but registers hold a strip of columns at a time.
#pragma once

#include "launch.h"

namespace schattor::cuda::small {

bool strips_serve(const ChainArgs& args, const DeviceFacts& facts);
size_t strips_workspace(const ChainArgs& args, const DeviceFacts& facts);
cudaError_t run_strips(const ChainArgs& args, const DeviceFacts& facts, void* workspace,
                       cudaStream_t stream);

}  // namespace schattor::cuda::small

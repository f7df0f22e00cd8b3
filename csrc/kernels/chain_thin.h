// The chain of long thin matrices (rows <= 64): the small side in one block and in double while
// that matters, the long side read once where a block's shared memory holds it, else twice.
#pragma once

#include "launch.h"

namespace schattor::cuda::thin {

bool serves(const ChainArgs& args, const DeviceFacts& facts);
size_t workspace(const ChainArgs& args, const DeviceFacts& facts);
cudaError_t run(const ChainArgs& args, void* workspace, cudaStream_t stream);
// The same on a device of these facts.
cudaError_t run(const ChainArgs& args, const DeviceFacts& facts, void* workspace,
                cudaStream_t stream);

}  // namespace schattor::cuda::thin

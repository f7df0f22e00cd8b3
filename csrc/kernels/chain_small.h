// The chain of a matrix that fits on one multiprocessor: all steps in one launch, one block a
// matrix. Half precision, direct form.
#pragma once

#include "launch.h"

namespace schattor::cuda::small {

bool serves(const ChainArgs& args, const DeviceFacts& facts);
size_t workspace(const ChainArgs& args, const DeviceFacts& facts);
cudaError_t run(const ChainArgs& args, void* workspace, cudaStream_t stream);

}  // namespace schattor::cuda::small

// A wide batch copied with rows and columns exchanged.
#pragma once

#include "product.h"

namespace schattor::cuda {

struct TransposedCopy {
  Dtype dtype;  // kFloat32 or kFloat64
  int64_t batch, rows, cols;
  const void* from;  // contiguous (batch, rows, cols)
  Operand to;        // (cols, rows); what is beyond its rows' ends is left as it is
};
cudaError_t copy_transposed(const TransposedCopy& args, cudaStream_t stream);

}  // namespace schattor::cuda

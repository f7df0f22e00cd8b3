// What kernels and who launches them ask of a dtype.
#pragma once

#include "launch.h"

namespace schattor::cuda {

constexpr int size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

constexpr bool is_half(Dtype dtype) {
  return dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
}

}  // namespace schattor::cuda

// A product's device numbers, read by its kernels.
#pragma once

#include "product.h"
#include "scalars.cuh"

namespace schattor::cuda {

template <class Sum>
DEV Sum value_of(const Coefficient& coefficient, int64_t matrix) {
  if (coefficient.data == nullptr) return static_cast<Sum>(coefficient.otherwise);
  return static_cast<Sum>(dev::in_global(coefficient.data)[matrix * coefficient.step]);
}

}  // namespace schattor::cuda

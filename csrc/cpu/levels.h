// Tables of the inner loops, one per instruction set. rows.inc and products.inc are compiled once
// per set (level_*.cpp) in a namespace of its own, and levels.cpp picks the table in force.
#pragma once

#include "kernels.h"
#include "products.h"
#include "rows.h"

namespace schattor::cpu {

struct LevelKernels {
  RowKernels rows;          // rows.h: conversions and fused element loops over a row
  ProductKernels products;  // products.h: packed matrix products
};

// The table of the level in force; AMX shares AVX-512's and adds its own chain.
const LevelKernels& kernels();

const LevelKernels& baseline_kernels();
const LevelKernels& avx2_kernels();
const LevelKernels& avx512_kernels();

}  // namespace schattor::cpu

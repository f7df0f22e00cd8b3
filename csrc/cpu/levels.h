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

// The table of the level in force; AMX shares that of the highest level below it and adds its own
// chain.
const LevelKernels& kernels();

// Whether the table in force has float16 vectors.
inline bool has_float16() { return kernels().products.in_float16.multiply != nullptr; }
// Whether it has products of bfloat16 vectors.
inline bool has_bfloat16() { return kernels().products.in_bfloat16.multiply != nullptr; }

const LevelKernels& baseline_kernels();
const LevelKernels& avx2_kernels();
const LevelKernels& avx512_kernels();
const LevelKernels& avx512_bf16_kernels();
const LevelKernels& avx512_fp16_kernels();

#ifdef SCHATTOR_EMULATE_HALVES
// For tests, on any processor: while this is set, the table in force is the baseline's with vectors
// of both kinds of half precision that the compiler makes up.
void emulate_halves(bool on);
const LevelKernels& emulated_half_kernels();
#endif

}  // namespace schattor::cpu

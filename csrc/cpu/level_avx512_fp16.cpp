// Chains in float16 vectors for processors with AVX-512 FP16; all else is AVX-512's.
#include "level_headers.h"

#if SCHATTOR_FLOAT16_LEVEL
#define SCHATTOR_FLOAT16 1
#define SCHATTOR_VECTOR_BYTES 64

#pragma GCC push_options
#pragma GCC target( \
    "avx512fp16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_LEVEL avx512_fp16
#include "float16.inc"
#pragma GCC pop_options

namespace schattor::cpu {
namespace {

LevelKernels with_float16(LevelKernels table, RowLoops<Float16> rows, Products<Float16> products) {
  table.rows.in_float16 = rows;
  table.products.in_float16 = products;
  return table;
}

}  // namespace

const LevelKernels& avx512_fp16_kernels() {
  static const LevelKernels table =
      with_float16(avx512_kernels(), avx512_fp16::float16_rows(), avx512_fp16::float16_products());
  return table;
}
}  // namespace schattor::cpu

#ifdef SCHATTOR_EMULATE_FLOAT16
#undef SCHATTOR_LEVEL
#define SCHATTOR_LEVEL emulated
#define SCHATTOR_EMULATED 1
// Vectors that the target lacks are passed in memory, here only within this file.
#pragma GCC diagnostic ignored "-Wpsabi"
#include "float16.inc"

namespace schattor::cpu {
const LevelKernels& emulated_float16_kernels() {
  static const LevelKernels table =
      with_float16(baseline_kernels(), emulated::float16_rows(), emulated::float16_products());
  return table;
}
}  // namespace schattor::cpu
#endif
#endif

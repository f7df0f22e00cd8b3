// rows.inc and products.inc for processors with AVX-512 (F, BW, DQ, VL).
#include "level_headers.h"

#if SCHATTOR_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_LEVEL avx512
#define SCHATTOR_VECTOR_BYTES 64
#include "rows.inc"
// products.inc comes after: it uses the conversions of rows.inc.
#include "products.inc"
#include "tables.inc"
#pragma GCC pop_options

namespace schattor::cpu {
const LevelKernels& avx512_kernels() {
  static const LevelKernels table{avx512::row_kernels(), avx512::product_kernels()};
  return table;
}
}  // namespace schattor::cpu
#endif

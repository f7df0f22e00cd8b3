// rows.inc and products.inc for processors with AVX2, FMA and F16C.
#include "level_headers.h"

#if SCHATTOR_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define SCHATTOR_LEVEL avx2
#define SCHATTOR_VECTOR_BYTES 32
#include "rows.inc"
// products.inc comes after: it uses the conversions of rows.inc.
#include "products.inc"
#include "tables.inc"
#pragma GCC pop_options

namespace schattor::cpu {
const LevelKernels& avx2_kernels() {
  static const LevelKernels table{avx2::row_kernels(), avx2::product_kernels()};
  return table;
}
}  // namespace schattor::cpu
#endif

// Chains in float16 vectors for processors with AVX-512 FP16; all else is AVX-512's.
#include "level_headers.h"

#if SCHATTOR_FLOAT16_LEVEL
#pragma GCC push_options
#pragma GCC target( \
    "avx512fp16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_FLOAT16 1
#define SCHATTOR_LEVEL avx512_fp16
#define SCHATTOR_VECTOR_BYTES 64
#include "rows.inc"
// products.inc uses the conversions of rows.inc.
#include "products.inc"
// And each of these uses those before it.
#include "half_vectors.inc"
// Conversions.
#include "float16_vectors.inc"
// What is common to both kinds of half precision.
#include "half_loops.inc"
// In strips, with sums in float16 or float.
#include "float16_products.inc"

namespace schattor::cpu {
const LevelKernels& avx512_fp16_kernels() {
  static const LevelKernels table = [] {
    LevelKernels changed = avx512_kernels();
    changed.rows.in_float16 = avx512_fp16::half_rows<Float16>();
    changed.products.in_float16 = avx512_fp16::half_products(avx512_fp16::multiply_halves);
    return changed;
  }();
  return table;
}
}  // namespace schattor::cpu
#pragma GCC pop_options
#endif

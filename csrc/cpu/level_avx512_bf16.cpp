// Chains in products of bfloat16 vectors for processors with AVX-512 BF16; all else is AVX-512's.
#include "level_headers.h"

#if SCHATTOR_BFLOAT16_LEVEL
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_LEVEL avx512_bf16
#define SCHATTOR_VECTOR_BYTES 64
#include "rows.inc"
// products.inc uses the conversions of rows.inc.
#include "products.inc"
// And each of these uses those before it.
#include "half_vectors.inc"
// Conversions.
#include "bfloat16_vectors.inc"
// What is common to both kinds of half precision.
#include "half_loops.inc"
// In strips, with sums in float.
#include "bfloat16_products.inc"

namespace schattor::cpu {
const LevelKernels& avx512_bf16_kernels() {
  static const LevelKernels table = [] {
    LevelKernels changed = avx512_kernels();
    changed.rows.in_bfloat16 = avx512_bf16::half_rows<BFloat16>();
    changed.products.in_bfloat16 = avx512_bf16::half_products(avx512_bf16::multiply_pairs);
    return changed;
  }();
  return table;
}
}  // namespace schattor::cpu
#pragma GCC pop_options
#endif

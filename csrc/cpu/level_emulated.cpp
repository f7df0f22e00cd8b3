// Chains in vectors of half precision that the compiler makes up, for tests on any processor; all
// else is the baseline's.
#include "level_headers.h"

#if SCHATTOR_FLOAT16_LEVEL && defined(SCHATTOR_EMULATE_HALVES)
#define SCHATTOR_EMULATED 1
#define SCHATTOR_FLOAT16 1
#define SCHATTOR_LEVEL emulated
#define SCHATTOR_VECTOR_BYTES 64
#include "rows.inc"
// products.inc uses the conversions of rows.inc.
#include "products.inc"
// And each of these uses those before it.
#include "half_vectors.inc"
// Conversions.
#include "bfloat16_vectors.inc"
#include "float16_vectors.inc"
// What is common to both kinds of half precision.
#include "half_loops.inc"
// In strips.
#include "bfloat16_products.inc"
#include "float16_products.inc"

namespace schattor::cpu {
const LevelKernels& emulated_half_kernels() {
  static const LevelKernels table = [] {
    LevelKernels changed = baseline_kernels();
    changed.rows.in_bfloat16 = emulated::half_rows<BFloat16>();
    changed.products.in_bfloat16 = emulated::half_products(emulated::multiply_pairs);
    changed.rows.in_float16 = emulated::half_rows<Float16>();
    changed.products.in_float16 = emulated::half_products(emulated::multiply_halves);
    return changed;
  }();
  return table;
}
}  // namespace schattor::cpu
#endif

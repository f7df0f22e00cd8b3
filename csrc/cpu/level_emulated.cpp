// Chains in vectors of half precision that the compiler makes up, for tests on any processor; all
// else is the baseline's.
#include "level_headers.h"

#if SCHATTOR_FLOAT16_LEVEL && defined(SCHATTOR_EMULATE_HALVES)
#define SCHATTOR_EMULATED 1
#define SCHATTOR_BFLOAT16 1
#define SCHATTOR_FLOAT16 1
#define SCHATTOR_LEVEL emulated
#define SCHATTOR_VECTOR_BYTES 64
#include "half.inc"

namespace schattor::cpu {
const LevelKernels& emulated_half_kernels() {
  static const LevelKernels table = emulated::with_halves(baseline_kernels());
  return table;
}
}  // namespace schattor::cpu
#endif

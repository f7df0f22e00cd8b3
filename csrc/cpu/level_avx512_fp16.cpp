// Chains in float16 vectors for processors with AVX-512 FP16; all else is AVX-512's.
#include "level_headers.h"

#if SCHATTOR_FLOAT16_LEVEL
#pragma GCC push_options
#pragma GCC target( \
    "avx512fp16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_FLOAT16 1
#define SCHATTOR_LEVEL avx512_fp16
#define SCHATTOR_VECTOR_BYTES 64
#include "half.inc"

namespace schattor::cpu {
const LevelKernels& avx512_fp16_kernels() {
  static const LevelKernels table = avx512_fp16::with_halves(avx512_kernels());
  return table;
}
}  // namespace schattor::cpu
#pragma GCC pop_options
#endif

// Chains in products of bfloat16 vectors for processors with AVX-512 BF16; all else is AVX-512's.
#include "level_headers.h"

#if SCHATTOR_BFLOAT16_LEVEL
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_BFLOAT16 1
#define SCHATTOR_LEVEL avx512_bf16
#define SCHATTOR_VECTOR_BYTES 64
#include "half.inc"

namespace schattor::cpu {
const LevelKernels& avx512_bf16_kernels() {
  static const LevelKernels table = avx512_bf16::with_halves(avx512_kernels());
  return table;
}
}  // namespace schattor::cpu
#pragma GCC pop_options
#endif

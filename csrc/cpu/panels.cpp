// One copy of panels.inc per instruction set, and the choice among them.
#include "panels.h"

// Before any `#pragma GCC target`, for the reason that level_headers.h gives.
#include <algorithm>

#include "level_headers.h"

#define SCHATTOR_LEVEL baseline
#define SCHATTOR_VECTOR_BYTES 16
#include "panels.inc"
#undef SCHATTOR_LEVEL
#undef SCHATTOR_VECTOR_BYTES

#if SCHATTOR_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define SCHATTOR_LEVEL avx2
#define SCHATTOR_VECTOR_BYTES 32
#include "panels.inc"
#undef SCHATTOR_LEVEL
#undef SCHATTOR_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SCHATTOR_LEVEL avx512
#define SCHATTOR_VECTOR_BYTES 64
#include "panels.inc"
#undef SCHATTOR_LEVEL
#undef SCHATTOR_VECTOR_BYTES
#pragma GCC pop_options
#endif

namespace schattor::cpu {

template <class T>
const PanelKernels<T>& panel_kernels() {
#if SCHATTOR_X86_LEVELS
  if (level() >= Level::kAvx512) return avx512::panel_kernels<T>();
  if (level() >= Level::kAvx2) return avx2::panel_kernels<T>();
#endif
  return baseline::panel_kernels<T>();
}

template const PanelKernels<float>& panel_kernels<float>();
template const PanelKernels<double>& panel_kernels<double>();

}  // namespace schattor::cpu

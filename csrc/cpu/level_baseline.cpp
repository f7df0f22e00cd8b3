// rows.inc and products.inc for any processor: whatever vectors the compiler's default target has.
#include "level_headers.h"

#define SCHATTOR_LEVEL baseline
#define SCHATTOR_VECTOR_BYTES 16
#include "rows.inc"
// products.inc comes after: it uses the conversions of rows.inc.
#include "products.inc"
#include "tables.inc"

namespace schattor::cpu {
const LevelKernels& baseline_kernels() {
  static const LevelKernels table{baseline::row_kernels(), baseline::product_kernels()};
  return table;
}
}  // namespace schattor::cpu

// The operators of every key, for the processor's.
#include <torch/csrc/stable/library.h>

#include "cpu_key.h"
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(schattor, CPU, library) {
  schattor::ops::Operators<schattor::ops::Cpu>::add_to(library);
}

// Every standard header that rows.inc and products.inc need, included before any `#pragma GCC
// target`: inline functions of the library must not be compiled for a set that the processor may
// lack, for the linker keeps one copy of each for the whole library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SCHATTOR_X86_LEVELS 1
#include <immintrin.h>
#else
#define SCHATTOR_X86_LEVELS 0
#endif

#include "levels.h"

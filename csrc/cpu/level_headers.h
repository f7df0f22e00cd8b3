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
// The header's own undefined vectors, which set no bit that is used (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#define SCHATTOR_X86_LEVELS 0
#endif

// The first g++ that knows products of bfloat16 vectors, and the first that knows _Float16 and its.
#if SCHATTOR_X86_LEVELS && __GNUC__ >= 10
#define SCHATTOR_BFLOAT16_LEVEL 1
#else
#define SCHATTOR_BFLOAT16_LEVEL 0
#endif
#if SCHATTOR_X86_LEVELS && __GNUC__ >= 12
#define SCHATTOR_FLOAT16_LEVEL 1
#else
#define SCHATTOR_FLOAT16_LEVEL 0
#endif

#include "levels.h"

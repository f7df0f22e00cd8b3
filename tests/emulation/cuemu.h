// What g++ needs to read a CUDA kernel. Types and conversions come from NVIDIA's own headers; this
// file gives what they leave to nvcc. device.h includes it where nvcc is not the compiler.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
// One copy for the whole process would be no block's own, and has no bounds.
#undef __shared__
#define __shared__ shared_arrays_come_from_dev_Carve_alone

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::cur->bid)
#define blockDim (emu::g_block)
#define gridDim (emu::g_grid)
#define warpSize 32

// ---- barriers, votes, shuffles ----

CUEMU_NOINLINE inline void __syncthreads() { emu::syncthreads(CUEMU_PC); }
CUEMU_NOINLINE inline void __syncwarp(unsigned mask = ~0u) {
  emu::warp_collective(mask, "__syncwarp", nullptr, nullptr, true, CUEMU_PC);
}
CUEMU_NOINLINE inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emu::ballot(mask, predicate, CUEMU_PC);
}
CUEMU_NOINLINE inline int __any_sync(unsigned mask, int predicate) {
  return emu::ballot(mask, predicate, CUEMU_PC) != 0;
}
CUEMU_NOINLINE inline int __all_sync(unsigned mask, int predicate) {
  return emu::ballot(mask, !predicate, CUEMU_PC) == 0;
}
// The block's verdict and its barrier at once.
CUEMU_NOINLINE inline int __syncthreads_or(int predicate) {
  return emu::block_vote(predicate, CUEMU_PC) != 0;
}
CUEMU_NOINLINE inline int __syncthreads_and(int predicate) {
  return emu::block_vote(!predicate, CUEMU_PC) == 0;
}
CUEMU_NOINLINE inline int __syncthreads_count(int predicate) {
  return emu::block_vote(predicate, CUEMU_PC);
}

namespace emu {

template <class T>
CUEMU_NOINLINE T shfl_from(unsigned mask, T value, int source) {
  T out;
  Shuffle shuffle{&value, &out, sizeof(T), source};
  shfl(mask, &shuffle, CUEMU_PC);
  return out;
}
inline int segment(int width) { return cur->lane & ~(width - 1); }
// A lane outside the segment: one's own value.
inline int within(int source, int width) {
  const int begin = segment(width);
  return source < begin || source >= begin + width ? cur->lane : source;
}

}  // namespace emu

template <class T>
CUEMU_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emu::shfl_from(mask, value, emu::segment(width) + (lane & (width - 1)));
}
template <class T>
CUEMU_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emu::shfl_from(mask, value, emu::within(emu::cur->lane ^ lanes, width));
}
template <class T>
CUEMU_INLINE T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
  return emu::shfl_from(mask, value, emu::within(emu::cur->lane + delta, width));
}
template <class T>
CUEMU_INLINE T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32) {
  return emu::shfl_from(mask, value, emu::within(emu::cur->lane - delta, width));
}

// ---- memory ----

template <class T, class U>
CUEMU_NOINLINE T atomicAdd(T* address, U value) {
  emu::check_access(address, sizeof(T), emu::kAtomic, CUEMU_PC);
  const T old = *address;
  *address = T(old + T(value));
  return old;
}
template <class T, class U>
CUEMU_NOINLINE T atomicMax(T* address, U value) {
  emu::check_access(address, sizeof(T), emu::kAtomic, CUEMU_PC);
  const T old = *address;
  if (T(value) > old) *address = T(value);
  return old;
}
template <class T>
CUEMU_INLINE T __ldg(const T* address) {
  return *address;
}
template <class T>
CUEMU_INLINE T __ldcg(const T* address) {
  return *address;
}
template <class T>
CUEMU_INLINE T __ldcs(const T* address) {
  return *address;
}
template <class T>
CUEMU_INLINE void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
CUEMU_INLINE void __stcs(T* address, T value) {
  *address = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- arithmetic: exact where the device approximates ----

namespace emu {

template <class To, class From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits of one size");
  To out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

}  // namespace emu

inline unsigned __float_as_uint(float x) { return emu::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emu::bits_as<float>(x); }
inline int __float_as_int(float x) { return emu::bits_as<int>(x); }
inline float __int_as_float(int x) { return emu::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return emu::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return emu::bits_as<double>(x); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }

inline unsigned __umulhi(unsigned x, unsigned y) { return uint64_t{x} * y >> 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

#define CUEMU_MIN_MAX(type)                                 \
  inline type min(type x, type y) { return y < x ? y : x; } \
  inline type max(type x, type y) { return x < y ? y : x; }
CUEMU_MIN_MAX(int)
CUEMU_MIN_MAX(unsigned)
CUEMU_MIN_MAX(long)
CUEMU_MIN_MAX(unsigned long)
CUEMU_MIN_MAX(long long)
CUEMU_MIN_MAX(unsigned long long)
#undef CUEMU_MIN_MAX
inline float min(float x, float y) { return std::fmin(x, y); }
inline float max(float x, float y) { return std::fmax(x, y); }
inline double min(double x, double y) { return std::fmin(x, y); }
inline double max(double x, double y) { return std::fmax(x, y); }

// The one header that kernels include: thin wrappers over PTX under nvcc, over the emulation of
// tests/emulation under a compiler for the processor. No PTX stands anywhere but here and in
// device_hopper.h; each wrapper has both bodies in one place.
#pragma once

#ifdef __CUDACC__
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <utility>
#else
#include "cuemu.h"
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

using bf16 = __nv_bfloat16;

// DEV: a device function; DEV_BOTH: of the host too. DEV_CALL: a wrapper, whose emulated body is
// not inlined, so that reports name the line of the kernel that called it. DEV_EITHER: the PTX, or
// what stands for it.
#ifdef __CUDACC__
#define DEV __device__ __forceinline__
#define DEV_BOTH __host__ __device__
#define DEV_CALL DEV
#define DEV_EITHER(ptx, emulated) ptx
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#define DEV CUEMU_INLINE
#define DEV_BOTH
#define DEV_CALL CUEMU_NOINLINE inline
#define DEV_EITHER(ptx, emulated) emulated
#define DYN_SMEM(name) unsigned char* name = static_cast<unsigned char*>(emu::dyn_smem())
#endif

namespace dev {

DEV_BOTH constexpr int div_up(int a, int b) { return (a + b - 1) / b; }

// A half precision that tensor cores multiply.
template <class T>
inline constexpr bool kIsHalf = std::is_same<T, __half>::value;
template <class T>
inline constexpr bool kIsTwoByte = kIsHalf<T> || std::is_same<T, bf16>::value;
static_assert(sizeof(bf16) == 2 && sizeof(__half) == 2, "two halves share a register");

// Hands out arrays from dynamic shared memory. The emulation sets them apart and knows their ends.
struct Carve {
  unsigned char* p;

  template <class T>
  DEV T* take(int n, int align = 16) {
#ifdef __CUDACC__
    p += (align - reinterpret_cast<uintptr_t>(p) % align) % align;
    T* data = reinterpret_cast<T*>(p);
    p += n * sizeof(T);
    return data;
#else
    return static_cast<T*>(emu::carve(&p, n * sizeof(T), align));
#endif
  }
};

// The same number, but unknown to the compiler: what follows from it is computed where it stands
// and not kept in registers from before a loop.
DEV int opaque(int value) {
  DEV_EITHER(asm volatile("" : "+r"(value)), (void)0);
  return value;
}

// The same pointer, known to the compiler to be to global memory: where it was read from shared
// memory, nothing else says so.
template <class T>
DEV T* in_global(T* data) {
  DEV_EITHER(__builtin_assume(__isGlobal(data)), (void)0);
  return data;
}

// ---- host ----

#ifdef __CUDACC__
// More than 48 KB a block must be asked for, once for every kernel on every device. Always all that
// static arrays leave: the limit is one for all launches of a kernel, also those of other threads
// and of a graph that is being captured.
inline cudaError_t allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> allowed;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({device, kernel}) != 0) return cudaSuccess;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  cudaFuncAttributes of{};
  error = cudaFuncGetAttributes(&of, kernel);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               most - static_cast<int>(of.sharedSizeBytes));
  if (error == cudaSuccess) allowed.insert({device, kernel});
  return error;
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, A&&... arguments) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = allow_shared_memory(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

DEV uint32_t smem_u32(const void* data) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(data));
}
#else
using emu::launch;
using emu::smem_u32;
#endif

// The current device, and what the driver says of one.
inline cudaError_t current_device(int* device) { return cudaGetDevice(device); }
inline cudaError_t attribute(int* value, cudaDeviceAttr which, int device) {
  return cudaDeviceGetAttribute(value, which, device);
}

// ---- named barriers: `threads` of the block, a multiple of 32; barrier 0 is __syncthreads ----

DEV_CALL void bar_sync(int id, int threads) {
  DEV_EITHER(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads)
                          : "memory"),
             emu::bar_sync(id, threads, true, CUEMU_PC));
}
DEV_CALL void bar_arrive(int id, int threads) {
  DEV_EITHER(asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads)
                          : "memory"),
             emu::bar_sync(id, threads, false, CUEMU_PC));
}

// ---- cp.async: 16, 8 or 4 bytes to shared memory; those past `valid` become zero ----

DEV_CALL void cp_async16(void* to, const void* from, int valid = 16) {
  DEV_EITHER(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(to)),
                          "l"(from), "r"(valid)
                          : "memory"),
             emu::cp_async(to, from, 16, valid, CUEMU_PC));
}
DEV_CALL void cp_async8(void* to, const void* from, int valid = 8) {
  DEV_EITHER(asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(smem_u32(to)),
                          "l"(from), "r"(valid)
                          : "memory"),
             emu::cp_async(to, from, 8, valid, CUEMU_PC));
}
DEV_CALL void cp_async4(void* to, const void* from, int valid = 4) {
  DEV_EITHER(asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_u32(to)),
                          "l"(from), "r"(valid)
                          : "memory"),
             emu::cp_async(to, from, 4, valid, CUEMU_PC));
}
DEV_CALL void cp_async_commit() {
  DEV_EITHER(asm volatile("cp.async.commit_group;" ::: "memory"), emu::cp_async_commit());
}
// Until at most N of the own groups are in flight.
template <int N>
DEV_CALL void cp_async_wait() {
  DEV_EITHER(asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"), emu::cp_async_wait(N));
}

// ---- ldmatrix: 8 x 8 matrices of two-byte elements; lane l gives the address of row l % 8 of
// matrix l / 8, and gets elements (l / 4, l % 4 * 2) and the next of each ----

DEV_CALL void ldmatrix_x1(uint32_t& r, const void* row) {
  DEV_EITHER(asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                          : "=r"(r)
                          : "r"(smem_u32(row))
                          : "memory"),
             emu::ldmatrix(&r, row, 1, false, CUEMU_PC));
}
DEV_CALL void ldmatrix_x1_trans(uint32_t& r, const void* row) {
  DEV_EITHER(asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                          : "=r"(r)
                          : "r"(smem_u32(row))
                          : "memory"),
             emu::ldmatrix(&r, row, 1, true, CUEMU_PC));
}
DEV_CALL void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  DEV_EITHER(asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                          : "=r"(r[0]), "=r"(r[1])
                          : "r"(smem_u32(row))
                          : "memory"),
             emu::ldmatrix(r, row, 2, false, CUEMU_PC));
}
DEV_CALL void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  DEV_EITHER(asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                          : "=r"(r[0]), "=r"(r[1])
                          : "r"(smem_u32(row))
                          : "memory"),
             emu::ldmatrix(r, row, 2, true, CUEMU_PC));
}
DEV_CALL void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  DEV_EITHER(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                          : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                          : "r"(smem_u32(row))
                          : "memory"),
             emu::ldmatrix(r, row, 4, false, CUEMU_PC));
}
DEV_CALL void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  DEV_EITHER(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                          : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                          : "r"(smem_u32(row))
                          : "memory"),
             emu::ldmatrix(r, row, 4, true, CUEMU_PC));
}

// ---- mma.m16n8k16: d (16 x 8) += a (16 x 16) b (16 x 8), sums in float ----

#ifdef __CUDACC__
#define DEV_MMA(type)                                                       \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#endif

template <class T>
DEV_CALL void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(kIsTwoByte<T>, "tensor cores multiply halves here");
#ifdef __CUDACC__
  if constexpr (kIsHalf<T>) {
    DEV_MMA("f16");
  } else {
    DEV_MMA("bf16");
  }
#else
  const uint32_t b[2] = {b0, b1};
  emu::mma_m16n8k16(d, a, b, kIsHalf<T>, CUEMU_PC);
#endif
}
#undef DEV_MMA

}  // namespace dev

#include "device_hopper.h"

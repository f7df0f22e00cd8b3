// The emulated device: what tests ask of it, and what the wrappers of device.h call.
//
// Every thread of a block is a fiber; a block runs until all its threads have ended, and blocks run
// one after another. docs of each part stand in its file: schedule.cpp, collectives.cpp,
// copies.cpp, tensor.cpp, race.cpp.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#define CUEMU_NOINLINE __attribute__((noinline))
#define CUEMU_INLINE inline __attribute__((always_inline))
// Where the caller stands. Functions that take a place are called from functions that are not
// inlined, so that a report names the kernel's own line.
#define CUEMU_PC __builtin_return_address(0)

namespace emu {

// ---- for tests ----

struct Options {
  uint64_t seed = 0;
  int order = 2;             // of threads and blocks: 0 ascending, 1 descending, 2 random
  bool eager_async = false;  // cp.async copies at once: a missing wait then goes unseen
  int max_reports = 12;      // printed; further ones are only counted
};
extern Options opt;

int reports();  // problems found since clear_reports
void clear_reports();
long conflicts();  // further wavefronts of ldmatrix and stmatrix (bank conflicts) since
                   // clear_reports

// What ran since clear_reports. Bytes are seen by the race build only, in registered buffers.
struct Counters {
  int64_t launches, blocks;
  int64_t mma_flops, wgmma_flops;
  int64_t bytes_loaded, bytes_stored;  // global memory, asynchronous copies included
  int64_t conflicts;
};
Counters counters();

// The device that launchers see. Few multiprocessors, so that persistent grids loop.
struct Device {
  int arch = 90;
  int multiprocessors = 4;
  int shared_bytes = 232448 - 1024;  // of dynamic shared memory a block may have
};
extern Device device;

// Global memory that knows its bounds: loads and stores of the race build are checked in it.
// alloc_global begins as NaN (0xFF) everywhere and has guards on both sides.
void register_global(const void* data, size_t bytes, const char* name);
void unregister_global(const void* data);
void* alloc_global(size_t bytes, const char* name);
void free_global(void* data);

// ---- launches ----

struct Block;
struct Thread {
  uint3 tid, bid;
  Block* block;
  int lin, lane, warp;
};
extern Thread* cur;  // null outside kernels
extern dim3 g_block, g_grid;

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context);

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::remove_cv_t<P>...> arguments;
  } call{kernel, {static_cast<P>(arguments)...}};
  const auto body = [](void* data) {
    auto* call = static_cast<Call*>(data);
    std::apply(call->kernel, call->arguments);
  };
  return run(grid, block, shared_bytes, body, &call);
}

// ---- for kernels, through cuemu.h and device.h ----

__attribute__((format(printf, 3, 4))) void report(const char* kind, void* place, const char* format,
                                                  ...);
// No-op but in the race build.
enum Access { kRead, kWrite, kAtomic };
void check_access(const void* data, size_t bytes, int access, void* place);

void* dyn_smem();
// The next array of dynamic shared memory, and what follows it. Arrays stand apart, so that an
// overrun is seen.
void* carve(unsigned char** next, size_t bytes, size_t align);
void allow(const void* data, size_t bytes);
uint32_t smem_u32(const void* data);

void syncthreads(void* place);
// A barrier that tells how many of its threads bring a true predicate.
int block_vote(bool predicate, void* place);
// A named barrier of `threads` threads (0: every thread that lives).
void bar_sync(int id, int threads, bool wait, void* place);
// Called by every lane of mask; the last to arrive computes for all.
using Collective = void (*)(void** arguments, uint32_t mask, void* place);
void warp_collective(uint32_t mask, const char* kind, void* argument, Collective function,
                     bool orders_memory, void* place);
void group_collective(const char* kind, void* argument, Collective function, void* place);
struct Shuffle {
  const void* value;
  void* out;
  size_t bytes;
  int source;
};
void shfl(uint32_t mask, Shuffle* shuffle, void* place);
uint32_t ballot(uint32_t mask, bool predicate, void* place);
void ldmatrix(uint32_t* registers, const void* row, int count, bool trans, void* place);
void stmatrix(void* row, const uint32_t* registers, int count, bool trans, void* place);

void cp_async(void* to, const void* from, int bytes, int valid, void* place);
void cp_async_commit();
void cp_async_wait(int pending);

void mbar_init(uint64_t* barrier, int count, void* place);
void mbar_arrive(uint64_t* barrier, int bytes, void* place);
void mbar_wait(uint64_t* barrier, int parity, void* place);
void fence_proxy_async();

// Stands for CUtensorMap: as large, aligned alike, and as opaque to kernels.
struct alignas(64) TensorMap {
  const void* base;
  uint64_t dims[3];     // elements; innermost first
  uint64_t strides[2];  // bytes, of dims 1 and 2
  uint32_t box[3];
  int rank, element_bytes;
  int swizzle;  // bytes of its span: 0, 32, 64, 128
};
// What cuTensorMapEncodeTiled refuses, this refuses.
cudaError_t make_tensor_map(TensorMap* map, const TensorMap& shape);
void tma_load(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2,
              void* place);
void tma_store(const TensorMap* map, const void* from, int c0, int c1, int c2, void* place);
void bulk_commit();
void bulk_wait(int pending);

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool half, void* place);
// d (64 x n) = a (64 x 16) b (16 x n) + accumulate ? d : 0; operands by descriptor.
struct Wgmma {
  float* d;
  int n;
  uint64_t a, b;
  bool accumulate, a_mn_major, b_mn_major, half;
};
void wgmma_issue(const Wgmma& operation, void* place);
void wgmma_fence(void* place);
void wgmma_commit(void* place);
void wgmma_wait(int pending, void* place);
void setmaxnreg(int registers, void* place);

}  // namespace emu

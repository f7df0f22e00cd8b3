// What schattor._C asks of the CUDA operators' library, whose functions it finds by name at run
// time: it is linked to neither the library nor CUDA. Plain C types, and nothing throws.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

// A chain, and the device that it would run on: arch 0 asks about the current device.
struct SchattorChain {
  int64_t batch, rows, cols;
  int dtype;  // in the order float64, float32, bfloat16, float16
  int depth;
  int gram;
  const int64_t* restarts;
  int restart_count;
  int arch, multiprocessors, shared_bytes;
};

// Which kernel serves the chain, in the order small, thin, tiles, hopper, and what workspace it
// asks for, in bytes. Returns null, or what is wrong.
typedef const char* SchattorChainKernel(const SchattorChain* chain, int* kernel, size_t* workspace);
SchattorChainKernel schattor_cuda_chain_kernel;

// Chains run in this kernel from now on, or fail where it does not serve them; -1: as planned.
typedef void SchattorForceChainKernel(int kernel);
SchattorForceChainKernel schattor_cuda_force_chain_kernel;

}  // extern "C"

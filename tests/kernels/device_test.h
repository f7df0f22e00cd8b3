// Tests of CUDA kernels, the same file for the emulation (g++) and for a GPU (nvcc).
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../cpu/check.h"
#include "device.h"

namespace device_test {

#ifdef __CUDACC__
// From a pool that keeps what is given back: some tests take memory thousands of times.
inline void* allocate(size_t bytes) {
  static const bool kept = [] {
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    int device;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetDefaultMemPool(&pool, device) == cudaSuccess &&
           cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all) == cudaSuccess;
  }();
  void* data = nullptr;
  const cudaError_t error = cudaMallocAsync(&data, bytes, nullptr);
  CHECK(kept && error == cudaSuccess, "%zu bytes: %s", bytes, cudaGetErrorString(error));
  return data;
}
#endif

// Device memory that knows its bounds. Begins as NaN (0xFF) everywhere.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size, const char* name = "buffer") : size_(size) {
#ifdef __CUDACC__
    data_ = static_cast<T*>(allocate(size * sizeof(T) + 1));
    cudaMemset(data_, 0xFF, size * sizeof(T));
    (void)name;
#else
    data_ = static_cast<T*>(emu::alloc_global(size * sizeof(T), name));
#endif
  }
  explicit Buffer(const std::vector<T>& values, const char* name = "buffer")
      : Buffer(values.size(), name) {
    write(values);
  }
  ~Buffer() {
#ifdef __CUDACC__
    cudaFreeAsync(data_, nullptr);
#else
    emu::free_global(data_);
#endif
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }

  void write(const std::vector<T>& values) {
#ifdef __CUDACC__
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
#else
    for (size_t i = 0; i < size_; ++i) data_[i] = values[i];
#endif
  }
  std::vector<T> read() const {
    std::vector<T> values(size_);
#ifdef __CUDACC__
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
#else
    for (size_t i = 0; i < size_; ++i) values[i] = data_[i];
#endif
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// main of every test: `test [seed] [order] [runs]`. On the emulation the body runs under every
// order asked for (0 ascending, 1 descending, 2 random by seed), and a report is a failure; by
// default once ascending, once descending and three times at random.
inline int run(int argc, char** argv, void (*body)()) {
#ifdef __CUDACC__
  (void)argc, (void)argv;
  body();
  CHECK(cudaDeviceSynchronize() == cudaSuccess, "%s", cudaGetErrorString(cudaGetLastError()));
#else
  struct Run {
    uint64_t seed;
    int order;
  };
  std::vector<Run> runs;
  if (argc > 1) {
    const int count = argc > 3 ? std::atoi(argv[3]) : 1;
    for (int i = 0; i < count; ++i) {
      runs.push_back({std::strtoull(argv[1], nullptr, 10) + i, argc > 2 ? std::atoi(argv[2]) : 2});
    }
  } else {
    runs = {{1, 0}, {1, 1}, {1, 2}, {2, 2}, {3, 2}};
  }
  for (const Run& each : runs) {
    emu::clear_reports();
    emu::opt.seed = each.seed;
    emu::opt.order = each.order;
    body();
    CHECK(emu::reports() == 0, "%d reports with seed %d, order %d", emu::reports(),
          static_cast<int>(each.seed), each.order);
  }
#endif
  return check::finish();
}

}  // namespace device_test

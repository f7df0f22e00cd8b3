// Lists of strided matrices of any dtype for the tests.
#pragma once

#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "../formats.h"
#include "kernels.h"

namespace lists {

using schattor::cpu::Dtype;
using schattor::cpu::Parallel;
using schattor::cpu::View;

template <typename T>
constexpr Dtype kDtype = sizeof(T) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
// Half the distance from 1 to the next number: what a result is rounded by.
template <typename T>
constexpr double kUnit = sizeof(T) == sizeof(double) ? 0x1p-53 : 0x1p-24;

constexpr Dtype kDtypes[] = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

inline double get(const void* data, Dtype dtype, int64_t at) {
  if (dtype == Dtype::kFloat64) return static_cast<const double*>(data)[at];
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(data)[at];
  return half_value(static_cast<const uint16_t*>(data)[at], dtype);
}

inline void set(void* data, Dtype dtype, int64_t at, double x) {
  if (dtype == Dtype::kFloat64) {
    static_cast<double*>(data)[at] = x;
  } else if (dtype == Dtype::kFloat32) {
    static_cast<float*>(data)[at] = static_cast<float>(x);
  } else {
    static_cast<uint16_t*>(data)[at] = half_bits(x, dtype);
  }
}

// Elements of a dtype, exactly as many as asked for, so that a sanitizer sees one too far.
struct Elements {
  Elements(Dtype dtype, int64_t count)
      : dtype(dtype), bytes(count * schattor::cpu::size_of(dtype)) {}
  double operator[](int64_t at) const { return get(bytes.data(), dtype, at); }
  void set(int64_t at, double x) { lists::set(bytes.data(), dtype, at, x); }
  void* data() { return bytes.data(); }
  int64_t count() const { return bytes.size() / schattor::cpu::size_of(dtype); }

  Dtype dtype;
  std::vector<char> bytes;
};

enum class Layout { kContiguous, kTransposed, kRowGaps, kColumnGaps, kScattered };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps,
                               Layout::kColumnGaps, Layout::kScattered};

// A batch of (rows, cols) matrices of one layout, each in memory of its own.
struct List {
  List(int64_t batch, int64_t rows, int64_t cols, Dtype dtype, Layout layout)
      : rows(rows), cols(cols), row_stride(cols), col_stride(1), dtype(dtype) {
    switch (layout) {
      case Layout::kContiguous:
        break;
      case Layout::kTransposed:
        row_stride = 1, col_stride = rows;
        break;
      case Layout::kRowGaps:
        row_stride = cols + 3;
        break;
      case Layout::kColumnGaps:
        row_stride = 1, col_stride = rows + 5;
        break;
      case Layout::kScattered:
        row_stride = 2 * cols + 1, col_stride = 2;
        break;
    }
    const int64_t extent =
        rows * cols == 0 ? 0 : (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
    for (int64_t i = 0; i < batch; ++i) storage.emplace_back(dtype, extent);
    for (Elements& elements : storage) views.push_back({elements.data(), row_stride, col_stride});
  }

  double at(int64_t i, int64_t r, int64_t c) const {
    return storage[i][r * row_stride + c * col_stride];
  }
  void set(int64_t i, int64_t r, int64_t c, double x) {
    storage[i].set(r * row_stride + c * col_stride, x);
  }

  // Every element, gaps included, uniform in [-size, size].
  void fill(uint64_t seed, double size = 1) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(-size, size);
    for (Elements& elements : storage) {
      for (int64_t k = 0; k < elements.count(); ++k) elements.set(k, uniform(random));
    }
  }

  std::vector<std::vector<char>> bytes() const {
    std::vector<std::vector<char>> all;
    for (const Elements& elements : storage) all.push_back(elements.bytes);
    return all;
  }

  int64_t rows, cols, row_stride, col_stride;
  Dtype dtype;
  std::vector<Elements> storage;
  std::vector<View> views;
};

// A test under every instruction set that this processor has, one after the other.
template <typename Test>
void at_each_level(Test test) {
  using schattor::cpu::Level;
  for (const Level level : {Level::kBaseline, Level::kAvx2, Level::kAvx512, Level::kAvx512Bf16,
                            Level::kAvx512Fp16, Level::kAmx}) {
    if (schattor::cpu::force_level(level)) test();
  }
}

// Ranges on threads of their own, with uneven borders.
inline Parallel on_threads(int threads) {
  Parallel parallel;
  parallel.threads = threads;
  if (threads == 1) return parallel;
  parallel.run = [threads](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::vector<std::thread> pool;
    for (int64_t k = 0; k < threads; ++k) {
      const int64_t begin = count * k / threads, end = count * (k + 1) / threads;
      if (begin < end) pool.emplace_back([=, &body] { body(begin, end); });
    }
    for (std::thread& thread : pool) thread.join();
  };
  return parallel;
}

}  // namespace lists

// Contiguous batches in strips: a block takes one of a matrix, and what the strips of a matrix come
// to is added up in their order, by a second launch where there are several.
#pragma once

#include <algorithm>

#include "elements.cuh"
#include "reduce.cuh"

namespace schattor::cuda::strips {

constexpr int kThreads = 256;
constexpr int kStripSize = 16384;  // entries that are worth a block of their own
constexpr int kMostStrips = 512;   // blocks a matrix
constexpr int kInFlight = 2;       // units that a thread loads at once
constexpr size_t kSharedBytes = kThreads / 32 * sizeof(double);

inline int count(int64_t size) {
  const int64_t strips = (size + kStripSize - 1) / kStripSize;
  return static_cast<int>(std::clamp<int64_t>(strips, 1, kMostStrips));
}

// What a block takes of its matrix. Strips begin at whole units; the last one has the rest.
struct Strip {
  int64_t matrix, begin, end;  // units
  int64_t last;                // entry behind the last

  DEV Strip(int64_t size, int strips) : matrix(blockIdx.x / strips) {
    const int64_t strip = blockIdx.x % strips, units = size / kUnit;
    begin = units * strip / strips, end = units * (strip + 1) / strips;
    last = strip + 1 == strips ? size : end * kUnit;
  }
};

DEV bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Sums of strips (batch, strips) into one a matrix; with one strip there is nothing to do. Where
// the first launch puts its sums, and the workspace for them.
inline size_t workspace(int64_t batch, int64_t size) {
  return count(size) == 1 ? 0 : batch * count(size) * sizeof(double);
}
inline double* partials(int64_t size, void* workspace, double* sums) {
  return count(size) == 1 ? sums : static_cast<double*>(workspace);
}
cudaError_t add_up(int64_t batch, int64_t size, const double* partials, double* sums,
                   cudaStream_t stream);

}  // namespace schattor::cuda::strips

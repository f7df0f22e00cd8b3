// Panels: parts of A and B in shared memory, and the ring of stages that they arrive in.
//
// A panel is an array of 16-byte chunks whose order in a row is exchanged so that eight successive
// rows of one column of chunks lie in different banks: ldmatrix and 16-byte loads find no conflict.
#pragma once

#include "device.h"
#include "tiles_schedule.cuh"

namespace schattor::cuda::tiles {

template <typename T>
constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));

// Element where the chunk begins, in a panel whose rows have so many chunks.
template <typename T, int kChunks>
DEV int chunk_at(int row, int chunk) {
  static_assert(kChunks == 4 || kChunks % 8 == 0, "a row of chunks is 64 or n x 128 bytes");
  const int exchanged = kChunks == 4 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7);
  return (row * kChunks + exchanged) * kPerChunk<T>;
}

template <typename T>
struct alignas(16) Unit {
  T values[kPerChunk<T>];
};

// Where rows are not aligned, elements come one by one.
template <typename T>
DEV void copy_elements(T* to, const T* from, int count) {
  Unit<T> unit;
#pragma unroll
  for (int e = 0; e < kPerChunk<T>; ++e) unit.values[e] = e < count ? from[e] : static_cast<T>(0.f);
  *reinterpret_cast<Unit<T>*>(to) = unit;
}

// Brings panel after panel of one operand, the next one to the right or, if kDown, below. A thread
// brings a chunk of every kPass-th row; what is outside of the matrix is zero.
template <typename T, int kRows, int kChunks, bool kDown>
class Loader {
 public:
  // From entry (row, col) of a matrix of so many rows and columns.
  DEV Loader(int thread, const Operand& operand, int matrix, int rows, int cols, int row, int col)
      : row_(thread / kChunks),
        chunk_(thread % kChunks),
        ld_(static_cast<int>(operand.ld)),
        rows_left_(rows - row - row_),
        cols_left_(cols - col - chunk_ * kPerChunk<T>),
        from_(dev::in_global(static_cast<const T*>(operand.data)) + matrix * operand.stride +
              (row + row_) * operand.ld + (col + chunk_ * kPerChunk<T>)) {}

  // Asynchronously, if rows are aligned to 16 bytes.
  DEV void next(T* panel, bool aligned) {
    const int columns = max(0, min(cols_left_, kPerChunk<T>));
#pragma unroll
    for (int i = 0; i < kRows / kPass; ++i) {
      const int count = i * kPass < rows_left_ ? columns : 0;
      const T* const from = from_ + static_cast<int64_t>(i * kPass) * ld_;
      T* const to = panel + chunk_at<T, kChunks>(row_ + i * kPass, chunk_);
      if (aligned) {
        dev::cp_async16(to, from, count * static_cast<int>(sizeof(T)));
      } else {
        copy_elements(to, from, count);
      }
    }
    if (kDown) {
      from_ += static_cast<int64_t>(kRows) * ld_;
      rows_left_ -= kRows;
    } else {
      from_ += kChunks * kPerChunk<T>;
      cols_left_ -= kChunks * kPerChunk<T>;
    }
  }

 private:
  static constexpr int kPass = kThreads / kChunks;
  static_assert(kRows % kPass == 0, "every thread brings as many chunks");

  const int row_, chunk_, ld_;
  int rows_left_, cols_left_;
  const T* from_;
};

// The ring; kAligned promises that all rows are aligned. Stages are panels of A (kTile, kDepth) and
// of B: (kTile, kDepth) if B is transposed, else (kDepth, kTile).
template <typename T, int kTile, int kDepth, int kStages, bool kAligned>
struct Ring {
  static constexpr int kPanel = kTile * kDepth;
  static constexpr int kBytes = kStages * 2 * kPanel * static_cast<int>(sizeof(T));
  static constexpr int kDeep = kDepth / kPerChunk<T>;  // chunks
  static constexpr int kWide = kTile / kPerChunk<T>;

  T* data;

  // Calls multiply(panel of A, panel of B) for every step along the inner dimension of a tile, in
  // order. When it returns the ring is free.
  template <bool kTransposed, typename Multiply>
  DEV void run(const Tile& tile, const Multiply& multiply) const {
    const Group& group = tile.group;
    const Product& p = group.product;
    const int begin = tile.slice * group.slice_length;
    const int end = min(begin + group.slice_length, p.inner);
    const int steps = dev::div_up(end - begin, kDepth);
    const int row = tile.row * kTile, col = tile.col * kTile;
    const bool aligned = kAligned || (group.aligned_a && group.aligned_b);
    const int thread = dev::opaque(static_cast<int>(threadIdx.x));
    const bool one_panel = group.one_operand && row == col;
    Loader<T, kTile, kDeep, false> left(thread, p.a, tile.matrix, p.rows, end, row, begin);
    Loader<T, kTransposed ? kTile : kDepth, kTransposed ? kDeep : kWide, !kTransposed> right(
        thread, p.b, tile.matrix, kTransposed ? p.cols : end, kTransposed ? end : p.cols,
        kTransposed ? col : begin, kTransposed ? begin : col);
    const auto load = [&](int stage) {
      left.next(panel(stage), aligned);
      if (!one_panel) right.next(panel(stage) + kPanel, aligned);
    };
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) load(step);
      dev::cp_async_commit();
    }
    int stage = 0, free = kStages - 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      dev::cp_async_wait<kStages - 2>();
      __syncthreads();  // the stage is there for all, and the one before it is free
      if (step + kStages - 1 < steps) load(free);
      dev::cp_async_commit();
      multiply(panel(stage), panel(stage) + (one_panel ? 0 : kPanel));
      free = stage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    dev::cp_async_wait<0>();
    __syncthreads();
  }

 private:
  DEV T* panel(int stage) const { return data + stage * 2 * kPanel; }
};

}  // namespace schattor::cuda::tiles

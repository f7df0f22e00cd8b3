// Strided matrices in dense tiles of the compute type: how the lists are read and written. A matrix
// is walked along its unit stride, and where another of the same shape lies the other way, its
// tiles are transposed in cache.
#pragma once

#include <algorithm>
#include <cstddef>

#include "rows.h"

namespace schattor::cpu {

struct Matrix {
  char* data;
  int64_t row_stride, col_stride;  // in elements
  Dtype dtype;
};

// Whether the rows of the view, not its columns, lie closest in memory.
inline bool lies_transposed(const View& view, int64_t rows) {
  return rows > 1 && view.col_stride != 1 && view.row_stride < view.col_stride;
}

inline Matrix matrix(const View& view, Dtype dtype, bool transposed) {
  char* data = static_cast<char*>(view.data);
  return transposed ? Matrix{data, view.col_stride, view.row_stride, dtype}
                    : Matrix{data, view.row_stride, view.col_stride, dtype};
}

// Matrix i of a contiguous batch; the batch is only written where its owner passed it mutable.
inline Matrix matrix(const void* batch, int64_t i, int64_t rows, int64_t cols, Dtype dtype,
                     bool transposed) {
  char* data = static_cast<char*>(const_cast<void*>(batch)) + i * rows * cols * size_of(dtype);
  return matrix(View{data, cols, 1}, dtype, transposed);
}

struct Tile {
  int64_t row, col, rows, cols;
};

// Elements of a matrix that one thread takes at least. Sums are folded by these blocks, whatever
// the number of threads.
constexpr int64_t kBlockSize = 65536;
inline int64_t block_count(int64_t size) { return (size + kBlockSize - 1) / kBlockSize; }

// A grid of tiles, row by row.
class Tiling {
 public:
  // Bytes of the largest tile in the compute type.
  static constexpr int64_t kTileBytes = 16384;

  // For matrices that all lie the same way, tiles so short that the processor, working on one, is
  // already reading the next; or, across, for matrices of which some lie the other way, tiles that
  // meet memory in whole cache lines both ways. Sizes were measured, the prefetch below included.
  Tiling(int64_t rows, int64_t cols, int64_t element_bytes, bool across)
      : rows_(rows), cols_(cols) {
    constexpr int64_t kShortBytes = 2048, kAcross = 128, kLine = 16;
    const int64_t size = (across ? kTileBytes : kShortBytes) / element_bytes;
    width_ = std::clamp<int64_t>(cols, 1, across ? kAcross : size);
    height_ = size / width_;
    if (across) height_ -= height_ % kLine;
    height_ = std::clamp<int64_t>(rows, 1, height_);
    columns_ = (cols + width_ - 1) / width_;
    count_ = columns_ * ((rows + height_ - 1) / height_);
  }

  int64_t count() const { return count_; }

  // The first tile of a block of block_count(size); that of the one past the last is count().
  int64_t block_begin(int64_t block) const { return count_ * block / block_count(rows_ * cols_); }

  // Past the last tile: an empty one.
  Tile operator[](int64_t index) const {
    if (index >= count_) return {0, 0, 0, 0};
    const int64_t row = index / columns_ * height_, col = index % columns_ * width_;
    return {row, col, std::min(height_, rows_ - row), std::min(width_, cols_ - col)};
  }

 private:
  int64_t rows_, cols_, width_, height_, columns_, count_;
};

inline char* address(const Matrix& matrix, int64_t row, int64_t col) {
  return matrix.data + (row * matrix.row_stride + col * matrix.col_stride) * size_of(matrix.dtype);
}

// Whether the tile's rows follow each other without a gap.
inline bool is_dense(const Matrix& matrix, const Tile& tile) {
  return matrix.col_stride == 1 && (tile.rows == 1 || matrix.row_stride == tile.cols);
}

constexpr int64_t kLineBytes = 64;

template <typename T>
constexpr Dtype kDtypeOf = sizeof(T) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;

// Tiles in the compute type T, with the buffers that they need. One for each thread.
template <typename T>
class Tiles {
 public:
  explicit Tiles(const RowLoops<T>& loops) : loops_(loops) {}

  T* buffer(int index) { return buffers_[index]; }

  // Where the tile's rows x cols values can be worked on: in place where memory holds them as they
  // are needed, else in a buffer.
  T* place(const Matrix& matrix, const Tile& tile, int buffer) {
    const bool in_place = matrix.dtype == kDtypeOf<T> && is_dense(matrix, tile);
    return in_place ? reinterpret_cast<T*>(address(matrix, tile.row, tile.col)) : buffers_[buffer];
  }

  T* load(const Matrix& matrix, const Tile& tile, int buffer) {
    T* values = place(matrix, tile, buffer);
    const char* at = address(matrix, tile.row, tile.col);
    if (static_cast<const void*>(values) == at) return values;
    if (is_dense(matrix, tile)) {
      loops_.load(matrix.dtype, at, 1, tile.rows * tile.cols, values);
    } else if (matrix.col_stride != 1 && matrix.row_stride == 1) {
      load_across(matrix, tile, values);
    } else {
      for (int64_t r = 0; r < tile.rows; ++r) {
        loops_.load(matrix.dtype, address(matrix, tile.row + r, tile.col), matrix.col_stride,
                    tile.cols, values + r * tile.cols);
      }
    }
    return values;
  }

  // Asks for a tile of a matrix that lies the other way: its memory comes in pieces too short for
  // the processor to see them coming.
  static void prefetch_across(const Matrix& matrix, const Tile& tile) {
    if (matrix.col_stride == 1 || matrix.row_stride != 1) return;
    const int64_t line = kLineBytes / size_of(matrix.dtype);
    for (int64_t c = 0; c < tile.cols; ++c) {
      for (int64_t r = 0; r < tile.rows; r += line) {
        __builtin_prefetch(address(matrix, tile.row + r, tile.col + c));
      }
    }
  }

  // Asks for the tile kAhead after tile t of the grid where it is dense: of matrices that are short
  // and read several at once, each from its beginning, the processor sees little coming.
  static void prefetch_along(const Matrix& matrix, const Tiling& grid, int64_t t) {
    const Tile tile = grid[t + kAhead];
    if (!is_dense(matrix, tile)) return;
    const char* at = address(matrix, tile.row, tile.col);
    const int64_t bytes = tile.rows * tile.cols * size_of(matrix.dtype);
    for (int64_t b = 0; b < bytes; b += kLineBytes) __builtin_prefetch(at + b);
  }

  // Writes what place or load returned back to memory.
  void store(const Matrix& matrix, const Tile& tile, const T* values) {
    char* at = address(matrix, tile.row, tile.col);
    if (static_cast<const void*>(values) == at) return;
    if (is_dense(matrix, tile)) {
      loops_.store(values, tile.rows * tile.cols, matrix.dtype, 1, at);
    } else if (matrix.col_stride != 1 && matrix.row_stride == 1) {
      store_across(matrix, tile, values);
    } else {
      for (int64_t r = 0; r < tile.rows; ++r) {
        loops_.store(values + r * tile.cols, tile.cols, matrix.dtype, matrix.col_stride,
                     address(matrix, tile.row + r, tile.col));
      }
    }
  }

 private:
  void load_across(const Matrix& matrix, const Tile& tile, T* values) {
    const T* columns = spare_;
    int64_t stride = tile.rows;
    if (matrix.dtype == kDtypeOf<T>) {
      columns = reinterpret_cast<const T*>(address(matrix, tile.row, tile.col));
      stride = matrix.col_stride;
    } else {
      for (int64_t c = 0; c < tile.cols; ++c) {
        loops_.load(matrix.dtype, address(matrix, tile.row, tile.col + c), 1, tile.rows,
                    spare_ + c * tile.rows);
      }
    }
    loops_.transpose(columns, stride, tile.cols, tile.rows, values, tile.cols);
  }

  void store_across(const Matrix& matrix, const Tile& tile, const T* values) {
    if (matrix.dtype == kDtypeOf<T>) {
      T* columns = reinterpret_cast<T*>(address(matrix, tile.row, tile.col));
      loops_.transpose(values, tile.cols, tile.rows, tile.cols, columns, matrix.col_stride);
      return;
    }
    loops_.transpose(values, tile.cols, tile.rows, tile.cols, spare_, tile.rows);
    for (int64_t c = 0; c < tile.cols; ++c) {
      loops_.store(spare_ + c * tile.rows, tile.rows, matrix.dtype, 1,
                   address(matrix, tile.row, tile.col + c));
    }
  }

  // Tiles between the one that is worked on and the one that is asked for, measured.
  static constexpr int64_t kAhead = 3;
  const RowLoops<T>& loops_;
  static constexpr int64_t kSize = Tiling::kTileBytes / sizeof(T);
  alignas(64) T buffers_[4][kSize];
  alignas(64) T spare_[kSize];
};

}  // namespace schattor::cpu

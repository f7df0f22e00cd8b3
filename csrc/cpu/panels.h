// Products of a matrix with a few long vectors, for partial_svd.
//
// A *panel* holds `count` vectors of one length, one a row, so that every loop runs along memory.
// Its storage is padded with zero vectors to a multiple of kPanelGroup.
#pragma once

#include <cstdint>

namespace schattor::cpu {

constexpr int64_t kPanelGroup = 4;

inline int64_t padded_count(int64_t count) {
  return (count + kPanelGroup - 1) / kPanelGroup * kPanelGroup;
}

// T is float or double. x is (rows, cols), contiguous; counts are padded.
template <class T>
struct PanelKernels {
  // y[k][i] = <x_i, v_k>: v (count, cols), y (count, rows).
  void (*multiply)(const T* x, int64_t rows, int64_t cols, const T* v, int64_t count, T* y);
  // z[k][j] = sum_i y[k][i] x[i][j]: y (count, rows), z (count, cols).
  void (*multiply_transposed)(const T* x, int64_t rows, int64_t cols, const T* y, int64_t count,
                              T* z);
  // <a, b>, summed in double.
  double (*dot)(const T* a, const T* b, int64_t length);
};

// The kernels of the level in force.
template <class T>
const PanelKernels<T>& panel_kernels();

}  // namespace schattor::cpu

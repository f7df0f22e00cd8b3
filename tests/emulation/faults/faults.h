// Small kernels that are right where fault is 0, and have one planted fault each where it is not.
// test_faults.cpp lists what they are and asks that the emulation finds them.
#pragma once

#include "device.h"

namespace faults {

// out[r] = sum of squares of row r of x.
cudaError_t row_sums(int fault, const float* x, float* out, int rows, int cols);

// Three steps X <- a X + (b A + c A^2) X, A = XX', of X / |X|_F in shared memory: 48 x 80 matrices.
cudaError_t small_chain(int fault, const bf16* in, bf16* out, int batch);

// c = alpha a a' + beta a of a symmetric (n, n) matrix, n a multiple of 8: the lower triangle, and
// stored mirrored.
cudaError_t symmetric_product(int fault, const bf16* a, bf16* c, int n, float alpha, float beta);

// c = a a' of an (m, k) matrix given by its map, boxes of 64 x 64: TMA, mbarriers, wgmma.
cudaError_t gram(int fault, const dev::TensorMap& a, float* c, int m, int k);

// c = a a' of a 64 x 64 matrix that ordinary stores put into swizzled shared memory; c by its map.
cudaError_t swizzled_gram(int fault, const bf16* a, const dev::TensorMap& c);

// c_i = a_i a_i' + e_i of 64 x 64 matrices by one block: two warpgroups that take turns.
cudaError_t turns(int fault, const dev::TensorMap& a, const dev::TensorMap& e,
                  const dev::TensorMap& c, int batch);

}  // namespace faults

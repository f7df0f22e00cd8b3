// Orthonormal panels, for partial_svd.
#pragma once

#include <cstdint>
#include <vector>

#include "panels.h"

namespace schattor::cpu {

// Replaces the `count` vectors of a panel (one a row, each of `length` >= count) by an orthonormal
// basis of their span, completed by other unit vectors where they are dependent or zero. The first
// k vectors of the result span what the first k did.
template <class T>
class Orthonormaliser {
 public:
  explicit Orthonormaliser(const PanelKernels<T>& kernels) : kernels_(kernels) {}
  void operator()(T* panel, int64_t count, int64_t length);

 private:
  bool cholesky_pass(T* panel, int64_t count, int64_t length, bool* orthonormal);
  void solve(T* panel, int64_t count, int64_t length);
  void gram_schmidt(T* panel, int64_t count, int64_t length);
  bool project(const T* panel, int64_t k, int64_t length);
  void take_unit_vector(const T* panel, int64_t k, int64_t length);

  const PanelKernels<T>& kernels_;
  std::vector<double> gram_, inverse_lengths_, tile_, vector_, cover_;
};

extern template class Orthonormaliser<float>;
extern template class Orthonormaliser<double>;

}  // namespace schattor::cpu

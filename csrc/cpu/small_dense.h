// Dense algebra on the small matrices of partial_svd, in double.
#pragma once

#include <cstdint>
#include <vector>

namespace schattor::cpu {

// The lower factor of a = l l', a (n, n) symmetric, in place (below and on the diagonal). Returns
// the smallest pivot relative to the diagonal of a; where it is not positive, a is left half done.
double cholesky(double* a, int64_t n);

// One-sided Jacobi. b and p hold n vectors of length n each, one a row. On entry b holds the
// columns of a matrix B; on exit those of B P, orthogonal and of descending length, and p those of
// P.
void jacobi_columns(double* b, double* p, int64_t n);

}  // namespace schattor::cpu

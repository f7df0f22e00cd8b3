// Rayleigh-Ritz: the SVD of a small matrix by one-sided Jacobi in double, by one block.
#pragma once

#include "partial_svd_block.cuh"

namespace schattor::cuda::svd {

// Two vectors of a matrix and of its rotation, one lane an entry in every kWarp.
struct JacobiPair {
  double *bk, *bl, *pk, *pl;
};

DEV void rotate(double* x, double* y, double cosine, double sine, bool swap, int count) {
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
    const double rotated_x = cosine * x[i] - sine * y[i], rotated_y = sine * x[i] + cosine * y[i];
    x[i] = swap ? rotated_y : rotated_x;
    y[i] = swap ? rotated_x : rotated_y;
  }
}

// Makes the pair orthogonal and the first of them the longer, by one warp. False where they were.
DEV bool rotate_pair(const JacobiPair& pair, int count) {
  double kk = 0, ll = 0, kl = 0;
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
    kk += pair.bk[i] * pair.bk[i];
    ll += pair.bl[i] * pair.bl[i];
    kl += pair.bk[i] * pair.bl[i];
  }
  kk = warp_sum(kk), ll = warp_sum(ll), kl = warp_sum(kl);
  const double tolerance = fmax(4.0, sqrt(double(count))) * epsilon<double>();
  const bool oblique = fabs(kl) > tolerance * sqrt(kk) * sqrt(ll), swap = ll > kk;
  if (!oblique && !swap) return false;
  double cosine = 1, sine = 0;
  if (oblique) {
    // The smaller root of t^2 + 2 zeta t - 1 = 0: the rotation by less than 45 degrees.
    const double zeta = (ll - kk) / (2 * kl);
    const double tangent = copysign(1.0, zeta) / (fabs(zeta) + hypot(1.0, zeta));
    cosine = 1 / hypot(1.0, tangent), sine = cosine * tangent;
  }
  rotate(pair.bk, pair.bl, cosine, sine, swap, count);
  rotate(pair.pk, pair.pl, cosine, sine, swap, count);
  return true;
}

// b and p hold `count` vectors of that length, one a row. On entry b holds the columns of a matrix
// B; on exit those of B P, orthogonal and of descending length, and p those of P. rotated: one word
// a warp.
//
// A sweep meets every pair once, in rounds of disjoint pairs: the last vector stays, the others go
// round a circle (one more makes up an even number; who meets it rests).
DEV void block_jacobi(double* b, double* p, int count, int* rotated) {
  // Convergence is quadratic; a dozen sweeps are already rare.
  constexpr int kSweeps = 60;
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int64_t i = threadIdx.x; i < int64_t(count) * count; i += blockDim.x) {
    p[i] = i / count == i % count ? 1 : 0;
  }
  __syncthreads();
  const int circle = (count + 1) / 2 * 2 - 1;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool moved = false;
    for (int round = 0; round < circle; ++round) {
      for (int i = warp; i <= circle / 2; i += warps) {
        const int one = (round + i) % circle;
        const int other = i == 0 ? circle : (round - i + circle) % circle;
        const int64_t k = min(one, other), l = max(one, other);
        if (l >= count) continue;
        moved |= rotate_pair({b + k * count, b + l * count, p + k * count, p + l * count}, count);
      }
      __syncthreads();
    }
    if (threadIdx.x % kWarp == 0) rotated[warp] = moved;
    __syncthreads();
    bool any = false;
    for (int i = 0; i < warps; ++i) any |= rotated[i] != 0;
    __syncthreads();
    if (!any) break;
  }
}

// b = the columns of B, one a row -> W of B = W S P', p = P likewise, values = S.
DEV void block_ritz(double* b, double* p, double* values, const Factor& f, int count,
                    int* rotated) {
  block_jacobi(b, p, count, rotated);
  for (int k = threadIdx.x / kWarp; k < count; k += blockDim.x / kWarp) {
    const double* row = b + int64_t(k) * count;
    double square = 0;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) square += row[i] * row[i];
    square = warp_sum(square);
    if (threadIdx.x % kWarp == 0) values[k] = sqrt(square);
  }
  __syncthreads();
  block_orthonormalise(Panel<double>{b, 1, count, count, count}, f, 0);
}

}  // namespace schattor::cuda::svd

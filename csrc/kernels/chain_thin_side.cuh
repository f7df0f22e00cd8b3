// The small side of a thin chain, in one block: S = sum_k w_k Q_k of R = XX' / tau^2, where
// Z = aI + bR + cR^2, Q <- QZ, R <- ZRZ.
#pragma once

#include "chain_thin.cuh"

namespace schattor::cuda::thin {

// Steps in double. An eigenvalue of R at the edge of what eight steps reach is 1e-7, which float
// cannot tell from its own rounding of R; a few steps later it is 1e-3, which it can: so no restart
// from X is needed. What float leaves, where S is large and X small, falls with every step more in
// double: after 3, 5 and all of eight steps, a float32 matrix of rank one had errors of 1.2e-3,
// 5e-4 and 2e-4 at power 0, and 2e-2, 7e-3 and 2e-3 at power -0.3.
constexpr int double_steps(int side) { return side <= 16 ? kMostSteps : 5; }

struct Steps {
  int depth;
  double a[kMostSteps], b[kMostSteps], c[kMostSteps];
};

// What a thread computes of symmetric matrices (side, side): kSize x kSize entries of the lower
// triangle, from memory, and mirrored to it.
template <class E, int kSize>
class Share {
 public:
  DEV explicit Share(int side)
      : side_(side), busy_(static_cast<int>(threadIdx.x) < places(side / kSize)), place_(0) {
    if (busy_) place_ = Place(threadIdx.x);
  }

  // this = left right, both symmetric
  DEV void multiply(const E* left, const E* right) {
#pragma unroll
    for (int i = 0; i < kSize * kSize; ++i) entries_[i / kSize][i % kSize] = 0;
    if (!busy_) return;
#pragma unroll 4
    for (int k = 0; k < side_; ++k) {
      E from_left[kSize], from_right[kSize];
      load(left + k * side_ + row(), from_left);
      load(right + k * side_ + col(), from_right);
#pragma unroll
      for (int i = 0; i < kSize; ++i)
#pragma unroll
        for (int j = 0; j < kSize; ++j) entries_[i][j] += from_left[i] * from_right[j];
    }
  }

  // this = identity I + linear matrix + quadratic this
  DEV void combine(E identity, E linear, const E* matrix, E quadratic) {
    each([&](E& entry, int i, int j) {
      const E diagonal = i == j ? identity : 0;
      entry = diagonal + linear * matrix[i * side_ + j] + quadratic * entry;
    });
  }

  // this = factor matrix, of which only the lower triangle need be there
  template <class Other>
  DEV void read(const Other* matrix, E factor) {
    each([&](E& entry, int i, int j) {
      entry = j > i ? 0 : factor * static_cast<E>(matrix[i * side_ + j]);
    });
  }

  DEV void fill(E value) {
    each([&](E& entry, int, int) { entry = value; });
  }

  // This thread's part of |this|_F^2: entries beside the diagonal stand for two.
  DEV double squares() {
    double sum = 0;
    each([&](E& entry, int i, int j) { sum += j > i ? 0 : (j < i ? 2 : 1) * entry * entry; });
    return sum;
  }

  template <class Other>
  DEV void add(E factor, const Share<Other, kSize>& other) {
#pragma unroll
    for (int i = 0; i < kSize; ++i)
#pragma unroll
      for (int j = 0; j < kSize; ++j) entries_[i][j] += factor * other.held(i, j);
  }

  DEV void add_identity(E factor) {
    each([&](E& entry, int i, int j) { entry += i == j ? factor : 0; });
  }

  template <class Other>
  DEV void store(Other* matrix, int ld, E factor) {
    each([&](E& entry, int i, int j) {
      if (j > i) return;
      const Other value = static_cast<Other>(factor * entry);
      matrix[i * ld + j] = value;
      matrix[j * ld + i] = value;
    });
  }

  DEV E held(int i, int j) const { return entries_[i][j]; }

 private:
  DEV int row() const { return place_.row * kSize; }
  DEV int col() const { return place_.col * kSize; }

  template <class Body>
  DEV void each(Body body) {
    if (!busy_) return;
#pragma unroll
    for (int i = 0; i < kSize; ++i)
#pragma unroll
      for (int j = 0; j < kSize; ++j) body(entries_[i][j], row() + i, col() + j);
  }

  // Entries next to each other, 16 bytes at a time where they fill that.
  DEV static void load(const E* from, E (&to)[kSize]) {
    constexpr int kVector = 16 / sizeof(E);
    if constexpr (kSize % kVector == 0) {
      using Vector = std::conditional_t<sizeof(E) == 8, double2, float4>;
#pragma unroll
      for (int i = 0; i < kSize; i += kVector) {
        *reinterpret_cast<Vector*>(to + i) = *reinterpret_cast<const Vector*>(from + i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) to[i] = from[i];
    }
  }

  const int side_;
  const bool busy_;
  Place place_;
  E entries_[kSize][kSize] = {};
};

// Takes S through steps [first, last). Needs R, and Q unless first is 0; leaves both for the next
// step, if there is one.
template <class E, int kSize>
DEV void advance(const Steps& steps, int side, int first, int last, int depth,
                 const double* weights, const Matrices<E>& m, Share<E, kSize>& s) {
  Share<E, kSize> share(side);
  for (int k = first; k < last; ++k) {
    share.multiply(m.r, m.r);
    share.combine(static_cast<E>(steps.a[k]), static_cast<E>(steps.b[k]), m.r,
                  static_cast<E>(steps.c[k]));
    share.store(m.z, side, 1);
    __syncthreads();
    if (k > 0) {
      share.multiply(m.q, m.z);
      __syncthreads();
    }
    share.store(m.q, side, 1);
    s.add(static_cast<E>(weights[k + 1]), share);
    if (k + 1 == depth) return;
    for (int factor = 0; factor < 2; ++factor) {
      share.multiply(m.r, m.z);
      __syncthreads();
      share.store(m.r, side, 1);
      __syncthreads();
    }
  }
}

// R and Q in float, where they were in double. Barriers come first and last.
template <int kSize>
DEV Matrices<float> narrowed(int side, const Matrices<double>& m) {
  const auto floats = [](double* matrix) { return reinterpret_cast<float*>(matrix); };
  const Matrices<float> result{floats(m.r), floats(m.z), floats(m.q)};
  Share<double, kSize> r(side), q(side);
  __syncthreads();
  r.read(m.r, 1);
  q.read(m.q, 1);
  __syncthreads();
  r.store(result.r, side, 1);
  q.store(result.q, side, 1);
  __syncthreads();
  return result;
}

// S of a regular matrix: the lower triangle of the Gram matrix is in r, its norm is tau^2.
template <int kSize>
DEV void iterate(const Steps& steps, int side, int depth, const double* weights, double norm,
                 const Matrices<double>& m, Share<double, kSize>& s) {
  Share<double, kSize> r(side);
  r.read(m.r, 1);
  r.store(m.r, side, 1 / norm);
  __syncthreads();
  s.add_identity(weights[0]);
  const int exact = min(depth, double_steps(side));
  advance<double, kSize>(steps, side, 0, exact, depth, weights, m, s);
  if (depth == exact) return;
  Share<float, kSize> rest(side);
  advance<float, kSize>(steps, side, exact, depth, depth, weights, narrowed<kSize>(side, m), rest);
  s.add(1, rest);
}

// S tau^(power - 1), whose product with X is the direction, to `result` (side, ld), from the lower
// triangle of the Gram matrix in r. Where the direction is zero or NaN throughout, so is S.
// Barriers have to come first and to follow.
template <int kSize>
DEV void solve(const Steps& steps, int side, const double* weights, double power,
               const Matrices<double>& m, double* scratch, float* result, int ld) {
  const int depth = on_chip::last_weight(weights, steps.depth);
  Share<double, kSize> s(side);
  s.read(m.r, 1);
  const double norm = sqrt(block_sum(s.squares(), scratch));
  s.fill(0);
  if (!on_chip::is_regular(norm)) {
    s.fill(on_chip::constant_direction(norm));
    s.store(result, ld, 1);
    return;
  }
  if (depth >= 0) iterate<kSize>(steps, side, depth, weights, norm, m, s);
  const float tau = static_cast<float>(sqrt(norm));
  s.store(result, ld, powf(tau, static_cast<float>(power) - 1));
}

// With as few entries a thread as the side allows: 136 threads have work at 16, 32 and 64 rows.
DEV void solve_any(const Steps& steps, int side, const double* weights, double power,
                   const Matrices<double>& m, double* scratch, float* result, int ld) {
  if (side <= 16) {
    solve<1>(steps, side, weights, power, m, scratch, result, ld);
  } else if (side <= 32) {
    solve<2>(steps, side, weights, power, m, scratch, result, ld);
  } else {
    solve<4>(steps, side, weights, power, m, scratch, result, ld);
  }
}

}  // namespace schattor::cuda::thin

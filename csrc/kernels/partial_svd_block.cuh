// Orthonormal panels and the small SVD of the partial SVD, by one block each.
//
// Cholesky QR in passes. Each takes the Gram matrix of the vectors scaled to unit length, so that
// only the angles between them matter, and multiplies by the inverse of its factor. A vector that
// the Gram cannot tell from the span of those before it is projected and left to the next pass
// (kDeferred); one that holds nothing but rounding is replaced by a scattered one (kReplaced),
// which the next pass makes orthogonal. So zero and dependent vectors come out as a completed
// basis, and the first k vectors span what the first k did.
#pragma once

#include "partial_svd.cuh"

namespace schattor::cuda::svd {

enum Fate { kKept, kDeferred, kReplaced };

constexpr int kMostPasses = 8;

// Entry j of vector k is data[j * entry_step + k * vector_step].
template <class T>
struct Panel {
  T* data;
  int64_t entry_step, vector_step;
  int length, count;

  DEV T& at(int j, int k) const { return data[j * entry_step + k * vector_step]; }
};

// What a factorisation needs, `count` entries each.
struct Factor {
  double* a;  // (count, count): the Gram on and below the diagonal, then the inverse factor
  double* line;
  double* inverse_lengths;
  double* remains;  // of a unit vector, after the passes so far
  int* fates;
};

// Below these a vector's square distance from the span of the others is not seen in their Gram, or
// is rounding of its own entries.
template <class T>
DEV double least_pivot(int count) {
  const double of_gram = 64 * count * epsilon<double>(), of_entries = 64 * epsilon<T>();
  return fmax(of_gram, of_entries * of_entries);
}

// The Gram scaled to a unit diagonal; zero for a vector that is to be replaced.
template <class T>
DEV void scale_gram(const Factor& f, int count, bool first) {
  const double unseen = sqrt(least_pivot<T>(count));
  for (int k = threadIdx.x; k < count; k += blockDim.x) {
    const double square = f.a[int64_t(k) * count + k], length = sqrt(square);
    if (first || f.fates[k] == kReplaced) {
      f.remains[k] = 1;
    } else if (f.fates[k] == kDeferred) {
      f.remains[k] *= length * unseen;
    }
    const bool lost = !(square > 0) || f.remains[k] <= 64 * epsilon<T>();
    f.fates[k] = lost ? kReplaced : kKept;
    f.inverse_lengths[k] = lost ? 0 : 1 / length;
  }
  __syncthreads();
  for (int k = threadIdx.x / kWarp; k < count; k += blockDim.x / kWarp) {
    double* row = f.a + int64_t(k) * count;
    const double scale = f.inverse_lengths[k];
    for (int l = threadIdx.x % kWarp; l < k; l += kWarp) row[l] *= scale * f.inverse_lengths[l];
    if (threadIdx.x % kWarp == 0) row[k] = scale > 0 ? 1 : 0;
  }
  __syncthreads();
}

// One column of Cholesky's factor L, and one row of L^-1, which grows in the place that L leaves.
// f.line = the column below the diagonal and the row up to it. Returns the pivot.
template <class T>
DEV double eliminate(const Factor& f, int count, int k) {
  const double pivot = f.a[int64_t(k) * count + k], least = least_pivot<T>(count);
  const bool kept = pivot > least;
  const double inverse = 1 / sqrt(kept ? pivot : least);
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    double value = inverse;
    if (j < k) {
      value = f.a[int64_t(k) * count + j] *= inverse;
    } else if (j > k) {
      value = f.a[int64_t(j) * count + k] * inverse;
    }
    f.line[j] = kept ? value : 0;
  }
  __syncthreads();
  for (int i = k + 1 + threadIdx.x / kWarp; i < count; i += blockDim.x / kWarp) {
    double* row = f.a + int64_t(i) * count;
    const double factor = f.line[i];
    for (int j = threadIdx.x % kWarp; j <= i; j += kWarp) {
      row[j] = (j == k ? 0 : row[j]) - factor * f.line[j];
    }
  }
  if (threadIdx.x == 0) {
    f.a[int64_t(k) * count + k] = inverse;
    if (!kept && f.fates[k] == kKept) {
      f.fates[k] = f.remains[k] * sqrt(least) <= 64 * epsilon<T>() ? kReplaced : kDeferred;
    }
  }
  __syncthreads();
  return pivot;
}

// f.a = the Gram -> the lower triangle by which the panel is to be multiplied. True where that
// makes it orthonormal to rounding, the same in all threads.
template <class T>
DEV bool factorise(const Factor& f, int count, bool first) {
  scale_gram<T>(f, count, first);
  double smallest = 1;
  for (int k = 0; k < count; ++k) smallest = fmin(smallest, eliminate<T>(f, count, k));
  for (int k = threadIdx.x / kWarp; k < count; k += blockDim.x / kWarp) {
    double* row = f.a + int64_t(k) * count;
    for (int l = threadIdx.x % kWarp; l <= k; l += kWarp) row[l] *= f.inverse_lengths[l];
  }
  __syncthreads();
  // The pass leaves |Q'Q - I| of about count epsilon / smallest at most, from the rounding of the
  // Gram; where the vectors were nearly orthogonal before, of far less.
  const double left = count * epsilon<double>() / smallest;
  return smallest > least_pivot<T>(count) && (left <= epsilon<T>() || smallest >= 0.9);
}

// a = the Gram of a panel, on and below the diagonal.
template <class T>
DEV void block_gram(const Panel<T>& panel, double* a) {
  const int count = panel.count;
  for (int64_t index = threadIdx.x; index < int64_t(count) * count; index += blockDim.x) {
    const int k = index / count, l = index % count;
    if (l > k) continue;
    double sums[4] = {};
    int j = 0;
    for (; j + 4 <= panel.length; j += 4) {
      for (int lane = 0; lane < 4; ++lane) {
        sums[lane] += double(panel.at(j + lane, k)) * double(panel.at(j + lane, l));
      }
    }
    for (; j < panel.length; ++j) sums[0] += double(panel.at(j, k)) * double(panel.at(j, l));
    a[index] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  __syncthreads();
}

// panel <- panel W', W lower triangular, in place: of the same entries later vectors are written
// first, and none is read after it was written.
template <class T>
DEV void block_apply(const Panel<T>& panel, const double* w, const int* fates, int pass) {
  constexpr int kEntries = 4;
  const int count = panel.count, width = min(count, int(blockDim.x)), lanes = blockDim.x / width;
  const int lane = threadIdx.x / width;
  for (int start = 0; start < panel.length; start += lanes * kEntries) {
    for (int end = count; end > 0; end -= width) {
      const int k = end - 1 - int(threadIdx.x) % width;
      const bool works = lane < lanes && k >= 0;
      double sums[kEntries] = {};
      for (int l = 0; works && l <= k; ++l) {
        const double factor = w[int64_t(k) * count + l];
        for (int e = 0; e < kEntries; ++e) {
          const int j = start + lane + e * lanes;
          if (j < panel.length) sums[e] += factor * double(panel.at(j, l));
        }
      }
      __syncthreads();
      for (int e = 0; works && e < kEntries; ++e) {
        const int j = start + lane + e * lanes;
        if (j >= panel.length) continue;
        panel.at(j, k) = T(fates[k] == kReplaced ? scattered(k, j, pass) : sums[e]);
      }
    }
  }
  __syncthreads();
}

// The passes from `pass` on, by one block.
template <class T>
DEV void block_orthonormalise(const Panel<T>& panel, const Factor& f, int pass) {
  for (bool done = false; !done && pass < kMostPasses; ++pass) {
    block_gram(panel, f.a);
    done = factorise<T>(f, panel.count, pass == 0);
    block_apply(panel, f.a, f.fates, pass);
  }
}

}  // namespace schattor::cuda::svd

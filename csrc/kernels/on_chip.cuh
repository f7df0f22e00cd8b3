// What the chains that run in one block share: half-precision pairs, matrices in shared memory, the
// sums of a block, and the numbers of one matrix.
#pragma once

#include <cmath>

#include "launch.h"
#include "reduce.cuh"
#include "scalars.cuh"

namespace schattor::cuda::on_chip {

constexpr int kWarp = 32;

// ---- Elements. ----

template <class T>
DEV float2 load_pair(const T* from) {
  return unpack<T>(*reinterpret_cast<const uint32_t*>(from));
}

template <class T>
DEV void store_pair(T* to, float low, float high) {
  *reinterpret_cast<uint32_t*>(to) = pack<T>(low, high);
}

// 16 bytes: four floats, or eight of half precision.
template <class T>
constexpr int kChunk = 16 / sizeof(T);

template <class T>
DEV void unpack_chunk(const uint4& chunk, float (&values)[kChunk<T>]) {
  if constexpr (sizeof(T) == 4) {
    values[0] = __uint_as_float(chunk.x), values[1] = __uint_as_float(chunk.y);
    values[2] = __uint_as_float(chunk.z), values[3] = __uint_as_float(chunk.w);
  } else {
    const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<T>(pairs[i]);
      values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
    }
  }
}

template <class T>
DEV uint4 pack_chunk(const float (&values)[kChunk<T>]) {
  if constexpr (sizeof(T) == 4) {
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                      __float_as_uint(values[2]), __float_as_uint(values[3]));
  } else {
    return make_uint4(pack<T>(values[0], values[1]), pack<T>(values[2], values[3]),
                      pack<T>(values[4], values[5]), pack<T>(values[6], values[7]));
  }
}

// ---- Matrices. ----

// Rows of a matrix in global memory. Rows of a wide batch need not begin at multiples of 16 bytes.
template <class T>
struct Rows {
  T* data;
  int64_t ld;
  int rows, cols;
  bool aligned;  // every row begins at a multiple of 16 bytes, and cols is whole chunks
};

template <class T>
inline bool has_aligned_rows(const void* base, int64_t cols) {
  return cols % kChunk<T> == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0;
}

// 16 bytes of row `row` from column `col`; columns past the last count as zero.
template <class T>
DEV uint4 load_chunk(const Rows<const T>& from, int row, int col) {
  const T* source = from.data + row * from.ld + col;
  if (from.aligned) return *reinterpret_cast<const uint4*>(source);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  const Bits* bits = reinterpret_cast<const Bits*>(source);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) {
    if (col + i >= from.cols) continue;
    if constexpr (sizeof(T) == 4) {
      words[i] = bits[i];
    } else {
      words[i / 2] |= static_cast<uint32_t>(bits[i]) << (i % 2 * 16);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <class T>
DEV void store_chunk(const Rows<T>& to, int row, int col, const uint4& chunk) {
  T* target = to.data + row * to.ld + col;
  if (to.aligned) {
    *reinterpret_cast<uint4*>(target) = chunk;
    return;
  }
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  Bits* bits = reinterpret_cast<Bits*>(target);
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) {
    if (col + i >= to.cols) continue;
    if constexpr (sizeof(T) == 4) {
      bits[i] = words[i];
    } else {
      bits[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }
}

// Copies a matrix into shared memory, padded with zeros to (padded_rows, padded_cols); the latter
// are whole chunks, and ld keeps rows at multiples of 16 bytes. Ends with what every thread has
// written visible to itself alone: a barrier has to follow.
template <class T>
DEV void load_matrix(const Rows<const T>& from, int padded_rows, int padded_cols, T* to, int ld) {
  const int chunks = padded_cols / kChunk<T>;
  for (int i = threadIdx.x; i < padded_rows * chunks; i += blockDim.x) {
    const int row = i / chunks, col = i % chunks * kChunk<T>;
    T* target = to + row * ld + col;
    if (row >= from.rows || col >= from.cols) {
      *reinterpret_cast<uint4*>(target) = make_uint4(0, 0, 0, 0);
    } else if (from.aligned) {
      dev::cp_async16(target, from.data + row * from.ld + col);
    } else {
      *reinterpret_cast<uint4*>(target) = load_chunk(from, row, col);
    }
  }
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
}

// ---- Sums. ----

// <x, direction> and |direction|^2.
struct Overlap {
  double inner = 0, square = 0;

  template <int kCount>
  DEV void add(const float (&x)[kCount], const float (&y)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const double value = y[i];
      inner += x[i] * value;
      square += value * value;
    }
  }
};

// ---- The numbers of one matrix. ----

// Whether a direction can be computed at all, given the norm of A; if not, all of it is the value
// of constant_direction.
DEV bool is_regular(double norm) { return norm > 0 && norm <= 1.7976931348623157e308; }
DEV float constant_direction(double norm) { return norm == 0 ? 0.0f : NAN; }

// The last iterate that counts, or -1 where none does.
DEV int last_weight(const double* weights, int depth) {
  while (depth >= 0 && weights[depth] == 0) --depth;
  return depth;
}

// The direction of a zero matrix is zero, and that of one with an inf or a NaN is NaN, and so are
// inner and square.
template <class T>
DEV void put_constant(const Rows<T>& to, float value) {
  float values[kChunk<T>];
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) values[i] = value;
  const uint4 chunk = pack_chunk<T>(values);
  const int chunks = dev::div_up(to.cols, kChunk<T>);
  for (int i = threadIdx.x; i < to.rows * chunks; i += blockDim.x) {
    store_chunk(to, i / chunks, i % chunks * kChunk<T>, chunk);
  }
}

}  // namespace schattor::cuda::on_chip

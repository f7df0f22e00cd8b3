// What happens to sums once they are known: C, S and squares, for every type and kernel alike.
//
// Sums come in boxes of 64 x 64 in shared memory; a block finishes a box in chunks of eight
// columns, which are 16 bytes of half precision in global memory: every load and store is
// coalesced. In a symmetric product a box below the diagonal is stored a second time, transposed,
// by the same block, and one on the diagonal takes its upper half from its lower one.
#pragma once

#include "coefficient.cuh"
#include "reduce.cuh"
#include "tiles_schedule.cuh"

namespace schattor::cuda::tiles {

constexpr int kBoxSize = kBox * kBox;
constexpr int kChunk = 8;  // columns that a thread works on at a time

// Where an entry of a box lies. Columns are exchanged by fours, so that neither the fragments of
// mma (eight rows of pairs) nor columns of every eighth row meet in a bank.
DEV int box_at(int row, int col) {
  return row * kBox + (col ^ ((row >> 3 & 7) << 2) ^ ((row & 3) << 3));
}

DEV float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
DEV double multiply_add(double x, double y, double z) { return fma(x, y, z); }

template <typename T>
struct alignas(16) Chunk {
  T values[kChunk];
};

template <typename T>
DEV Chunk<T> load_chunk(const T* from, int count, bool aligned) {
  Chunk<T> chunk;
  if (aligned && count == kChunk) {
    chunk = *reinterpret_cast<const Chunk<T>*>(from);
  } else {
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      chunk.values[e] = e < count ? from[e] : static_cast<T>(0.f);
    }
  }
  return chunk;
}

template <typename T>
DEV void store_chunk(T* to, const Chunk<T>& chunk, int count, bool aligned) {
  if (aligned && count == kChunk) {
    *reinterpret_cast<Chunk<T>*>(to) = chunk;
  } else {
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      if (e < count) to[e] = chunk.values[e];
    }
  }
}

// The sum of the squares of a chunk: in float where no square can leave its range, as is the rule,
// for double is dear on many devices.
template <typename T>
DEV double square_of(const Chunk<T>& chunk) {
  using Sum = SumOf<T>;
  Sum most = 0, square = 0;
#pragma unroll
  for (int e = 0; e < kChunk; ++e) {
    const Sum value = widened(chunk.values[e]), size = value < 0 ? -value : value;
    if (size > most) most = size;
    square += value * value;
  }
  if (most == 0 || (most > Sum(0x1p-50) && most < Sum(0x1p50))) return square;
  double exact = 0;
#pragma unroll
  for (int e = 0; e < kChunk; ++e) {
    const double value = widened(chunk.values[e]);
    exact += value * value;
  }
  return exact;
}

// Finishes the boxes of one tile, one after another. All threads of the block call the functions
// together: they contain __syncthreads.
template <typename T>
class Epilogue {
 public:
  using Sum = SumOf<T>;

  // warp_squares: one number a warp, in shared memory.
  DEV Epilogue(const Tile& tile, Sum* box, double* warp_squares)
      : group_(tile.group),
        product_(tile.group.product),
        matrix_(tile.matrix),
        thread_(dev::opaque(static_cast<int>(threadIdx.x))),
        box_(box),
        warp_squares_(warp_squares) {}

  DEV bool has(int row, int col) const {
    return row * kBox < product_.rows && col * kBox < product_.cols &&
           (!product_.symmetric || row >= col);
  }

  // Of sums that all threads can see: the result, or the part of one slice. Then the box is free.
  DEV void deliver(int slice, int row, int col) {
    if (group_.slices > 1) {
      put_aside(slice, row, col);
    } else {
      finish(row, col);
    }
  }

  // C, S and the share of squares from sums that all threads can see. Then the box is free.
  DEV void finish(int row, int col) {
    const bool present = has(row, col);
    double square = 0;
    read_numbers();
    if (present) square = first_pass(row, col);
    if (product_.symmetric) {
      __syncthreads();
      if (present && row == col) square = second_pass<true>(row, col);
      if (present && row != col) second_pass<false>(col, row);
      if (row != col) square *= 2;
    }
    if (group_.shares != nullptr) put_share(present, square, row, col);
    __syncthreads();
  }

  // Sums of a slice go to the workspace as they lie, and are read so by `gather`.
  DEV void put_aside(int slice, int row, int col) {
    if (has(row, col)) {
      Four* const to = reinterpret_cast<Four*>(sums(slice, row, col));
      const Four* const from = reinterpret_cast<const Four*>(box_);
      for (int i = thread_; i < kBoxSize / 4; i += kThreads) to[i] = from[i];
    }
    __syncthreads();
  }

  DEV void gather(int row, int col) {
    for (int i = thread_; i < kBoxSize; i += kThreads) {
      Sum sum = 0;
      for (int slice = 0; slice < group_.slices; ++slice) sum += sums(slice, row, col)[i];
      box_[i] = sum;
    }
    __syncthreads();
  }

 private:
  using Values = Sum[kChunk];
  static constexpr int kRowChunks = kBox / kChunk;
  static constexpr int kRounds = kBox * kRowChunks / kThreads;
  // Rounds whose D and S are on their way at one time, as registers allow.
  static constexpr int kTogether = sizeof(T) == 2 ? 2 : 1;

  struct alignas(16) Four {
    Sum values[4];
  };

  // The thread's chunk in a round: from (r, c) of the box, which is (row, col) of the matrix.
  struct Spot {
    int r, c, row, col;
    int count;  // of columns inside the matrix; may be negative
  };

  DEV Spot spot(int box_row, int box_col, int round) const {
    const int at = thread_ + round * kThreads, r = at / kRowChunks, c = at % kRowChunks * kChunk;
    const int row = box_row * kBox + r, col = box_col * kBox + c;
    return {r, c, row, col, row < product_.rows ? min(product_.cols - col, kChunk) : 0};
  }

  DEV void read_numbers() {
    alpha_ = value_of<Sum>(product_.alpha, matrix_);
    beta_ = product_.d.data != nullptr ? value_of<Sum>(product_.beta, matrix_) : Sum(0);
    gamma_ = product_.s.data != nullptr ? value_of<Sum>(product_.gamma, matrix_) : Sum(0);
    weight_ = product_.s.data != nullptr ? value_of<Sum>(product_.weight, matrix_) : Sum(0);
  }

  DEV Sum* sums(int slice, int row, int col) const {
    const int64_t piece = static_cast<int64_t>(matrix_) * group_.slices + slice;
    return dev::in_global(static_cast<Sum*>(group_.sums)) +
           (piece * group_.boxes + box_number(group_, row, col)) * kBoxSize;
  }

  DEV T* entry(const Operand& operand, const Spot& at) const {
    return dev::in_global(static_cast<T*>(operand.data)) + matrix_ * operand.stride +
           at.row * operand.ld + at.col;
  }

  // C = alpha box + beta D: stored, but on the diagonal of a symmetric product; put back if it is
  // symmetric, for the second pass. Returns the squares of what it stored.
  DEV double first_pass(int box_row, int box_col) {
    const bool stores = !product_.symmetric || box_row != box_col;
    double square = 0;
#pragma unroll 1
    for (int begin = 0; begin < kRounds; begin += kTogether) {
      Chunk<T> addends[kTogether], mixtures[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const Spot at = spot(box_row, box_col, begin + i);
        if (product_.d.data != nullptr) {
          addends[i] = load_chunk(entry(product_.d, at), at.count, group_.aligned_d);
        }
        if (stores) load_mixture(at, &mixtures[i]);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const Spot at = spot(box_row, box_col, begin + i);
        Values values;
        combine(at, addends[i], values);
        if (stores) square += put(at, values, mixtures[i]);
      }
    }
    return square;
  }

  // Stores the box from values put back: transposed, or, on the diagonal, the lower half of them
  // and its mirror image.
  template <bool kDiagonal>
  DEV double second_pass(int box_row, int box_col) {
    double square = 0;
#pragma unroll 1
    for (int begin = 0; begin < kRounds; begin += kTogether) {
      Chunk<T> mixtures[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        load_mixture(spot(box_row, box_col, begin + i), &mixtures[i]);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const Spot at = spot(box_row, box_col, begin + i);
        Values values;
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
          const bool below = kDiagonal && at.r >= at.c + e;
          values[e] = box_[below ? box_at(at.r, at.c + e) : box_at(at.c + e, at.r)];
        }
        square += put(at, values, mixtures[i]);
      }
    }
    return square;
  }

  DEV void combine(const Spot& at, const Chunk<T>& addend, Values& values) {
    Four* const left = reinterpret_cast<Four*>(box_ + box_at(at.r, at.c));
    Four* const right = reinterpret_cast<Four*>(box_ + box_at(at.r, at.c + 4));
    const Four sums_left = *left, sums_right = *right;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      values[e] = alpha_ * (e < 4 ? sums_left.values[e % 4] : sums_right.values[e % 4]);
      if (product_.d.data != nullptr) {
        values[e] = multiply_add(beta_, widened(addend.values[e]), values[e]);
      }
    }
    if (product_.symmetric) {
      *left = {{values[0], values[1], values[2], values[3]}};
      *right = {{values[4], values[5], values[6], values[7]}};
    }
  }

  DEV void load_mixture(const Spot& at, Chunk<T>* mixture) const {
    if (product_.s.data != nullptr && gamma_ != 0) {
      *mixture = load_chunk(entry(product_.s, at), at.count, group_.aligned_s);
    }
  }

  // S from C as it is before rounding, C, and the squares of C as rounded.
  DEV double put(const Spot& at, const Values& values, Chunk<T>& mixture) const {
    if (product_.s.data != nullptr) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        Sum sum = weight_ * values[e];
        if (gamma_ != 0) sum = multiply_add(gamma_, widened(mixture.values[e]), sum);
        mixture.values[e] = narrowed<T>(sum);
      }
      store_chunk(entry(product_.s, at), mixture, at.count, group_.aligned_s);
    }
    Chunk<T> rounded;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      rounded.values[e] = narrowed<T>(e < at.count ? values[e] : Sum(0));
    }
    if (product_.c.data != nullptr) {
      store_chunk(entry(product_.c, at), rounded, at.count, group_.aligned_c);
    }
    return group_.shares != nullptr ? square_of(rounded) : 0;
  }

  DEV void put_share(bool present, double square, int row, int col) {
    if (present) {
      square = warp_sum(square);
      if (thread_ % 32 == 0) warp_squares_[thread_ / 32] = square;
    }
    __syncthreads();
    if (present && thread_ == 0) {
      dev::in_global(group_.shares)[static_cast<int64_t>(matrix_) * group_.boxes +
                                    box_number(group_, row, col)] =
          (warp_squares_[0] + warp_squares_[1]) + (warp_squares_[2] + warp_squares_[3]);
    }
  }

  const Group& group_;
  const Product& product_;
  const int& matrix_;
  const int thread_;
  Sum* const box_;
  double* const warp_squares_;
  Sum alpha_, beta_, gamma_, weight_;
};

}  // namespace schattor::cuda::tiles

// The passes over whole matrices between the products of a chain: each entry is read and written
// once, 16 bytes at a time where rows allow it.
#include "chain.h"
#include "coefficient.cuh"
#include "reduce.cuh"

namespace schattor::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPacksPerThread = 8;
constexpr int kBytesPerPack = 16;

// ---- Entries. ----

template <typename T>
DEV double product_in_double(T x, T y) {
  // Exact in float: half the conversions. Products of bfloat16 may leave its range.
  if constexpr (std::is_same<T, __half>::value) return widened(x) * widened(y);
  return static_cast<double>(widened(x)) * static_cast<double>(widened(y));
}

template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T values[kWidth];
};

// Where the packs of one matrix are that a thread of a block takes: in steps of kThreads from the
// first, (row, column) without a division at each.
struct Position {
  int64_t row, column, end;  // in packs

  DEV static Position begin(int64_t first, int64_t columns) {
    return {first / columns, first % columns, columns};
  }
  DEV void advance() {
    column += kThreads % end;
    row += kThreads / end;
    if (column >= end) column -= end, ++row;
  }
};

// The chunk of a matrix that this block works on.
struct Chunk {
  int64_t matrix, index, first, last;  // first and last pack

  DEV static Chunk of_block(int64_t chunks, int64_t packs) {
    constexpr int64_t kPacks = kThreads * kPacksPerThread;
    const int64_t index = blockIdx.x % chunks;
    const int64_t first = index * kPacks;
    return {blockIdx.x / chunks, index, first, first + kPacks < packs ? first + kPacks : packs};
  }
};

int64_t chunks_of(int64_t packs) {
  constexpr int64_t kPacks = kThreads * kPacksPerThread;
  return (packs + kPacks - 1) / kPacks;
}

template <typename T>
DEV T* matrix_of(const Operand& operand, int64_t matrix) {
  return static_cast<T*>(operand.data) + matrix * operand.stride;
}

// ---- Kernels. ----

template <typename T>
__global__ void pad(const PaddedCopy args, int64_t chunks) {
  const Chunk chunk = Chunk::of_block(chunks, args.rows * args.to.ld);
  const T* from = static_cast<const T*>(args.from) + chunk.matrix * args.rows * args.cols;
  T* to = matrix_of<T>(args.to, chunk.matrix);
  const int64_t begin = chunk.first + threadIdx.x;
  Position at = Position::begin(begin, args.to.ld);
  for (int64_t i = begin; i < chunk.last; i += kThreads, at.advance()) {
    const bool inside = at.column < args.cols;
    to[i] = inside ? from[at.row * args.cols + at.column] : narrowed<T>(0.0f);
  }
}

template <typename T>
__global__ void combination(const __grid_constant__ Combination args, int64_t chunks) {
  using Value = SumOf<T>;
  constexpr int kWidth = kBytesPerPack / sizeof(T);
  const int64_t columns = args.result.ld / kWidth;
  const Chunk chunk = Chunk::of_block(chunks, args.rows * columns);
  const int64_t begin = chunk.first + threadIdx.x;
  Position at = Position::begin(begin, columns);
  for (int64_t i = begin; i < chunk.last; i += kThreads, at.advance()) {
    Value sums[kWidth] = {};
    for (int term = 0; term < args.count; ++term) {
      const auto factor = value_of<Value>(args.factors[term], chunk.matrix);
      const T* data = matrix_of<T>(args.terms[term], chunk.matrix);
      const auto pack = reinterpret_cast<const Pack<T, kWidth>*>(data)[i];
      for (int j = 0; j < kWidth; ++j) sums[j] += factor * widened(pack.values[j]);
    }
    Pack<T, kWidth> result, scaled;
    const auto scale = value_of<Value>(args.scale, chunk.matrix);
    for (int j = 0; j < kWidth; ++j) {
      const int64_t column = at.column * kWidth + j;
      if (column == at.row) sums[j] += static_cast<Value>(args.identity);
      if (column >= args.rows) sums[j] = 0;
      result.values[j] = narrowed<T>(sums[j]);
      scaled.values[j] = narrowed<T>(scale * sums[j]);
    }
    reinterpret_cast<Pack<T, kWidth>*>(matrix_of<T>(args.result, chunk.matrix))[i] = result;
    if (args.scaled.data == nullptr) continue;
    reinterpret_cast<Pack<T, kWidth>*>(matrix_of<T>(args.scaled, chunk.matrix))[i] = scaled;
  }
}

template <typename T, int kWidth>
__global__ void finish_chunk(const Finish args, int64_t chunks) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  double* of_warps = sm.take<double>(kWarps);
  using Entries = Pack<T, kWidth>;
  const int64_t columns = args.cols / kWidth, packs = args.rows * columns;
  const Chunk chunk = Chunk::of_block(chunks, packs);
  const int64_t matrix = chunk.matrix, begin = chunk.first + threadIdx.x;
  const auto* wide = static_cast<const Entries*>(args.wide) + matrix * packs;
  auto* direction = static_cast<Entries*>(args.direction.data) + matrix * packs;
  const auto* mixture = reinterpret_cast<const Entries*>(matrix_of<T>(args.mixture, matrix));
  const int64_t mixture_columns = args.mixture.ld / kWidth;
  const auto weight = value_of<SumOf<T>>(args.weight, matrix);
  double inner = 0, square = 0;
  Position at = Position::begin(begin, columns);
  for (int64_t i = begin; i < chunk.last; i += kThreads, at.advance()) {
    const Entries x = wide[i];
    Entries sum = mixture[at.row * mixture_columns + at.column];
    for (int j = 0; j < kWidth; ++j) {
      // A weight of zero adds nothing, whatever the input is.
      const auto value = widened(sum.values[j]) + (weight == 0 ? 0 : weight * widened(x.values[j]));
      sum.values[j] = narrowed<T>(value);
      inner += product_in_double(x.values[j], sum.values[j]);
      square += product_in_double(sum.values[j], sum.values[j]);
    }
    direction[i] = sum;
  }
  double* sums = args.partial_sums + (matrix * chunks + chunk.index) * 2;
  inner = block_sum(inner, of_warps);
  square = block_sum(square, of_warps);
  if (threadIdx.x == 0) sums[0] = inner, sums[1] = square;
}

// One block a matrix.
__global__ void finish_sums(const double* partial_sums, int64_t chunks, double* inner,
                            double* square) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  double* of_warps = sm.take<double>(kWarps);
  const double* sums = partial_sums + blockIdx.x * chunks * 2;
  double totals[2] = {};
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    totals[0] += sums[2 * i];
    totals[1] += sums[2 * i + 1];
  }
  totals[0] = block_sum(totals[0], of_warps);
  totals[1] = block_sum(totals[1], of_warps);
  if (threadIdx.x == 0) inner[blockIdx.x] = totals[0], square[blockIdx.x] = totals[1];
}

// ---- Launches. ----

dim3 grid_of(int64_t batch, int64_t chunks) { return dim3(static_cast<unsigned>(batch * chunks)); }

template <typename Use>
cudaError_t with_type(Dtype dtype, Use use) {
  switch (dtype) {
    case Dtype::kFloat64:
      return use(double{});
    case Dtype::kFloat32:
      return use(float{});
    case Dtype::kBFloat16:
      return use(bf16{});
    case Dtype::kFloat16:
      return use(__half{});
  }
  return cudaErrorInvalidValue;
}

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kBytesPerPack == 0; }

cudaError_t sum_up(const double* partial_sums, int64_t chunks, const Direction& direction,
                   int64_t batch, cudaStream_t stream) {
  return dev::launch(finish_sums, grid_of(batch, 1), dim3(kThreads), kWarps * sizeof(double),
                     stream, partial_sums, chunks, direction.inner, direction.square);
}

}  // namespace

cudaError_t copy_padded(const PaddedCopy& args, cudaStream_t stream) {
  const int64_t chunks = chunks_of(args.rows * args.to.ld);
  return with_type(args.dtype, [&](auto zero) {
    return dev::launch(pad<decltype(zero)>, grid_of(args.batch, chunks), dim3(kThreads), 0, stream,
                       args, chunks);
  });
}

cudaError_t combine(const Combination& args, cudaStream_t stream) {
  const int64_t chunks =
      chunks_of(args.rows * args.result.ld * size_of(args.dtype) / kBytesPerPack);
  return with_type(args.dtype, [&](auto zero) {
    return dev::launch(combination<decltype(zero)>, grid_of(args.batch, chunks), dim3(kThreads), 0,
                       stream, args, chunks);
  });
}

// As if entries were taken one by one, so that it does not depend on the pointers.
int64_t finish_chunks(int64_t rows, int64_t cols) { return chunks_of(rows * cols); }

cudaError_t finish(const Finish& args, cudaStream_t stream) {
  return with_type(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = kBytesPerPack / sizeof(T);
    const bool aligned = args.cols % kWidth == 0 && is_aligned(args.wide) &&
                         is_aligned(args.direction.data) && is_aligned(args.mixture.data);
    const int64_t packs = args.rows * args.cols / (aligned ? kWidth : 1);
    const int64_t chunks = chunks_of(packs);
    auto kernel = aligned ? finish_chunk<T, kWidth> : finish_chunk<T, 1>;
    const cudaError_t error = dev::launch(kernel, grid_of(args.batch, chunks), dim3(kThreads),
                                          kWarps * sizeof(double), stream, args, chunks);
    if (error != cudaSuccess) return error;
    return sum_up(args.partial_sums, chunks, args.direction, args.batch, stream);
  });
}

cudaError_t finish_empty(const Direction& direction, int64_t batch, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  return sum_up(nullptr, 0, direction, batch, stream);
}

}  // namespace schattor::cuda

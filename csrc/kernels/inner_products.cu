// Inner products of two batches: one launch where one block takes a matrix, else partial sums and
// their sum. The floor is each operand read once.
#include <algorithm>

#include "elements.cuh"
#include "reduce.cuh"

namespace schattor::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStripSize = 16384;  // entries that are worth a block of their own
constexpr int kMostStrips = 512;   // blocks a matrix
constexpr int kInFlight = 2;       // units that a thread loads at once

struct Params {
  int64_t size;
  Dtype x_dtype, y_dtype;
  const char* x;
  const char* y;
  double* sums;  // (batch, strips)
  int strips;
};

// Products are taken in double whatever T is: those of bfloat16 numbers may be beyond float.
template <class T>
DEV double unit_products(const RawUnit<T>& raw_x, const RawUnit<T>& raw_y, const Params& p) {
  T x[kUnit], y[kUnit];
  from_raw(raw_x, p.x_dtype, x);
  from_raw(raw_y, p.y_dtype, y);
  double sum = 0;
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    sum = fma(static_cast<double>(x[k]), static_cast<double>(y[k]), sum);
  }
  return sum;
}

// Of the whole units begin, begin + kThreads, ... before `end`.
template <class T>
DEV double products_by_units(const Params& p, const char* x, const char* y, int64_t begin,
                             int64_t end) {
  const int x_size = size_of(p.x_dtype), y_size = size_of(p.y_dtype);
  double sum = 0;
  for (int64_t unit = begin; unit < end; unit += kInFlight * kThreads) {
    RawUnit<T> raw_x[kInFlight], raw_y[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t entry = (unit + i * kThreads) * kUnit;
      raw_x[i] = {}, raw_y[i] = {};
      if (unit + i * kThreads >= end) continue;
      raw_x[i] = load_raw<T>(x + entry * x_size, x_size);
      raw_y[i] = load_raw<T>(y + entry * y_size, y_size);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) sum += unit_products(raw_x[i], raw_y[i], p);
  }
  return sum;
}

DEV bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// One strip of one matrix.
template <class T>
__global__ void __launch_bounds__(kThreads) inner_partials(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  double* scratch = sm.take<double>(kThreads / 32);
  const int64_t matrix = blockIdx.x / p.strips, strip = blockIdx.x % p.strips;
  const char* x = p.x + matrix * p.size * size_of(p.x_dtype);
  const char* y = p.y + matrix * p.size * size_of(p.y_dtype);
  // Strips begin at whole units; the last one has the rest.
  const int64_t units = p.size / kUnit;
  const int64_t begin = units * strip / p.strips, end = units * (strip + 1) / p.strips;
  int64_t entry = begin * kUnit;
  const int64_t last = strip + 1 == p.strips ? p.size : end * kUnit;
  double sum[1] = {};
  if (is_aligned(x) && is_aligned(y)) {
    sum[0] = products_by_units<T>(p, x, y, begin + threadIdx.x, end);
    entry = end * kUnit;
  }
  for (entry += threadIdx.x; entry < last; entry += kThreads) {
    sum[0] = fma(load_entry<double>(x + entry * size_of(p.x_dtype), p.x_dtype),
                 load_entry<double>(y + entry * size_of(p.y_dtype), p.y_dtype), sum[0]);
  }
  block_sum(sum, scratch);
  if (threadIdx.x == 0) p.sums[blockIdx.x] = sum[0];
}

__global__ void __launch_bounds__(kThreads)
    inner_sums(const double* partials, int strips, double* inner) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  double* scratch = sm.take<double>(kThreads / 32);
  double sum[1] = {};
  for (int s = threadIdx.x; s < strips; s += kThreads) {
    sum[0] += partials[static_cast<int64_t>(blockIdx.x) * strips + s];
  }
  block_sum(sum, scratch);
  if (threadIdx.x == 0) inner[blockIdx.x] = sum[0];
}

int strip_count(const InnerArgs& args) {
  const int64_t strips = (args.size + kStripSize - 1) / kStripSize;
  return static_cast<int>(std::clamp<int64_t>(strips, 1, kMostStrips));
}

}  // namespace

size_t inner_products_workspace(const InnerArgs& args) {
  const int strips = strip_count(args);
  return strips == 1 ? 0 : args.batch * strips * sizeof(double);
}

cudaError_t inner_products(const InnerArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  const int strips = strip_count(args);
  double* partials = strips == 1 ? args.inner : static_cast<double*>(workspace);
  const Params p = {args.size,
                    args.x_dtype,
                    args.y_dtype,
                    static_cast<const char*>(args.x),
                    static_cast<const char*>(args.y),
                    partials,
                    strips};
  const bool in_double = args.x_dtype == Dtype::kFloat64 || args.y_dtype == Dtype::kFloat64;
  const size_t shared = kThreads / 32 * sizeof(double);
  const unsigned blocks = static_cast<unsigned>(args.batch * strips);
  const cudaError_t error = dev::launch(in_double ? inner_partials<double> : inner_partials<float>,
                                        blocks, kThreads, shared, stream, p);
  if (error != cudaSuccess || strips == 1) return error;
  return dev::launch(inner_sums, static_cast<unsigned>(args.batch), kThreads, shared, stream,
                     partials, strips, args.inner);
}

}  // namespace schattor::cuda

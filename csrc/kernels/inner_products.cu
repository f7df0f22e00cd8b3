// Inner products of two batches: one launch where one block takes a matrix, else partial sums and
// their sum. The floor is each operand read once.
#include "strips.cuh"

namespace schattor::cuda {
namespace {

using namespace strips;

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

// One strip of one matrix.
template <class T>
__global__ void __launch_bounds__(kThreads) inner_partials(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  double* scratch = sm.take<double>(kThreads / 32);
  const Strip strip(p.size, p.strips);
  const char* x = p.x + strip.matrix * p.size * size_of(p.x_dtype);
  const char* y = p.y + strip.matrix * p.size * size_of(p.y_dtype);
  int64_t entry = strip.begin * kUnit;
  double sum[1] = {};
  if (is_aligned(x) && is_aligned(y)) {
    sum[0] = products_by_units<T>(p, x, y, strip.begin + threadIdx.x, strip.end);
    entry = strip.end * kUnit;
  }
  for (entry += threadIdx.x; entry < strip.last; entry += kThreads) {
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

}  // namespace

cudaError_t strips::add_up(int64_t batch, int64_t size, const double* partials, double* sums,
                           cudaStream_t stream) {
  if (count(size) == 1) return cudaSuccess;
  return dev::launch(inner_sums, static_cast<unsigned>(batch), kThreads, kSharedBytes, stream,
                     partials, count(size), sums);
}

size_t inner_products_workspace(const InnerArgs& args) { return workspace(args.batch, args.size); }

cudaError_t inner_products(const InnerArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  const int strips = count(args.size);
  double* const sums = partials(args.size, workspace, args.inner);
  const Params p = {args.size,
                    args.x_dtype,
                    args.y_dtype,
                    static_cast<const char*>(args.x),
                    static_cast<const char*>(args.y),
                    sums,
                    strips};
  const bool in_double = args.x_dtype == Dtype::kFloat64 || args.y_dtype == Dtype::kFloat64;
  const cudaError_t error =
      dev::launch(in_double ? inner_partials<double> : inner_partials<float>,
                  static_cast<unsigned>(args.batch * strips), kThreads, kSharedBytes, stream, p);
  return error != cudaSuccess ? error : add_up(args.batch, args.size, sums, args.inner, stream);
}

}  // namespace schattor::cuda

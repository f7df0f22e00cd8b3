// A batch of weights times one of directions, in place, and its squared norms. The floor is both
// read once and one written once.
#include "strips.cuh"

namespace schattor::cuda {
namespace {

using namespace strips;

struct Params {
  int64_t size;
  Dtype weights_dtype, direction_dtype;
  char* weights;
  const char* direction;
  double* sums;  // (batch, strips)
  int strips;
};

// The squares that count are those of the weights as they are stored, in double whatever T is:
// squares of float numbers may be beyond float.
DEV double square_of(double x, Dtype dtype, double sum) {
  const double stored = dtype == Dtype::kFloat32 ? static_cast<float>(x) : x;
  return fma(stored, stored, sum);
}

// Of the whole units begin, begin + kThreads, ... before `end`.
template <class T>
DEV double weigh_units(const Params& p, char* weights, const char* direction, int64_t begin,
                       int64_t end) {
  const int size = size_of(p.weights_dtype), direction_size = size_of(p.direction_dtype);
  double sum = 0;
  for (int64_t unit = begin; unit < end; unit += kInFlight * kThreads) {
    RawUnit<T> raw[kInFlight], factors[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t entry = (unit + i * kThreads) * kUnit;
      raw[i] = {}, factors[i] = {};
      if (unit + i * kThreads >= end) continue;
      raw[i] = load_raw<T>(weights + entry * size, size);
      factors[i] = load_raw<T>(direction + entry * direction_size, direction_size);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      T w[kUnit], x[kUnit];
      from_raw(raw[i], p.weights_dtype, w);
      from_raw(factors[i], p.direction_dtype, x);
#pragma unroll
      for (int k = 0; k < kUnit; ++k) {
        w[k] *= x[k];
        sum = square_of(w[k], p.weights_dtype, sum);
      }
      if (unit + i * kThreads < end) {
        const int64_t entry = (unit + i * kThreads) * kUnit;
        store_raw(to_raw(w, p.weights_dtype), size, weights + entry * size);
      }
    }
  }
  return sum;
}

// One strip of one matrix.
template <class T>
__global__ void __launch_bounds__(kThreads) weigh_strips(const __grid_constant__ Params p) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  double* scratch = sm.take<double>(kThreads / 32);
  const Strip strip(p.size, p.strips);
  const int size = size_of(p.weights_dtype), direction_size = size_of(p.direction_dtype);
  char* weights = p.weights + strip.matrix * p.size * size;
  const char* direction = p.direction + strip.matrix * p.size * direction_size;
  int64_t entry = strip.begin * kUnit;
  double sum[1] = {};
  if (is_aligned(weights) && is_aligned(direction)) {
    sum[0] = weigh_units<T>(p, weights, direction, strip.begin + threadIdx.x, strip.end);
    entry = strip.end * kUnit;
  }
  for (entry += threadIdx.x; entry < strip.last; entry += kThreads) {
    const T w = load_entry<T>(weights + entry * size, p.weights_dtype) *
                load_entry<T>(direction + entry * direction_size, p.direction_dtype);
    store_entry(w, p.weights_dtype, weights + entry * size);
    sum[0] = square_of(w, p.weights_dtype, sum[0]);
  }
  block_sum(sum, scratch);
  if (threadIdx.x == 0) p.sums[blockIdx.x] = sum[0];
}

}  // namespace

size_t weigh_workspace(const WeighArgs& args) { return workspace(args.batch, args.size); }

cudaError_t weigh(const WeighArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  const int strips = count(args.size);
  double* const sums = partials(args.size, workspace, args.square);
  const Params p = {args.size,
                    args.weights_dtype,
                    args.direction_dtype,
                    static_cast<char*>(args.weights),
                    static_cast<const char*>(args.direction),
                    sums,
                    strips};
  const bool in_double =
      args.weights_dtype == Dtype::kFloat64 || args.direction_dtype == Dtype::kFloat64;
  const cudaError_t error =
      dev::launch(in_double ? weigh_strips<double> : weigh_strips<float>,
                  static_cast<unsigned>(args.batch * strips), kThreads, kSharedBytes, stream, p);
  return error != cudaSuccess ? error : add_up(args.batch, args.size, sums, args.square, stream);
}

}  // namespace schattor::cuda

// The engine `hopper` of product.h: host part. See hopper_kernel.cuh for the kernel.
//
// Nothing here has run on a GPU yet, and no time has been measured: it is compiled for sm_90a, and
// tested in emulation. What a GPU must confirm, in this order:
//   1. the wrappers of device.h mean what the emulation thinks (test_conformance), above all the
//      MN-major descriptor, TMA's swizzle and clipping, stmatrix; then test_hopper;
//   2. no hang: both schedules, one step a tile, thousands of launches, and compute-sanitizer;
//   3. setmaxnreg with 384 threads of 168 registers, two warps of the loaders leaving at once;
//   4. times: schedule_of's choice, 4 slots against 5, and bytes per second out of L2: without
//      multicast, tiles at full rate ask 10 to 12 TB/s of it, which is expected to be the limit;
//   5. that C and squares are equal bit by bit from run to run and in both schedules.
#include <algorithm>
#include <climits>

#include "hopper.h"
#include "hopper_kernel.cuh"

namespace schattor::cuda::hopper {
namespace {

bool fits(const Operand& operand, int rows, int cols, int batch) {
  return operand.ld % kAlignment == 0 && operand.ld >= cols &&
         reinterpret_cast<uintptr_t>(operand.data) % (kAlignment * 2) == 0 &&
         (batch == 1 ||
          (operand.stride % kAlignment == 0 && operand.stride >= operand.ld * (rows - 1) + cols));
}

bool fits_if_given(const Operand& operand, const Product& x) {
  return operand.data == nullptr || fits(operand, x.rows, x.cols, x.batch);
}

bool same(const Operand& x, const Operand& y) {
  return x.data == y.data && x.ld == y.ld && x.stride == y.stride;
}

int64_t tiles_of_matrix(const Product& x) {
  const int64_t rows = dev::div_up(x.rows, kTile), cols = dev::div_up(x.cols, kTile);
  return x.symmetric ? rows * (rows + 1) / 2 : rows * cols;
}

int64_t tiles_of(const Product* products, int count) {
  int64_t tiles = 0;
  for (int i = 0; i < count; ++i) tiles += products[i].batch * tiles_of_matrix(products[i]);
  return tiles;
}

size_t partials_of(const Product& x) {
  return x.squares == nullptr ? 0 : static_cast<size_t>(x.batch) * tiles_of_matrix(x) * kPartials;
}

template <class T>
cudaError_t make_map(dev::TensorMap* map, const Operand& operand, int rows, int cols, int batch,
                     int box_rows) {
  const int64_t stride = batch == 1 ? operand.ld * rows : operand.stride;
  return dev::make_map_3d(map, static_cast<const T*>(operand.data), cols, rows, batch, operand.ld,
                          stride, box_rows);
}

// Two to five tensor maps a product at each call, about 100 ns of the host each: a few percent of
// what a launch costs. They hold pointers, so keeping them would need a plan that outlives calls.
template <class T>
cudaError_t make_maps(Job* job, const Product& x) {
  struct Map {
    dev::TensorMap* map;
    const Operand* operand;
    int rows, cols, box_rows;
    bool wanted;
  };
  const bool nt = x.transposed_b;
  const Map maps[] = {
      {&job->a, &x.a, x.rows, x.inner, kTile, true},
      {&job->b, &x.b, nt ? x.cols : x.inner, nt ? x.inner : x.cols, nt ? kTile : kDepth, true},
      {&job->c, &x.c, x.rows, x.cols, kBoxSide, job->has_c},
      {&job->d, &x.d, x.rows, x.cols, kBoxSide, job->has_d},
      {&job->s, &x.s, x.rows, x.cols, kBoxSide, job->has_s},
  };
  for (const Map& each : maps) {
    if (!each.wanted) continue;
    const cudaError_t error =
        make_map<T>(each.map, *each.operand, each.rows, each.cols, x.batch, each.box_rows);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t make_job(Job* job, const Product& x, int first, float* partials) {
  job->rows = x.rows;
  job->cols = x.cols;
  job->steps = dev::div_up(x.inner, kDepth);
  job->row_tiles = dev::div_up(x.rows, kTile);
  job->col_tiles = dev::div_up(x.cols, kTile);
  job->tiles = static_cast<int>(tiles_of_matrix(x));
  job->first = first;
  job->symmetric = x.symmetric;
  job->one_operand = x.symmetric && same(x.a, x.b);
  job->b_row_major = !x.transposed_b;
  job->has_c = x.c.data != nullptr;
  job->has_d = x.d.data != nullptr;
  job->has_s = x.s.data != nullptr;
  job->alpha = x.alpha;
  job->beta = job->has_d ? x.beta : Coefficient{};
  job->gamma = job->has_s ? x.gamma : Coefficient{};
  job->weight = x.weight;
  job->partials = x.squares == nullptr ? nullptr : partials;
  return make_maps<T>(job, x);
}

struct Sums {
  struct Matrices {
    const float* partials;
    double* squares;
    int batch;
    int each;  // partials of a matrix
  } of[kMostGroups];
};

// One block a matrix: adds its partial sums in an order that its shape gives.
constexpr int kSumThreads = 128;
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const __grid_constant__ Sums sums) {
  DYN_SMEM(base);
  dev::Carve shared{base};
  double* of_threads = shared.take<double>(kSumThreads);
  int group = 0, matrix = blockIdx.x;
  while (matrix >= sums.of[group].batch) matrix -= sums.of[group++].batch;
  const Sums::Matrices& x = sums.of[group];
  const float* partials = x.partials + static_cast<int64_t>(matrix) * x.each;
  double sum = 0.;
  for (int i = threadIdx.x; i < x.each; i += kSumThreads) sum += partials[i];
  of_threads[threadIdx.x] = sum;
  for (int distance = kSumThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < distance) {
      of_threads[threadIdx.x] += of_threads[threadIdx.x + distance];
    }
  }
  if (threadIdx.x == 0) x.squares[matrix] = of_threads[0];
}

cudaError_t add_partials(const Product* products, int count, const float* partials,
                         cudaStream_t stream) {
  Sums sums{};
  int groups = 0, matrices = 0;
  for (int i = 0; i < count; ++i) {
    const Product& x = products[i];
    if (x.squares == nullptr) continue;
    const int each = static_cast<int>(tiles_of_matrix(x)) * kPartials;
    sums.of[groups++] = {partials, x.squares, x.batch, each};
    partials += partials_of(x);
    matrices += x.batch;
  }
  if (matrices == 0) return cudaSuccess;
  return dev::launch(sum_kernel, dim3(matrices), dim3(kSumThreads), kSumThreads * sizeof(double),
                     stream, sums);
}

template <class T>
cudaError_t multiply_of(const Product* products, int count, float* partials, Schedule schedule,
                        int blocks, cudaStream_t stream) {
  // The longest tiles first, so that none of them starts when the others are done.
  float* sums[kMostGroups];
  int indices[kMostGroups];
  for (int i = 0; i < count; ++i) {
    indices[i] = i;
    sums[i] = partials;
    partials += partials_of(products[i]);
  }
  std::stable_sort(indices, indices + count,
                   [&](int i, int j) { return products[i].inner > products[j].inner; });
  Params params{};
  params.count = count;
  params.slots = kMostSlots;
  for (int i = 0; i < count; ++i) {
    const Product& x = products[indices[i]];
    const cudaError_t error = make_job<T>(&params.jobs[i], x, params.tiles, sums[indices[i]]);
    if (error != cudaSuccess) return error;
    params.tiles += static_cast<int>(x.batch * tiles_of_matrix(x));
    if (x.s.data != nullptr) params.slots = kSlotsWithMixture;
  }
  const dim3 grid(std::min(params.tiles, blocks));
  return dev::launch(schedule == Schedule::kPingPong ? multiply_kernel<T, Schedule::kPingPong>
                                                     : multiply_kernel<T, Schedule::kCooperative>,
                     grid, dim3(kThreads), kSharedBytes, stream, params);
}

}  // namespace

bool layout_fits(const Product* products, int count) {
  if (count < 1 || count > kMostGroups) return false;
  for (int i = 0; i < count; ++i) {
    const Product& x = products[i];
    const bool nt = x.transposed_b;
    if (x.dtype != products[0].dtype ||
        (x.dtype != Dtype::kFloat16 && x.dtype != Dtype::kBFloat16) || x.batch < 1 || x.rows < 1 ||
        x.cols < 1 || x.inner < 1 || (x.symmetric && (x.rows != x.cols || !nt)) ||
        !fits(x.a, x.rows, x.inner, x.batch) ||
        !fits(x.b, nt ? x.cols : x.inner, nt ? x.inner : x.cols, x.batch) ||
        !fits_if_given(x.c, x) || !fits_if_given(x.d, x) || !fits_if_given(x.s, x)) {
      return false;
    }
  }
  return tiles_of(products, count) < INT_MAX / 2;
}

bool serves(const Product* products, int count) {
  DeviceFacts facts;
  return device_facts(&facts) == cudaSuccess && facts.arch == 90 && layout_fits(products, count);
}

Schedule schedule_of(const Product* products, int count, int multiprocessors) {
  return tiles_of(products, count) > multiprocessors ? Schedule::kPingPong : Schedule::kCooperative;
}

size_t workspace(const Product* products, int count) {
  size_t floats = 0;
  for (int i = 0; i < count; ++i) floats += partials_of(products[i]);
  return floats * sizeof(float);
}

cudaError_t multiply_as(const Product* products, int count, void* workspace, Schedule schedule,
                        int blocks, cudaStream_t stream) {
  if (!layout_fits(products, count) || blocks < 1) return cudaErrorInvalidValue;
  float* partials = static_cast<float*>(workspace);
  const bool half = products[0].dtype == Dtype::kFloat16;
  const cudaError_t error =
      (half ? multiply_of<__half> : multiply_of<bf16>)(products, count, partials, schedule, blocks,
                                                       stream);
  return error != cudaSuccess ? error : add_partials(products, count, partials, stream);
}

cudaError_t multiply(const Product* products, int count, void* workspace, cudaStream_t stream) {
  DeviceFacts facts;
  const cudaError_t error = device_facts(&facts);
  if (error != cudaSuccess) return error;
  const int blocks = facts.multiprocessors;
  return multiply_as(products, count, workspace, schedule_of(products, count, blocks), blocks,
                     stream);
}

}  // namespace schattor::cuda::hopper

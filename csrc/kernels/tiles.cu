// The engine `tiles`: what the host works out, and the kernels that follow on the tiles.
#include <algorithm>
#include <climits>

#include "dtype.h"
#include "tiles_epilogue.cuh"

namespace schattor::cuda::tiles {
namespace {

constexpr int kLeastSlice = 1024;  // inner elements; more slices would cost more than they bring
constexpr int kEnoughBoxes = 128;  // of all slices of a matrix: about a device full
constexpr size_t kApart = 256;     // bytes between arrays in the workspace

int count_tiles(const Product& product, int tile) {
  const int rows = dev::div_up(product.rows, tile), cols = dev::div_up(product.cols, tile);
  return product.symmetric ? rows * (rows + 1) / 2 : rows * cols;
}

// Whether every row begins on 16 bytes.
bool is_aligned(const Operand& operand, const Product& product) {
  const int size = size_of(product.dtype);
  return reinterpret_cast<uintptr_t>(operand.data) % 16 == 0 && operand.ld * size % 16 == 0 &&
         (operand.stride * size % 16 == 0 || product.batch == 1);
}

bool is_valid(const Product& product, Dtype dtype) {
  return product.dtype == dtype && product.batch >= 0 && product.rows >= 0 && product.cols >= 0 &&
         product.inner >= 0 &&
         (!product.symmetric || (product.transposed_b && product.rows == product.cols));
}

// Hands out the workspace; from null it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    unsigned char* const at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count * sizeof(T) + kApart - 1) / kApart * kApart;
    return reinterpret_cast<T*>(at);
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* const base_;
  size_t bytes_ = 0;
};

Group group_of(const Product& product, int tile, Workspace& workspace) {
  Group group{};
  group.product = product;
  group.aligned_a = is_aligned(product.a, product);
  group.aligned_b = is_aligned(product.b, product);
  group.aligned_c = is_aligned(product.c, product);
  group.aligned_d = is_aligned(product.d, product);
  group.aligned_s = is_aligned(product.s, product);
  group.one_operand = product.symmetric && product.a.data == product.b.data &&
                      product.a.ld == product.b.ld && product.a.stride == product.b.stride;
  const int slices = slices_of(product);
  group.slice_length = dev::div_up(dev::div_up(product.inner, slices), kBox) * kBox;
  group.slices = slices == 1 ? 1 : dev::div_up(product.inner, group.slice_length);
  group.box_cols = dev::div_up(product.cols, kBox);
  group.boxes = count_tiles(product, kBox);
  group.tile_rows = dev::div_up(product.rows, tile);
  group.tile_cols = dev::div_up(product.cols, tile);
  group.tiles = count_tiles(product, tile);
  const int64_t boxes = static_cast<int64_t>(product.batch) * group.boxes;
  if (product.squares != nullptr) {
    group.shares = group.boxes == 1 ? product.squares : workspace.take<double>(boxes);
  }
  if (group.slices > 1) {
    const size_t sum = product.dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
    group.sums = workspace.take<unsigned char>(boxes * group.slices * kBoxSize * sum);
  }
  return group;
}

// Groups in the order in which their tiles are dealt: those that take longest first.
cudaError_t plan(const Product* products, int count, int tile, void* memory, Params* params) {
  Workspace workspace(memory);
  params->count = count;
  for (int i = 0; i < count; ++i) params->groups[i] = group_of(products[i], tile, workspace);
  std::stable_sort(params->groups, params->groups + count,
                   [](const Group& x, const Group& y) { return x.slice_length > y.slice_length; });
  int64_t tiles = 0;
  for (int i = 0; i < count; ++i) {
    const Group& group = params->groups[i];
    tiles += static_cast<int64_t>(group.product.batch) * group.slices * group.tiles;
    if (tiles > INT_MAX) return cudaErrorInvalidValue;
  }
  params->tiles = static_cast<int>(tiles);
  return cudaSuccess;
}

bool adds_squares(const Group& group) { return group.shares != group.product.squares; }

// Boxes of a product in slices; none of the others.
template <typename T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Params params) {
  using Sum = SumOf<T>;
  DYN_SMEM(base);
  dev::Carve memory{base};
  Sum* const box = memory.take<Sum>(kBoxSize);
  double* const warp_squares = memory.take<double>(kWarps);
  Tile* const tile = memory.take<Tile>(1);
  int number = blockIdx.x;
  const Group& group = group_at(params, &number, [](const Group& each) {
    return each.slices > 1 ? each.product.batch * each.boxes : 0;
  });
  copy_group(group, &tile->group);
  if (threadIdx.x == 0) tile->matrix = number / group.boxes;
  __syncthreads();
  number %= group.boxes;
  const Place place = group.product.symmetric
                          ? in_triangle(number)
                          : Place{number / group.box_cols, number % group.box_cols};
  Epilogue<T> epilogue(*tile, box, warp_squares);
  epilogue.gather(place.row, place.col);
  epilogue.finish(place.row, place.col);
}

// squares = the shares of a matrix's boxes, added in an order that their number alone gives.
__global__ void __launch_bounds__(kThreads)
    add_squares_kernel(const __grid_constant__ Params params) {
  DYN_SMEM(base);
  dev::Carve memory{base};
  double* const warps = memory.take<double>(kWarps);
  int matrix = blockIdx.x;
  const Group& group = group_at(params, &matrix, [](const Group& each) {
    return each.shares != each.product.squares ? each.product.batch : 0;
  });
  const double* const shares = group.shares + static_cast<int64_t>(matrix) * group.boxes;
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int i = thread; i < group.boxes; i += kThreads) sum += shares[i];
  sum = warp_sum(sum);
  if (thread % 32 == 0) warps[thread / 32] = sum;
  __syncthreads();
  if (thread == 0) group.product.squares[matrix] = (warps[0] + warps[1]) + (warps[2] + warps[3]);
}

template <typename T>
cudaError_t finish(const Params& params, int boxes, cudaStream_t stream) {
  constexpr size_t kBytes = kBoxSize * sizeof(SumOf<T>) + kWarps * sizeof(double) + sizeof(Tile);
  return dev::launch(finish_kernel<T>, dim3(boxes), dim3(kThreads), kBytes, stream, params);
}

cudaError_t finish_slices(const Params& params, cudaStream_t stream) {
  int boxes = 0;
  for (int i = 0; i < params.count; ++i) {
    const Group& group = params.groups[i];
    if (group.slices > 1) boxes += group.product.batch * group.boxes;
  }
  if (boxes == 0) return cudaSuccess;
  switch (params.groups[0].product.dtype) {
    case Dtype::kFloat64:
      return finish<double>(params, boxes, stream);
    case Dtype::kFloat32:
      return finish<float>(params, boxes, stream);
    case Dtype::kBFloat16:
      return finish<bf16>(params, boxes, stream);
    default:
      return finish<__half>(params, boxes, stream);
  }
}

cudaError_t add_squares(const Params& params, cudaStream_t stream) {
  int matrices = 0;
  for (int i = 0; i < params.count; ++i) {
    if (adds_squares(params.groups[i])) matrices += params.groups[i].product.batch;
  }
  if (matrices == 0) return cudaSuccess;
  return dev::launch(add_squares_kernel, dim3(matrices), dim3(kThreads), kWarps * sizeof(double),
                     stream, params);
}

}  // namespace

// Not more than keep about a device full of boxes of 64 busy with one matrix, whatever the batch,
// for the order of a sum may not depend on that.
int slices_of(const Product& product) {
  const int boxes = std::max(1, count_tiles(product, kBox));
  return std::max(1, std::min(product.inner / kLeastSlice, kEnoughBoxes / boxes));
}

// Small tiles where they end sooner: a quarter of the work each, at three quarters of the rate.
int half_tile(const Product* products, int count, const DeviceFacts& facts) {
  int64_t large = 0, small = 0;
  for (int i = 0; i < count; ++i) {
    if (!is_aligned(products[i].a, products[i]) || !is_aligned(products[i].b, products[i]))
      return 64;
    const int64_t pieces = static_cast<int64_t>(products[i].batch) * slices_of(products[i]);
    large += pieces * count_tiles(products[i], 128);
    small += pieces * count_tiles(products[i], 64);
  }
  const int64_t large_rounds = (large + facts.multiprocessors - 1) / facts.multiprocessors;
  const int64_t small_rounds = (small + facts.multiprocessors - 1) / facts.multiprocessors;
  return small_rounds < 3 * large_rounds ? 64 : 128;
}

size_t workspace(const Product* products, int count) {
  Workspace counted(nullptr);
  for (int i = 0; i < count; ++i) group_of(products[i], kBox, counted);
  return counted.bytes();
}

cudaError_t multiply_on(const DeviceFacts& facts, const Product* products, int count,
                        void* workspace, cudaStream_t stream) {
  if (count < 0 || count > kMostGroups) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  for (int i = 0; i < count; ++i) {
    if (!is_valid(products[i], products[0].dtype)) return cudaErrorInvalidValue;
  }
  const bool half = is_half(products[0].dtype);
  const int tile = half ? half_tile(products, count, facts) : kBox;
  Params params{};
  cudaError_t error = plan(products, count, tile, workspace, &params);
  if (error == cudaSuccess && params.tiles > 0) {
    error = half ? launch_half(params, tile, facts, stream) : launch_wide(params, facts, stream);
  }
  if (error == cudaSuccess && params.tiles > 0) error = finish_slices(params, stream);
  return error == cudaSuccess ? add_squares(params, stream) : error;
}

cudaError_t multiply(const Product* products, int count, void* workspace, cudaStream_t stream) {
  DeviceFacts facts;
  const cudaError_t error = device_facts(&facts);
  return error == cudaSuccess ? multiply_on(facts, products, count, workspace, stream) : error;
}

}  // namespace schattor::cuda::tiles

// The engine `hopper` at the sizes of real models, on all multiprocessors, many times over: every
// element of every matrix against the engine `tiles`, and every launch bit by bit against the
// first.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "device_test.h"
#include "hopper.h"
#include "hopper_jobs.h"

namespace {

using device_test::Buffer;
using hopper_jobs::Form;
using hopper_jobs::Job;
using hopper_jobs::kTolerance;
using hopper_jobs::Matrices;
using hopper_jobs::Shape;
using schattor::cuda::Product;
namespace hopper = schattor::cuda::hopper;
namespace tiles = schattor::cuda::tiles;
using hopper::Schedule;

// Of the kernels here.
constexpr int kBlocks = DEV_EITHER(1024, 2);
#ifdef __CUDACC__
constexpr int kLaunches = 1000;  // of each shape and type
constexpr Shape kShapes[] = {{Form::kGram, 1408, 1408, 2048, 8, "zq"},
                             {Form::kSymmetric, 4096, 4096, 4096, 3, "dzq"},
                             {Form::kRowMajor, 768, 3072, 768, 12, "dzq"}};
#else
constexpr int kLaunches = 3;
constexpr Shape kShapes[] = {{Form::kGram, 264, 264, 136, 2, "zq"},
                             {Form::kSymmetric, 200, 200, 200, 2, "dzq"},
                             {Form::kRowMajor, 136, 200, 136, 2, "dzq"}};
#endif

__global__ void forget_kernel(uint16_t* x, int64_t size) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < size; i += step) x[i] = 0xFFFF;
}
// Notes in *different whether x and y are.
__global__ void compare_kernel(const uint16_t* x, const uint16_t* y, int64_t size, int* different) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < size; i += step) {
    if (x[i] != y[i]) *different = 1;
  }
}

template <class T>
uint16_t* data_of(const Matrices<T>& x) {
  return static_cast<uint16_t*>(x.operand().data);
}
template <class T>
void forget(const Matrices<T>& x) {
  const auto size = static_cast<int64_t>(x.values.size());
  const cudaError_t error = dev::launch(forget_kernel, kBlocks, 256, 0, nullptr, data_of(x), size);
  CHECK(error == cudaSuccess, "forget: error %d", static_cast<int>(error));
}
template <class T>
void compare(const Matrices<T>& x, const Matrices<T>& y, int* different) {
  const auto size = static_cast<int64_t>(x.values.size());
  const cudaError_t error = dev::launch(compare_kernel, kBlocks, 256, 0, nullptr, data_of(x),
                                        data_of(y), size, different);
  CHECK(error == cudaSuccess, "compare: error %d", static_cast<int>(error));
}

// Largest difference between two results, as a share of the largest entry.
template <class T>
double distance(Matrices<T>& x, Matrices<T>& y, const Shape& shape) {
  double most = 0., wrong = 0.;
  for (int b = 0; b < shape.batch; ++b) {
    for (int i = 0; i < shape.rows; ++i) {
      for (int j = 0; j < shape.cols; ++j) {
        const double error = std::fabs(x(b, i, j) - y(b, i, j));
        most = std::max(most, std::fabs(y(b, i, j)));
        if (!(error <= wrong)) wrong = error;
      }
    }
  }
  return wrong / most;
}

template <class T>
void run_shape(const char* type, const Shape& shape) {
  char name[100];
  std::snprintf(name, sizeof name, "%s [form %d, %dx%dx%d, batch %d]", type,
                static_cast<int>(shape.form), shape.rows, shape.cols, shape.inner, shape.batch);
  // The same numbers thrice: for tiles, for the first launch and for all others.
  Job<T> truth(shape, 11), job(shape, 11), again(shape, 11);
  truth.upload(), job.upload(), again.upload();
  const Product wanted = truth.product(0, shape.batch);
  Buffer<unsigned char> for_tiles(tiles::workspace(&wanted, 1) + 1, "workspace of tiles");
  cudaError_t error = tiles::multiply(&wanted, 1, for_tiles.data(), nullptr);
  CHECK(error == cudaSuccess, "%s, tiles: error %d", name, static_cast<int>(error));

  schattor::cuda::DeviceFacts facts{};
  CHECK(device_facts(&facts) == cudaSuccess, "%s", "facts");
  Buffer<unsigned char> workspace(hopper::workspace(&wanted, 1) + 1, "workspace of hopper");
  const auto launch = [&](Job<T>& with, int turn) {
    const Product product = with.product(0, shape.batch);
    const Schedule schedule = turn % 2 ? Schedule::kPingPong : Schedule::kCooperative;
    const int blocks = facts.multiprocessors - turn % 3;
    error = hopper::multiply_as(&product, 1, workspace.data(), schedule, blocks, nullptr);
    CHECK(error == cudaSuccess, "%s, launch %d: error %d", name, turn, static_cast<int>(error));
  };
  Buffer<int> different(std::vector<int>{0}, "different");
  launch(job, 0);
  for (int turn = 1; turn < kLaunches && error == cudaSuccess; ++turn) {
    forget(again.c()), forget(again.s());
    launch(again, turn);
    compare(again.c(), job.c(), different.data());
    compare(again.s(), job.s(), different.data());
  }
  CHECK(different.read()[0] == 0, "%s: launches differ", name);
  const std::vector<double> squares = job.squares();
  CHECK(squares == again.squares(), "%s: squares differ", name);

  job.download(), truth.download();
  const double c = distance(job.c(), truth.c(), shape), s = distance(job.s(), truth.s(), shape);
  CHECK(c <= 2. * kTolerance<T> && s <= 2. * kTolerance<T>, "%s: C off by %g, S by %g", name, c, s);
  const std::vector<double> others = truth.squares();
  for (int b = 0; b < shape.batch; ++b) {  // those of tiles are of C as rounded
    CHECK(std::fabs(squares[b] - others[b]) <= 1e-3 * others[b], "%s, squares of %d: %g, not %g",
          name, b, squares[b], others[b]);
  }
}

void body() {
  for (const Shape& shape : kShapes) {
    run_shape<__half>("half", shape);
    run_shape<bf16>("bfloat16", shape);
  }
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, body); }

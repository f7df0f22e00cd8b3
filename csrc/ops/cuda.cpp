// CUDA key: the kernels of csrc/kernels on torch's current stream, with workspace of torch's
// allocator. Nothing is read back: momentum, decay, scale, weights and powers stay on the device.
//
// With SCHATTOR_EMULATED the same kernels, emulated, stand behind the CPU key: no stream, no guard.
#define USE_CUDA  // torch's header declares its functions of CUDA where this stands
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/launch.h"
#include "cuda_facts.h"
#include "operators.h"

namespace schattor::ops {
namespace {

#ifdef SCHATTOR_EMULATED
struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};
cudaStream_t current_stream(const Tensor&) { return nullptr; }
std::string text(cudaError_t error) { return "error " + std::to_string(error); }
#else
struct DeviceGuard : torch::stable::accelerator::DeviceGuard {
  explicit DeviceGuard(const Tensor& t)
      : torch::stable::accelerator::DeviceGuard(t.get_device_index()) {}
};
cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
std::string text(cudaError_t error) {
  std::string text = cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    text += "; the kernels were built for other devices, see `python -m schattor.doctor`";
  }
  return text;
}
#endif

void require_success(const char* op, const std::string& kernel, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA failed in " + kernel + ": " + text(error));
}

Tensor bytes_like(const Tensor& like, size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

constexpr const char* kChainKernels[] = {"chain_small", "chain_thin", "chain_tiles",
                                         "chain_hopper"};
constexpr int kPlanned = -1;
std::atomic<int> forced_chain_kernel{kPlanned};

cuda::ChainKernel chosen_kernel(const cuda::ChainArgs& args, const cuda::DeviceFacts& facts) {
  const int forced = forced_chain_kernel;
  if (forced == kPlanned) return cuda::chain_kernel(args, facts);
  const auto kernel = static_cast<cuda::ChainKernel>(forced);
  if (cuda::chain_kernel_serves(kernel, args, facts)) return kernel;
  throw std::runtime_error(std::string("chain_direction: ") + kChainKernels[forced] +
                           " was forced, but does not serve this chain on this device");
}

struct Cuda {
  using Dtype = cuda::Dtype;
  using View = cuda::View;
  using Direction = cuda::Direction;
  using GatherArgs = cuda::GatherArgs;
  using SecondMoments = cuda::SecondMoments;
  using ScatterArgs = cuda::ScatterArgs;
  using WeighArgs = cuda::WeighArgs;
  using AverageGramsArgs = cuda::AverageGramsArgs;
  using InnerArgs = cuda::InnerArgs;
  using ChainArgs = cuda::ChainArgs;
  using SquaringsArgs = cuda::SquaringsArgs;
  using PartialSvdArgs = cuda::PartialSvdArgs;
  static constexpr int64_t kMostSteps = cuda::kMostSteps;

  static const double* number(const Tensor& t) { return static_cast<const double*>(t.data_ptr()); }

  static void run(const GatherArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const Tensor workspace = bytes_like(like, cuda::gather_momentum_workspace(args));
    const bool weighted = args.second.weights != nullptr;
    require_success(weighted ? "gather_weighted" : "gather_momentum", "gather_momentum",
                    cuda::gather_momentum(args, workspace.data_ptr(), current_stream(like)));
  }
  static void run(const ScatterArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const bool both = args.squares != nullptr;
    require_success(both ? "scatter_moments" : "scatter_update", "scatter_update",
                    cuda::scatter_update(args, current_stream(like)));
  }
  static void run(const WeighArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const Tensor workspace = bytes_like(like, cuda::weigh_workspace(args));
    require_success("weigh", "weigh",
                    cuda::weigh(args, workspace.data_ptr(), current_stream(like)));
  }
  static void run(const AverageGramsArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const Tensor workspace = bytes_like(like, cuda::average_grams_workspace(args));
    require_success("average_grams", "average_grams",
                    cuda::average_grams(args, workspace.data_ptr(), current_stream(like)));
  }
  static void run(const InnerArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const Tensor workspace = bytes_like(like, cuda::inner_products_workspace(args));
    require_success("inner_products", "inner_products",
                    cuda::inner_products(args, workspace.data_ptr(), current_stream(like)));
  }
  static void run(const ChainArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    cuda::DeviceFacts facts{};
    require_success("chain_direction", "device_facts", cuda::device_facts(&facts));
    const cuda::ChainKernel kernel = chosen_kernel(args, facts);
    const Tensor workspace = bytes_like(like, cuda::chain_workspace(kernel, args, facts));
    require_success(
        "chain_direction", kChainKernels[static_cast<int>(kernel)],
        cuda::chain_direction(kernel, args, workspace.data_ptr(), current_stream(like)));
  }
  static void run(const SquaringsArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const Tensor workspace = bytes_like(like, cuda::squarings_workspace(args));
    require_success("squarings_direction", "squarings",
                    cuda::squarings_direction(args, workspace.data_ptr(), current_stream(like)));
  }
  static void run(const PartialSvdArgs& args, const Tensor& like) {
    const DeviceGuard guard(like);
    const Tensor workspace = bytes_like(like, cuda::partial_svd_workspace(args));
    require_success("partial_svd", "partial_svd",
                    cuda::partial_svd(args, workspace.data_ptr(), current_stream(like)));
  }
};

}  // namespace
}  // namespace schattor::ops

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void schattor_cuda_force_chain_kernel(int kernel) {
  schattor::ops::forced_chain_kernel = kernel;
}

EXPORTED const char* schattor_cuda_chain_kernel(const SchattorChain* chain, int* kernel,
                                                size_t* workspace) {
  namespace cuda = schattor::cuda;
  thread_local std::string wrong;
  cuda::DeviceFacts facts{chain->arch, chain->multiprocessors, chain->shared_bytes};
  try {
    if (chain->arch == 0) {
      schattor::ops::require_success("cuda_chain_kernel", "device_facts",
                                     cuda::device_facts(&facts));
    }
    cuda::ChainArgs args{};
    args.batch = chain->batch, args.rows = chain->rows, args.cols = chain->cols;
    args.dtype = static_cast<cuda::Dtype>(chain->dtype);
    // What they are is of no account, but kernels read them.
    const std::vector<double> steps(3 * chain->depth);
    args.depth = chain->depth;
    args.steps = steps.data();
    args.gram = chain->gram != 0;
    args.restarts = chain->restarts;
    args.restart_count = chain->restart_count;
    const cuda::ChainKernel chosen = schattor::ops::chosen_kernel(args, facts);
    *kernel = static_cast<int>(chosen);
    *workspace = cuda::chain_workspace(chosen, args, facts);
    return nullptr;
  } catch (const std::exception& error) {
    wrong = error.what();
    return wrong.c_str();
  }
}

#ifdef SCHATTOR_EMULATED
STABLE_TORCH_LIBRARY_IMPL(schattor, CPU, library) {
#else
STABLE_TORCH_LIBRARY_IMPL(schattor, CUDA, library) {
#endif
  schattor::ops::Operators<schattor::ops::Cuda>::add_to(library);
}

#include "cuda_library.h"

#include <dlfcn.h>

#include <array>
#include <stdexcept>

namespace schattor::bindings {
namespace {

// In the order of schattor::cuda::ChainKernel.
constexpr std::array<const char*, 4> kKernelNames = {"small", "thin", "tiles", "hopper"};

struct Library {
  SchattorChainKernel* chain_kernel = nullptr;
  SchattorForceChainKernel* force_chain_kernel = nullptr;
};
Library library;

const Library& attached(const char* who) {
  if (library.chain_kernel != nullptr) return library;
  throw std::runtime_error(std::string(who) +
                           ": CUDA kernels must be built and loaded, see schattor.doctor");
}

}  // namespace

void attach(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (handle == nullptr) {
    throw std::invalid_argument("attach_cuda: path must be of a library that is loaded, got " +
                                path);
  }
  library.chain_kernel =
      reinterpret_cast<SchattorChainKernel*>(dlsym(handle, "schattor_cuda_chain_kernel"));
  library.force_chain_kernel = reinterpret_cast<SchattorForceChainKernel*>(
      dlsym(handle, "schattor_cuda_force_chain_kernel"));
  if (library.chain_kernel == nullptr || library.force_chain_kernel == nullptr) {
    library = {};
    throw std::invalid_argument("attach_cuda: path must be of the CUDA operators, got " + path);
  }
}

std::pair<std::string, int64_t> chain_kernel(const SchattorChain& chain) {
  int kernel = 0;
  size_t workspace = 0;
  const char* wrong = attached("cuda_chain_kernel").chain_kernel(&chain, &kernel, &workspace);
  if (wrong != nullptr) throw std::runtime_error(wrong);
  return {kKernelNames.at(kernel), static_cast<int64_t>(workspace)};
}

void force_chain_kernel(const std::optional<std::string>& kernel) {
  const Library& held = attached("force_cuda_chain_kernel");
  if (!kernel) return held.force_chain_kernel(-1);
  for (size_t i = 0; i < kKernelNames.size(); ++i) {
    if (*kernel == kKernelNames[i]) return held.force_chain_kernel(static_cast<int>(i));
  }
  throw std::invalid_argument(
      "force_cuda_chain_kernel: kernel must be small, thin, tiles, hopper or None, got " + *kernel);
}

}  // namespace schattor::bindings

// schattor._C: facts of the build, of the processor, and of launches on a GPU. No tensors pass
// here; loading this module loads the operator library that it is linked with.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "cuda_library.h"

namespace {

using schattor::cpu::Level;

constexpr std::array<const char*, 6> kLevelNames = {"baseline",    "avx2",        "avx512",
                                                    "avx512_bf16", "avx512_fp16", "amx"};
// In the order of schattor::cpu::Dtype and schattor::cuda::Dtype.
constexpr std::array<const char*, 4> kDtypeNames = {"float64", "float32", "bfloat16", "float16"};

std::string name_of(Level level) { return kLevelNames[static_cast<size_t>(level)]; }

void force_cpu_level(const std::string& name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (name != kLevelNames[i]) continue;
    if (schattor::cpu::force_level(static_cast<Level>(i))) return;
    throw std::invalid_argument(
        "force_cpu_level: level must be one that the processor has, up to " +
        name_of(schattor::cpu::detected_level()) + ", got " + name);
  }
  throw std::invalid_argument(
      "force_cpu_level: level must be baseline, avx2, avx512, avx512_bf16, avx512_fp16 or amx, "
      "got " +
      name);
}

std::vector<std::string> cpu_levels() {
  std::vector<std::string> names;
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (schattor::cpu::has_level(static_cast<Level>(i))) names.emplace_back(kLevelNames[i]);
  }
  return names;
}

int dtype_named(const char* who, const std::string& name) {
  for (size_t i = 0; i < kDtypeNames.size(); ++i) {
    if (name == kDtypeNames[i]) return static_cast<int>(i);
  }
  throw std::invalid_argument(std::string(who) +
                              ": dtype must be float64, float32, bfloat16 or float16, got " + name);
}

int64_t chain_workspace_bytes(int64_t batch, int64_t rows, int64_t cols, const std::string& dtype,
                              int64_t depth, bool gram, int threads) {
  schattor::cpu::ChainArgs args{};
  args.batch = batch, args.rows = rows, args.cols = cols;
  args.dtype = static_cast<schattor::cpu::Dtype>(dtype_named("chain_workspace_bytes", dtype));
  args.depth = depth;
  args.gram = gram;
  return schattor::cpu::chain_workspace_bytes(args, threads);
}

std::pair<std::string, int64_t> cuda_chain_kernel(int64_t batch, int64_t rows, int64_t cols,
                                                  const std::string& dtype, int depth, bool gram,
                                                  const std::vector<int64_t>& restarts,
                                                  const std::array<int, 3>& device) {
  SchattorChain chain{};
  chain.batch = batch, chain.rows = rows, chain.cols = cols;
  chain.dtype = dtype_named("cuda_chain_kernel", dtype);
  chain.depth = depth;
  chain.gram = gram;
  chain.restarts = restarts.data();
  chain.restart_count = static_cast<int>(restarts.size());
  chain.arch = device[0], chain.multiprocessors = device[1], chain.shared_bytes = device[2];
  return schattor::bindings::chain_kernel(chain);
}

std::map<std::string, std::string> build_info() {
  return {{"compiler", __VERSION__},
          {"torch_abi", SCHATTOR_TORCH_ABI},
          {"torch_built_with", SCHATTOR_TORCH_VERSION},
          {"cuda", SCHATTOR_CUDA}};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using pybind11::arg;
  module.doc() = "Facts of the build, the processor, and launches on a GPU; no tensors.";
  module.def("build_info", &build_info);
  module.def("cpu_level", [] { return name_of(schattor::cpu::level()); });
  module.def("detected_cpu_level", [] { return name_of(schattor::cpu::detected_level()); });
  module.def("cpu_levels", &cpu_levels);
  module.def("force_cpu_level", &force_cpu_level, arg("level"));
  module.def("chain_workspace_bytes", &chain_workspace_bytes, arg("batch"), arg("rows"),
             arg("cols"), arg("dtype"), arg("depth"), arg("gram"), arg("threads"));
  module.def("attach_cuda", &schattor::bindings::attach, arg("path"));
  module.def("cuda_chain_kernel", &cuda_chain_kernel, arg("batch"), arg("rows"), arg("cols"),
             arg("dtype"), arg("depth"), arg("gram"), arg("restarts") = std::vector<int64_t>(),
             arg("device") = std::array<int, 3>());
  module.def("force_cuda_chain_kernel", &schattor::bindings::force_chain_kernel, arg("kernel"));
}

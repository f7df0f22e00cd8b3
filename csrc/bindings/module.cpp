// schattor._C: facts of the build and of the processor. No tensors pass here; loading this module
// loads the operator library that it is linked with.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <stdexcept>
#include <string>

#include "../cpu/kernels.h"

namespace {

using schattor::cpu::Level;

constexpr std::array<const char*, 4> kLevelNames = {"baseline", "avx2", "avx512", "amx"};

std::string name_of(Level level) { return kLevelNames[static_cast<size_t>(level)]; }

void force_cpu_level(const std::string& name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (name != kLevelNames[i]) continue;
    if (schattor::cpu::force_level(static_cast<Level>(i))) return;
    throw std::invalid_argument(
        "force_cpu_level: level must be one that the processor has, up to " +
        name_of(schattor::cpu::detected_level()) + ", got " + name);
  }
  throw std::invalid_argument("force_cpu_level: level must be baseline, avx2, avx512 or amx, got " +
                              name);
}

schattor::cpu::Dtype dtype_named(const std::string& name) {
  using schattor::cpu::Dtype;
  if (name == "float64") return Dtype::kFloat64;
  if (name == "float32") return Dtype::kFloat32;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "float16") return Dtype::kFloat16;
  throw std::invalid_argument(
      "chain_workspace_bytes: dtype must be float64, float32, bfloat16 or float16, got " + name);
}

int64_t chain_workspace_bytes(int64_t batch, int64_t rows, int64_t cols, const std::string& dtype,
                              int64_t depth, bool gram, int threads) {
  schattor::cpu::ChainArgs args{};
  args.batch = batch, args.rows = rows, args.cols = cols;
  args.dtype = dtype_named(dtype);
  args.depth = depth;
  args.gram = gram;
  return schattor::cpu::chain_workspace_bytes(args, threads);
}

std::map<std::string, std::string> build_info() {
  return {{"compiler", __VERSION__},
          {"torch_abi", SCHATTOR_TORCH_ABI},
          {"torch_built_with", SCHATTOR_TORCH_VERSION},
          {"cuda", "not built"}};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build facts and processor features; no tensors.";
  module.def("build_info", &build_info);
  module.def("cpu_level", [] { return name_of(schattor::cpu::level()); });
  module.def("detected_cpu_level", [] { return name_of(schattor::cpu::detected_level()); });
  module.def("force_cpu_level", &force_cpu_level, pybind11::arg("level"));
  module.def("chain_workspace_bytes", &chain_workspace_bytes, pybind11::arg("batch"),
             pybind11::arg("rows"), pybind11::arg("cols"), pybind11::arg("dtype"),
             pybind11::arg("depth"), pybind11::arg("gram"), pybind11::arg("threads"));
}

// CPU key of the decompositions of Kronecker factors. Eigenvectors are torch.linalg's, one matrix a
// thread: torch takes a batch one by one, and LAPACK makes little of a second thread for matrices
// of some hundred rows.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "cpu_key.h"

namespace schattor::ops {
namespace {

using torch::stable::select;

// An operator of torch: arguments in, as many results out.
template <size_t results, typename... Args>
std::array<Tensor, results> call(const char* name, const Args&... args) {
  std::array<StableIValue, std::max(results, sizeof...(Args))> stack{
      torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, results> found;
  for (size_t i = 0; i < results; ++i) found[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return found;
}

// Calls work(i) for every matrix, on as many threads as there are; with fewer matrices than threads
// these work inside torch's operators.
template <typename Work>
void for_each(int64_t batch, const Work& work) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  };
  if (batch < static_cast<int64_t>(torch::stable::get_num_threads())) return run(0, batch);
  torch::stable::parallel_for(0, batch, 1, run);
}

void put(Tensor batch, int64_t index, const Tensor& result) {
  Tensor place = select(batch, 0, index);
  torch::stable::copy_(place, result);
}

std::tuple<Tensor, Tensor, Tensor> eigenpairs(Tensor factors) {
  const Checks check("eigenpairs");
  check.square_batch("factors", factors);
  const int64_t batch = factors.size(0), size = factors.size(1);
  Tensor values = torch::stable::new_empty(factors, {batch, size});
  Tensor vectors = torch::stable::empty_like(factors);
  Tensor sound = torch::stable::new_empty(factors, {batch}, ScalarType::Bool);
  bool* const sounds = static_cast<bool*>(sound.data_ptr());
  for_each(batch, [&](int64_t i) {
    try {
      const auto found = call<2>("aten::linalg_eigh", select(factors, 0, i), std::string("L"));
      put(values, i, found[0]);
      put(vectors, i, found[1]);
      sounds[i] = true;
    } catch (const std::exception&) {
      sounds[i] = false;
    }
  });
  return {values, vectors, sound};
}

std::tuple<Tensor, Tensor> power_step(Tensor factors, Tensor bases, bool sort) {
  const Checks check("power_step");
  check.square_batch("factors", factors);
  const int64_t batch = factors.size(0), size = factors.size(1);
  check.shape("bases", bases, {batch, size, size});
  check.same_dtype("bases", bases, "factors", factors);
  check.contiguous("bases", bases);
  check.device("bases", bases, "factors", factors);
  Tensor stepped = torch::stable::empty_like(bases);
  Tensor orders = torch::stable::new_empty(bases, {sort ? batch : 0, size}, ScalarType::Long);
  if (batch == 0) return {stepped, orders};
  cpu::PowerStepArgs args{};
  args.batch = batch, args.size = size;
  args.dtype = Arguments<Cpu>::dtype_of(bases);
  args.factors = factors.data_ptr(), args.bases = bases.data_ptr();
  args.stepped = stepped.data_ptr();
  args.orders = sort ? static_cast<int64_t*>(orders.data_ptr()) : nullptr;
  cpu::power_step(args, torch_threads());
  return {stepped, orders};
}

}  // namespace
}  // namespace schattor::ops

STABLE_TORCH_LIBRARY_IMPL(schattor, CPU, library) {
  library.impl("eigenpairs", TORCH_BOX(&schattor::ops::eigenpairs));
  library.impl("power_step", TORCH_BOX(&schattor::ops::power_step));
}

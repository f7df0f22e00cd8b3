// CPU key of chain_update, which no other has: a core's cache holds all that a small matrix's step
// reads, while a GPU's kernels wait for each other anyway.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "cpu_key.h"

namespace schattor::ops {
namespace {

using Of = Arguments<Cpu>;
// finite, |M|_q, |direction|_F^2, and the factor that brought the direction into the weights.
using Updated = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Updated chain_update(std::vector<Tensor> params, std::vector<Tensor> grads,
                     std::vector<Tensor> momenta, Tensor momentum, bool ema, bool nesterov,
                     double size, Tensor scratch, std::vector<double> steps, Tensor weights,
                     Tensor powers, bool gram, std::vector<int64_t> restarts, Tensor lr,
                     Tensor factors, Tensor lengths, Tensor corrections, bool frobenius,
                     bool regularized, Tensor decay) {
  const Checks check("chain_update");
  check.wide_batch("scratch", scratch);
  check.require(scratch.size(0) >= 2 && scratch.size(0) % 2 == 0,
                "scratch must hold two matrices a worker, got ", scratch.size(0));
  const int64_t batch = params.size(), rows = scratch.size(1), cols = scratch.size(2);
  check.views("params", params, batch, rows, cols);
  check.views("grads", grads, batch, rows, cols);
  if (!momenta.empty()) check.views("momenta", momenta, batch, rows, cols);
  check.numbers("momentum", momentum, {});
  check.power_of_two("size", size);
  const int64_t depth = check.chain(steps, restarts, Cpu::kMostSteps);
  check.numbers("weights", weights, {batch, depth + 1});
  check.numbers("powers", powers, {batch});
  check.numbers("lr", lr, {});
  check.numbers("factors", factors, {batch});
  check.numbers("lengths", lengths, {batch});
  check.numbers("corrections", corrections, {batch});
  check.numbers("decay", decay, {});

  const auto numbers = [&] { return torch::stable::new_empty(lengths, {batch}); };
  Tensor finite = torch::stable::new_empty(lengths, {batch}, ScalarType::Bool);
  Tensor norms = numbers(), inner = numbers(), dual = numbers(), square = numbers(),
         scale = numbers();
  if (batch == 0) return {finite, dual, square, scale};
  const auto data = [](const Tensor& t) { return static_cast<double*>(t.data_ptr()); };
  const Of::Views param_views = Of::views_of(params), grad_views = Of::views_of(grads),
                  momentum_views = Of::views_of(momenta);

  cpu::ChainUpdateArgs args{};
  args.gather =
      Of::Gathering{grads, momenta, momentum, ema, nesterov, size, scratch, norms, finite}.args(
          batch, grad_views, momentum_views);
  args.chain = Of::Chaining{scratch, steps, weights, powers, gram, restarts}.args(batch);
  args.chain.direction = {nullptr, data(inner), data(square)};
  args.scatter =
      Of::Scattering{params, grads, momenta, scratch, scale, decay, momentum, ema, finite}.args(
          batch, param_views, grad_views, momentum_views);
  args.workers = scratch.size(0) / 2;
  args.scratch = scratch.data_ptr();
  args.lr = Cpu::number(lr);
  args.factors = Of::numbers_of(factors), args.lengths = Of::numbers_of(lengths);
  args.corrections = Of::numbers_of(corrections);
  args.frobenius = frobenius, args.regularized = regularized;
  args.dual = data(dual), args.scale = data(scale);
  cpu::chain_update(args, torch_threads());
  return {finite, dual, square, scale};
}

}  // namespace
}  // namespace schattor::ops

STABLE_TORCH_LIBRARY_IMPL(schattor, CPU, library) {
  library.impl("chain_update", TORCH_BOX(&schattor::ops::chain_update));
}

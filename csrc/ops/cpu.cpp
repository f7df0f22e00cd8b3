// CPU key: checks, then the kernels of csrc/cpu on torch's own thread pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../cpu/kernels.h"
#include "checks.h"

namespace schattor::ops {
namespace {

cpu::Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return cpu::Dtype::kFloat64;
    case ScalarType::BFloat16:
      return cpu::Dtype::kBFloat16;
    case ScalarType::Half:
      return cpu::Dtype::kFloat16;
    default:
      return cpu::Dtype::kFloat32;  // Checks::floating has refused the rest
  }
}

cpu::Parallel torch_threads() {
  cpu::Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(0, count, 1, body);
  };
  return parallel;
}

std::vector<cpu::View> views_of(const std::vector<Tensor>& list) {
  std::vector<cpu::View> views;
  views.reserve(list.size());
  for (const Tensor& t : list) views.push_back({t.data_ptr(), t.stride(0), t.stride(1)});
  return views;
}

const double* numbers_of(const Tensor& t) { return static_cast<const double*>(t.data_ptr()); }

Tensor new_numbers(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Double);
}

void gather_momentum(std::vector<Tensor> grads, std::vector<Tensor> momenta, Tensor momentum,
                     bool ema, bool nesterov, Tensor wide, Tensor norms, Tensor finite) {
  const Checks check("gather_momentum");
  check.wide_batch("wide", wide);
  const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
  check.views("grads", grads, batch, rows, cols);
  if (!momenta.empty()) check.views("momenta", momenta, batch, rows, cols);
  check.numbers("momentum", momentum, {});
  check.numbers("norms", norms, {batch});
  check.shape("finite", finite, {batch});
  check.require(finite.scalar_type() == ScalarType::Bool, "finite must be bool");
  check.contiguous("finite", finite);
  if (batch == 0) return;

  const std::vector<cpu::View> grad_views = views_of(grads), momentum_views = views_of(momenta);
  cpu::GatherArgs args{};
  args.batch = batch, args.rows = rows, args.cols = cols;
  args.grads = grad_views.data();
  args.momenta = momenta.empty() ? nullptr : momentum_views.data();
  args.grad_dtype = dtype_of(grads[0]);
  args.momentum_dtype = momenta.empty() ? args.grad_dtype : dtype_of(momenta[0]);
  args.wide_dtype = dtype_of(wide);
  args.rule = {*numbers_of(momentum), ema, nesterov};
  args.wide = wide.data_ptr();
  args.norms = static_cast<double*>(norms.data_ptr());
  args.finite = static_cast<uint8_t*>(finite.data_ptr());
  cpu::gather_momentum(args, torch_threads());
}

using Directed = std::tuple<Tensor, Tensor, Tensor>;  // direction, inner, square

Directed new_direction(const Tensor& wide) {
  return {torch::stable::empty_like(wide), new_numbers(wide, wide.size(0)),
          new_numbers(wide, wide.size(0))};
}

cpu::Direction direction_of(const Directed& out) {
  return {std::get<0>(out).data_ptr(), static_cast<double*>(std::get<1>(out).data_ptr()),
          static_cast<double*>(std::get<2>(out).data_ptr())};
}

Directed chain_direction(Tensor wide, std::vector<double> steps, Tensor weights, Tensor powers,
                         bool gram, std::vector<int64_t> restarts) {
  const Checks check("chain_direction");
  check.wide_batch("wide", wide);
  check.require(!steps.empty() && steps.size() % 3 == 0,
                "steps must hold three numbers a step, got ", steps.size());
  const int64_t batch = wide.size(0), depth = static_cast<int64_t>(steps.size()) / 3;
  check.numbers("weights", weights, {batch, depth + 1});
  check.numbers("powers", powers, {batch});
  for (size_t i = 0; i < restarts.size(); ++i) {
    const int64_t previous = i == 0 ? 0 : restarts[i - 1];
    check.require(restarts[i] > previous && restarts[i] < depth, "restarts must rise within 1 .. ",
                  depth - 1, ", got ", restarts[i], " at ", i);
  }

  const Directed out = new_direction(wide);
  cpu::ChainArgs args{};
  args.batch = batch, args.rows = wide.size(1), args.cols = wide.size(2);
  args.dtype = dtype_of(wide);
  args.wide = wide.data_ptr();
  args.depth = depth;
  args.steps = steps.data();
  args.weights = numbers_of(weights);
  args.powers = numbers_of(powers);
  args.gram = gram;
  args.restarts = restarts.data();
  args.restart_count = static_cast<int64_t>(restarts.size());
  args.direction = direction_of(out);
  cpu::chain_direction(args, torch_threads());
  return out;
}

Directed squarings_direction(Tensor wide, std::vector<double> coefficients, Tensor powers) {
  const Checks check("squarings_direction");
  check.wide_batch("wide", wide);
  check.require(coefficients.size() >= 3 && coefficients.size() <= 6,
                "coefficients must be 3 to 6, got ", coefficients.size());
  check.numbers("powers", powers, {wide.size(0)});

  const Directed out = new_direction(wide);
  cpu::SquaringsArgs args{};
  args.batch = wide.size(0), args.rows = wide.size(1), args.cols = wide.size(2);
  args.dtype = dtype_of(wide);
  args.wide = wide.data_ptr();
  args.count = static_cast<int64_t>(coefficients.size());
  args.coefficients = coefficients.data();
  args.powers = numbers_of(powers);
  args.direction = direction_of(out);
  cpu::squarings_direction(args, torch_threads());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> partial_svd(Tensor wide, int64_t rank, int64_t iterations,
                                               Tensor start) {
  const Checks check("partial_svd");
  check.wide_batch("wide", wide);
  const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
  check.require(wide.scalar_type() == ScalarType::Double || wide.scalar_type() == ScalarType::Float,
                "wide must be float64 or float32, got ",
                torch::headeronly::toString(wide.scalar_type()));
  check.require(rank >= 1 && rank <= rows, "rank must be in 1 .. ", rows, ", got ", rank);
  check.require(iterations >= 1, "iterations must be at least 1, got ", iterations);
  check.shape("start", start, {batch, cols, rank});
  check.require(start.scalar_type() == wide.scalar_type(), "start must have the dtype of wide");
  check.contiguous("start", start);

  Tensor u = torch::stable::new_empty(wide, {batch, rows, rank});
  Tensor s = torch::stable::new_empty(wide, {batch, rank});
  Tensor v = torch::stable::new_empty(wide, {batch, cols, rank});
  cpu::PartialSvdArgs args{};
  args.batch = batch, args.rows = rows, args.cols = cols;
  args.rank = rank, args.iterations = iterations;
  args.dtype = dtype_of(wide);
  args.wide = wide.data_ptr(), args.start = start.data_ptr();
  args.u = u.data_ptr(), args.s = s.data_ptr(), args.v = v.data_ptr();
  cpu::partial_svd(args, torch_threads());
  return {u, s, v};
}

Tensor inner_products(Tensor x, Tensor y) {
  const Checks check("inner_products");
  check.floating("x", x);
  check.floating("y", y);
  check.require(x.dim() == 3, "x must have shape (batch, rows, cols), got ", x.dim(),
                " dimensions");
  check.shape("y", y, {x.size(0), x.size(1), x.size(2)});
  check.contiguous("x", x);
  check.contiguous("y", y);

  const Tensor inner = new_numbers(x, x.size(0));
  cpu::InnerArgs args{};
  args.batch = x.size(0), args.size = x.size(1) * x.size(2);
  args.x_dtype = dtype_of(x), args.y_dtype = dtype_of(y);
  args.x = x.data_ptr(), args.y = y.data_ptr();
  args.inner = static_cast<double*>(inner.data_ptr());
  cpu::inner_products(args, torch_threads());
  return inner;
}

void scatter_update(std::vector<Tensor> params, std::vector<Tensor> grads,
                    std::vector<Tensor> momenta, Tensor direction, Tensor scale, Tensor decay,
                    Tensor momentum, bool ema, Tensor finite) {
  const Checks check("scatter_update");
  check.wide_batch("direction", direction);
  const int64_t batch = direction.size(0), rows = direction.size(1), cols = direction.size(2);
  check.views("params", params, batch, rows, cols);
  check.views("grads", grads, batch, rows, cols);
  if (!momenta.empty()) check.views("momenta", momenta, batch, rows, cols);
  check.numbers("scale", scale, {batch});
  check.numbers("decay", decay, {});
  check.numbers("momentum", momentum, {});
  check.shape("finite", finite, {batch});
  check.require(finite.scalar_type() == ScalarType::Bool, "finite must be bool");
  check.contiguous("finite", finite);
  if (batch == 0) return;

  const std::vector<cpu::View> param_views = views_of(params), grad_views = views_of(grads),
                               momentum_views = views_of(momenta);
  cpu::ScatterArgs args{};
  args.batch = batch, args.rows = rows, args.cols = cols;
  args.params = param_views.data();
  args.grads = grad_views.data();
  args.momenta = momenta.empty() ? nullptr : momentum_views.data();
  args.direction = direction.data_ptr();
  args.param_dtype = dtype_of(params[0]);
  args.grad_dtype = dtype_of(grads[0]);
  args.momentum_dtype = momenta.empty() ? args.grad_dtype : dtype_of(momenta[0]);
  args.direction_dtype = dtype_of(direction);
  args.rule = {*numbers_of(momentum), ema, false};
  args.scale = numbers_of(scale);
  args.decay = *numbers_of(decay);
  args.finite = static_cast<const uint8_t*>(finite.data_ptr());
  cpu::scatter_update(args, torch_threads());
}

}  // namespace
}  // namespace schattor::ops

STABLE_TORCH_LIBRARY_IMPL(schattor, CPU, library) {
  library.impl("gather_momentum", TORCH_BOX(&schattor::ops::gather_momentum));
  library.impl("chain_direction", TORCH_BOX(&schattor::ops::chain_direction));
  library.impl("squarings_direction", TORCH_BOX(&schattor::ops::squarings_direction));
  library.impl("partial_svd", TORCH_BOX(&schattor::ops::partial_svd));
  library.impl("inner_products", TORCH_BOX(&schattor::ops::inner_products));
  library.impl("scatter_update", TORCH_BOX(&schattor::ops::scatter_update));
}

// The operators, written once for every key: checks, then the arguments of the key's kernels.
//
// A Key names the structs of its kernels (csrc/cpu/kernels.h and csrc/kernels/launch.h agree in the
// names of their fields), how a number reaches them, and how they run: Key::run(args, like), where
// `like` is a tensor on the device of all.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "checks.h"

namespace schattor::ops {

template <typename Key>
class Operators {
 public:
  static void gather_momentum(std::vector<Tensor> grads, std::vector<Tensor> momenta,
                              Tensor momentum, bool ema, bool nesterov, double size, Tensor wide,
                              Tensor norms, Tensor finite) {
    const Checks check("gather_momentum");
    check.wide_batch("wide", wide);
    const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
    check.views("grads", grads, batch, rows, cols);
    if (!momenta.empty()) check.views("momenta", momenta, batch, rows, cols);
    check.numbers("momentum", momentum, {});
    int exponent;
    check.require(std::isfinite(size) && size > 0 && std::frexp(size, &exponent) == 0.5,
                  "size must be a power of two, got ", size);
    check.numbers("norms", norms, {batch});
    check.flags("finite", finite, batch);
    check.devices("grads", grads, "wide", wide);
    check.devices("momenta", momenta, "wide", wide);
    check.device("momentum", momentum, "wide", wide);
    check.device("norms", norms, "wide", wide);
    check.device("finite", finite, "wide", wide);
    if (batch == 0) return;

    const Views grad_views = views_of(grads), momentum_views = views_of(momenta);
    typename Key::GatherArgs args{};
    args.batch = batch, args.rows = rows, args.cols = cols;
    args.grads = grad_views.data();
    args.momenta = momenta.empty() ? nullptr : momentum_views.data();
    args.grad_dtype = dtype_of(grads[0]);
    args.momentum_dtype = momenta.empty() ? args.grad_dtype : dtype_of(momenta[0]);
    args.wide_dtype = dtype_of(wide);
    args.rule = {Key::number(momentum), ema, nesterov};
    args.size = size;
    args.wide = wide.data_ptr();
    args.norms = static_cast<double*>(norms.data_ptr());
    args.finite = static_cast<uint8_t*>(finite.data_ptr());
    Key::run(args, wide);
  }

  using Directed = std::tuple<Tensor, Tensor, Tensor>;  // direction, inner, square

  static Directed chain_direction(Tensor wide, std::vector<double> steps, Tensor weights,
                                  Tensor powers, bool gram, std::vector<int64_t> restarts) {
    const Checks check("chain_direction");
    check.wide_batch("wide", wide);
    check.require(!steps.empty() && steps.size() % 3 == 0,
                  "steps must hold three numbers a step, got ", steps.size());
    const int64_t batch = wide.size(0), depth = static_cast<int64_t>(steps.size()) / 3;
    check.require(depth <= Key::kMostSteps, "steps must be at most ", Key::kMostSteps,
                  " steps here, got ", depth);
    check.numbers("weights", weights, {batch, depth + 1});
    check.numbers("powers", powers, {batch});
    for (size_t i = 0; i < restarts.size(); ++i) {
      const int64_t previous = i == 0 ? 0 : restarts[i - 1];
      check.require(restarts[i] > previous && restarts[i] < depth,
                    "restarts must rise within 1 .. ", depth - 1, ", got ", restarts[i], " at ", i);
    }
    check.device("weights", weights, "wide", wide);
    check.device("powers", powers, "wide", wide);

    const Directed out = new_direction(wide);
    if (batch == 0) return out;
    typename Key::ChainArgs args{};
    args.batch = batch, args.rows = wide.size(1), args.cols = wide.size(2);
    args.dtype = dtype_of(wide);
    args.wide = wide.data_ptr();
    args.depth = depth;
    args.steps = steps.data();
    args.weights = numbers_of(weights);
    args.powers = numbers_of(powers);
    args.gram = gram;
    args.restarts = restarts.data();
    args.restart_count = restarts.size();
    args.direction = direction_of(out);
    Key::run(args, wide);
    return out;
  }

  static Directed squarings_direction(Tensor wide, std::vector<double> coefficients,
                                      Tensor powers) {
    const Checks check("squarings_direction");
    check.wide_batch("wide", wide);
    check.require(coefficients.size() >= 3 && coefficients.size() <= 6,
                  "coefficients must be 3 to 6, got ", coefficients.size());
    check.numbers("powers", powers, {wide.size(0)});
    check.device("powers", powers, "wide", wide);

    const Directed out = new_direction(wide);
    if (wide.size(0) == 0) return out;
    typename Key::SquaringsArgs args{};
    args.batch = wide.size(0), args.rows = wide.size(1), args.cols = wide.size(2);
    args.dtype = dtype_of(wide);
    args.wide = wide.data_ptr();
    args.count = coefficients.size();
    args.coefficients = coefficients.data();
    args.powers = numbers_of(powers);
    args.direction = direction_of(out);
    Key::run(args, wide);
    return out;
  }

  static std::tuple<Tensor, Tensor, Tensor> partial_svd(Tensor wide, int64_t rank,
                                                        int64_t iterations, Tensor start) {
    const Checks check("partial_svd");
    check.wide_batch("wide", wide);
    const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
    const ScalarType type = wide.scalar_type();
    check.require(type == ScalarType::Double || type == ScalarType::Float,
                  "wide must be float64 or float32, got ", torch::headeronly::toString(type));
    check.require(rank >= 1 && rank <= rows, "rank must be in 1 .. ", rows, ", got ", rank);
    check.require(iterations >= 1, "iterations must be at least 1, got ", iterations);
    check.shape("start", start, {batch, cols, rank});
    check.require(start.scalar_type() == type, "start must have the dtype of wide, ",
                  torch::headeronly::toString(type), ", got ",
                  torch::headeronly::toString(start.scalar_type()));
    check.contiguous("start", start);
    check.device("start", start, "wide", wide);

    Tensor u = torch::stable::new_empty(wide, {batch, rows, rank});
    Tensor s = torch::stable::new_empty(wide, {batch, rank});
    Tensor v = torch::stable::new_empty(wide, {batch, cols, rank});
    if (batch == 0) return {u, s, v};
    typename Key::PartialSvdArgs args{};
    args.batch = batch, args.rows = rows, args.cols = cols;
    args.rank = rank, args.iterations = iterations;
    args.dtype = dtype_of(wide);
    args.wide = wide.data_ptr(), args.start = start.data_ptr();
    args.u = u.data_ptr(), args.s = s.data_ptr(), args.v = v.data_ptr();
    Key::run(args, wide);
    return {u, s, v};
  }

  static Tensor inner_products(Tensor x, Tensor y) {
    const Checks check("inner_products");
    check.floating("x", x);
    check.floating("y", y);
    check.require(x.dim() == 3, "x must have shape (batch, rows, cols), got ", x.dim(),
                  " dimensions");
    check.shape("y", y, {x.size(0), x.size(1), x.size(2)});
    check.contiguous("x", x);
    check.contiguous("y", y);
    check.device("y", y, "x", x);

    const Tensor inner = new_numbers(x, x.size(0));
    if (x.size(0) == 0) return inner;
    typename Key::InnerArgs args{};
    args.batch = x.size(0), args.size = x.size(1) * x.size(2);
    args.x_dtype = dtype_of(x), args.y_dtype = dtype_of(y);
    args.x = x.data_ptr(), args.y = y.data_ptr();
    args.inner = static_cast<double*>(inner.data_ptr());
    Key::run(args, x);
    return inner;
  }

  static void scatter_update(std::vector<Tensor> params, std::vector<Tensor> grads,
                             std::vector<Tensor> momenta, Tensor direction, Tensor scale,
                             Tensor decay, Tensor momentum, bool ema, Tensor finite) {
    const Checks check("scatter_update");
    check.wide_batch("direction", direction);
    const int64_t batch = direction.size(0), rows = direction.size(1), cols = direction.size(2);
    check.views("params", params, batch, rows, cols);
    check.views("grads", grads, batch, rows, cols);
    if (!momenta.empty()) check.views("momenta", momenta, batch, rows, cols);
    check.numbers("scale", scale, {batch});
    check.numbers("decay", decay, {});
    check.numbers("momentum", momentum, {});
    check.flags("finite", finite, batch);
    check.devices("params", params, "direction", direction);
    check.devices("grads", grads, "direction", direction);
    check.devices("momenta", momenta, "direction", direction);
    check.device("scale", scale, "direction", direction);
    check.device("decay", decay, "direction", direction);
    check.device("momentum", momentum, "direction", direction);
    check.device("finite", finite, "direction", direction);
    if (batch == 0) return;

    const Views param_views = views_of(params), grad_views = views_of(grads),
                momentum_views = views_of(momenta);
    typename Key::ScatterArgs args{};
    args.batch = batch, args.rows = rows, args.cols = cols;
    args.params = param_views.data();
    args.grads = grad_views.data();
    args.momenta = momenta.empty() ? nullptr : momentum_views.data();
    args.direction = direction.data_ptr();
    args.param_dtype = dtype_of(params[0]);
    args.grad_dtype = dtype_of(grads[0]);
    args.momentum_dtype = momenta.empty() ? args.grad_dtype : dtype_of(momenta[0]);
    args.direction_dtype = dtype_of(direction);
    args.rule = {Key::number(momentum), ema, false};
    args.scale = numbers_of(scale);
    args.decay = Key::number(decay);
    args.finite = static_cast<const uint8_t*>(finite.data_ptr());
    Key::run(args, direction);
  }

  // Every operator of schemas.cpp, for the dispatch key of `library`.
  template <typename Library>
  static void add_to(Library& library) {
    library.impl("gather_momentum", TORCH_BOX(&Operators::gather_momentum));
    library.impl("chain_direction", TORCH_BOX(&Operators::chain_direction));
    library.impl("squarings_direction", TORCH_BOX(&Operators::squarings_direction));
    library.impl("partial_svd", TORCH_BOX(&Operators::partial_svd));
    library.impl("inner_products", TORCH_BOX(&Operators::inner_products));
    library.impl("scatter_update", TORCH_BOX(&Operators::scatter_update));
  }

 private:
  using Dtype = typename Key::Dtype;
  using Views = std::vector<typename Key::View>;

  static Dtype dtype_of(const Tensor& t) {
    switch (t.scalar_type()) {
      case ScalarType::Double:
        return Dtype::kFloat64;
      case ScalarType::BFloat16:
        return Dtype::kBFloat16;
      case ScalarType::Half:
        return Dtype::kFloat16;
      default:
        return Dtype::kFloat32;  // Checks::floating has refused the rest
    }
  }

  static Views views_of(const std::vector<Tensor>& list) {
    Views views;
    views.reserve(list.size());
    for (const Tensor& t : list) views.push_back({t.data_ptr(), t.stride(0), t.stride(1)});
    return views;
  }

  static const double* numbers_of(const Tensor& t) {
    return static_cast<const double*>(t.data_ptr());
  }

  static Tensor new_numbers(const Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, {count}, ScalarType::Double);
  }

  static Directed new_direction(const Tensor& wide) {
    return {torch::stable::empty_like(wide), new_numbers(wide, wide.size(0)),
            new_numbers(wide, wide.size(0))};
  }

  static typename Key::Direction direction_of(const Directed& out) {
    return {std::get<0>(out).data_ptr(), static_cast<double*>(std::get<1>(out).data_ptr()),
            static_cast<double*>(std::get<2>(out).data_ptr())};
  }
};

}  // namespace schattor::ops

// Tensors as the arguments of a key's kernels, and what operators that differ by second moments
// share.
#pragma once

#include <cstdint>
#include <vector>

#include "checks.h"

namespace schattor::ops {

template <typename Key>
struct Arguments {
  using Dtype = typename Key::Dtype;
  using Views = std::vector<typename Key::View>;

  static bool is_double(const std::vector<Tensor>& list) {
    return !list.empty() && list[0].scalar_type() == ScalarType::Double;
  }

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

  // What the two gathering operators share.
  struct Gathering {
    const std::vector<Tensor>&grads, &momenta;
    const Tensor& momentum;
    bool ema, nesterov;
    double size;
    const Tensor &wide, &norms, &finite;

    void check(const Checks& check) const {
      check.wide_batch("wide", wide);
      const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
      check.views("grads", grads, batch, rows, cols);
      if (!momenta.empty()) check.views("momenta", momenta, batch, rows, cols);
      check.numbers("momentum", momentum, {});
      check.power_of_two("size", size);
      check.numbers("norms", norms, {batch});
      check.flags("finite", finite, batch);
      check.devices("grads", grads, "wide", wide);
      check.devices("momenta", momenta, "wide", wide);
      check.device("momentum", momentum, "wide", wide);
      check.device("norms", norms, "wide", wide);
      check.device("finite", finite, "wide", wide);
    }

    // Of a batch of matrices like those of `wide`; the views live as long as the arguments.
    typename Key::GatherArgs args(int64_t batch, const Views& grad_views,
                                  const Views& momentum_views) const {
      typename Key::GatherArgs args{};
      args.batch = batch, args.rows = wide.size(1), args.cols = wide.size(2);
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
      return args;
    }

    void run(const typename Key::SecondMoments& second) const {
      const Views grad_views = views_of(grads), momentum_views = views_of(momenta);
      typename Key::GatherArgs args = this->args(wide.size(0), grad_views, momentum_views);
      args.second = second;
      Key::run(args, wide);
    }
  };

  // A chain on matrices like those of `wide`, of which dtype and shape alone are looked at.
  struct Chaining {
    const Tensor& wide;
    const std::vector<double>& steps;
    const Tensor &weights, &powers;
    bool gram;
    const std::vector<int64_t>& restarts;

    typename Key::ChainArgs args(int64_t batch) const {
      typename Key::ChainArgs args{};
      args.batch = batch, args.rows = wide.size(1), args.cols = wide.size(2);
      args.dtype = dtype_of(wide);
      args.depth = static_cast<int64_t>(steps.size()) / 3;
      args.steps = steps.data();
      args.weights = numbers_of(weights);
      args.powers = numbers_of(powers);
      args.gram = gram;
      args.restarts = restarts.data();
      args.restart_count = restarts.size();
      return args;
    }
  };

  // What the two scattering operators share.
  struct Scattering {
    const std::vector<Tensor>&params, &grads, &momenta;
    const Tensor &direction, &scale, &decay, &momentum;
    bool ema;
    const Tensor& finite;

    void check(const Checks& check) const {
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
    }

    // Of a batch of matrices like those of `direction`; the views live as long as the arguments.
    typename Key::ScatterArgs args(int64_t batch, const Views& param_views, const Views& grad_views,
                                   const Views& momentum_views) const {
      typename Key::ScatterArgs args{};
      args.batch = batch, args.rows = direction.size(1), args.cols = direction.size(2);
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
      return args;
    }

    void run(const std::vector<Tensor>& squares, const Tensor* beta) const {
      const Views param_views = views_of(params), grad_views = views_of(grads),
                  momentum_views = views_of(momenta), square_views = views_of(squares);
      const int64_t batch = direction.size(0);
      typename Key::ScatterArgs args = this->args(batch, param_views, grad_views, momentum_views);
      if (!squares.empty()) {
        args.squares = square_views.data();
        args.square_dtype = dtype_of(squares[0]);
        args.beta = Key::number(*beta);
      }
      Key::run(args, direction);
    }
  };
};

}  // namespace schattor::ops

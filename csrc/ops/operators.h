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

#include "arguments.h"
#include "checks.h"

namespace schattor::ops {

template <typename Key>
class Operators : Arguments<Key> {
 public:
  static void gather_momentum(std::vector<Tensor> grads, std::vector<Tensor> momenta,
                              Tensor momentum, bool ema, bool nesterov, double size, Tensor wide,
                              Tensor norms, Tensor finite) {
    const Checks check("gather_momentum");
    const Gathering gathering{grads, momenta, momentum, ema, nesterov, size, wide, norms, finite};
    gathering.check(check);
    if (wide.size(0) > 0) gathering.run({});
  }

  static void gather_weighted(std::vector<Tensor> grads, std::vector<Tensor> momenta,
                              std::vector<Tensor> squares, Tensor momentum, bool ema, bool nesterov,
                              Tensor beta, Tensor corrections, Tensor eps, double root,
                              Tensor exponent, double size, Tensor weights, Tensor wide,
                              Tensor norms, Tensor finite) {
    const Checks check("gather_weighted");
    const Gathering gathering{grads, momenta, momentum, ema, nesterov, size, wide, norms, finite};
    gathering.check(check);
    const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
    if (!squares.empty()) check.views("squares", squares, batch, rows, cols);
    check.numbers("beta", beta, {});
    check.numbers("corrections", corrections, {batch});
    check.numbers("eps", eps, {batch});
    check.require(root == 1 || root == 0.5, "root must be 1 or 0.5, got ", root);
    check.numbers("exponent", exponent, {batch});
    check.shape("weights", weights, {batch, rows, cols});
    check.contiguous("weights", weights);
    const bool in_double = is_double(grads) || is_double(momenta) || is_double(squares) ||
                           wide.scalar_type() == ScalarType::Double;
    check.require(weights.scalar_type() == (in_double ? ScalarType::Double : ScalarType::Float),
                  "weights must be float64 where grads, momenta, squares or wide are, and float32 "
                  "elsewhere; got ",
                  torch::headeronly::toString(weights.scalar_type()), " where they must be ",
                  in_double ? "float64" : "float32");
    check.devices("squares", squares, "wide", wide);
    check.device("beta", beta, "wide", wide);
    check.device("corrections", corrections, "wide", wide);
    check.device("eps", eps, "wide", wide);
    check.device("exponent", exponent, "wide", wide);
    check.device("weights", weights, "wide", wide);
    if (batch == 0) return;

    const Views square_views = views_of(squares);
    typename Key::SecondMoments second{};
    second.squares = squares.empty() ? nullptr : square_views.data();
    second.dtype = squares.empty() ? dtype_of(weights) : dtype_of(squares[0]);
    second.beta = Key::number(beta);
    second.corrections = numbers_of(corrections);
    second.eps = numbers_of(eps);
    second.square_root = root == 0.5;
    second.exponent = numbers_of(exponent);
    second.weights = weights.data_ptr();
    gathering.run(second);
  }

  static Tensor weigh(Tensor weights, Tensor direction) {
    const Checks check("weigh");
    check.precise("weights", weights);
    check.require(weights.dim() == 3, "weights must have shape (batch, rows, cols), got ",
                  weights.dim(), " dimensions");
    check.contiguous("weights", weights);
    check.floating("direction", direction);
    check.shape("direction", direction, {weights.size(0), weights.size(1), weights.size(2)});
    check.contiguous("direction", direction);
    check.device("direction", direction, "weights", weights);

    const Tensor square = new_numbers(weights, weights.size(0));
    if (weights.size(0) == 0) return square;
    typename Key::WeighArgs args{};
    args.batch = weights.size(0), args.size = weights.size(1) * weights.size(2);
    args.weights_dtype = dtype_of(weights), args.direction_dtype = dtype_of(direction);
    args.weights = weights.data_ptr();
    args.direction = direction.data_ptr();
    args.square = static_cast<double*>(square.data_ptr());
    Key::run(args, weights);
    return square;
  }

  static void average_grams(Tensor factors, Tensor wide, bool right, Tensor decay, Tensor share) {
    const Checks check("average_grams");
    check.wide_batch("wide", wide);
    check.precise("wide", wide);
    const int64_t batch = wide.size(0), rows = wide.size(1), cols = wide.size(2);
    const int64_t side = right ? cols : rows;
    check.shape("factors", factors, {batch, side, side});
    check.same_dtype("factors", factors, "wide", wide);
    check.contiguous("factors", factors);
    check.numbers("decay", decay, {batch});
    check.numbers("share", share, {batch});
    check.device("factors", factors, "wide", wide);
    check.device("decay", decay, "wide", wide);
    check.device("share", share, "wide", wide);
    if (batch == 0) return;

    typename Key::AverageGramsArgs args{};
    args.batch = batch, args.rows = rows, args.cols = cols;
    args.right = right;
    args.dtype = dtype_of(wide);
    args.factors = factors.data_ptr();
    args.wide = wide.data_ptr();
    args.decay = numbers_of(decay);
    args.share = numbers_of(share);
    Key::run(args, wide);
  }

  using Directed = std::tuple<Tensor, Tensor, Tensor>;  // direction, inner, square

  static Directed chain_direction(Tensor wide, std::vector<double> steps, Tensor weights,
                                  Tensor powers, bool gram, std::vector<int64_t> restarts) {
    const Checks check("chain_direction");
    check.wide_batch("wide", wide);
    const int64_t batch = wide.size(0), depth = check.chain(steps, restarts, Key::kMostSteps);
    check.numbers("weights", weights, {batch, depth + 1});
    check.numbers("powers", powers, {batch});
    check.device("weights", weights, "wide", wide);
    check.device("powers", powers, "wide", wide);

    const Directed out = new_direction(wide);
    if (batch == 0) return out;
    const Chaining chaining{wide, steps, weights, powers, gram, restarts};
    typename Key::ChainArgs args = chaining.args(batch);
    args.wide = wide.data_ptr();
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
    check.precise("wide", wide);
    check.require(rank >= 1 && rank <= rows, "rank must be in 1 .. ", rows, ", got ", rank);
    check.require(iterations >= 1, "iterations must be at least 1, got ", iterations);
    check.shape("start", start, {batch, cols, rank});
    check.same_dtype("start", start, "wide", wide);
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
    const Scattering scattering{params, grads,    momenta, direction, scale,
                                decay,  momentum, ema,     finite};
    scattering.check(check);
    if (direction.size(0) > 0) scattering.run({}, nullptr);
  }

  static void scatter_moments(std::vector<Tensor> params, std::vector<Tensor> grads,
                              std::vector<Tensor> momenta, std::vector<Tensor> squares,
                              Tensor direction, Tensor scale, Tensor decay, Tensor momentum,
                              Tensor beta, bool ema, Tensor finite) {
    const Checks check("scatter_moments");
    const Scattering scattering{params, grads,    momenta, direction, scale,
                                decay,  momentum, ema,     finite};
    scattering.check(check);
    const int64_t batch = direction.size(0);
    if (!squares.empty()) {
      check.views("squares", squares, batch, direction.size(1), direction.size(2));
    }
    check.numbers("beta", beta, {});
    check.devices("squares", squares, "direction", direction);
    check.device("beta", beta, "direction", direction);
    if (batch > 0) scattering.run(squares, &beta);
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
    library.impl("gather_weighted", TORCH_BOX(&Operators::gather_weighted));
    library.impl("weigh", TORCH_BOX(&Operators::weigh));
    library.impl("scatter_moments", TORCH_BOX(&Operators::scatter_moments));
    library.impl("average_grams", TORCH_BOX(&Operators::average_grams));
  }

 private:
  using Arguments = ops::Arguments<Key>;
  using Gathering = typename Arguments::Gathering;
  using Chaining = typename Arguments::Chaining;
  using Scattering = typename Arguments::Scattering;
  using Views = typename Arguments::Views;
  using Arguments::dtype_of, Arguments::is_double, Arguments::numbers_of, Arguments::views_of;

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

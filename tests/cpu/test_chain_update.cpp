// chain_update against the three kernels that it calls, of a whole batch: not a bit may differ, but
// where it leaves tall matrices as they lie, and sums in another order.
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "lists.h"

namespace {

using namespace schattor::cpu;
using lists::Layout;
using lists::List;

constexpr double kSteps[] = {3.0, -3.2, 1.2, 2.4, -2.6, 1.1, 1.9, -1.3, 0.4};
constexpr int64_t kDepth = 3;
constexpr int64_t kRestarts[] = {1, 2};

struct Case {
  int64_t batch, rows, cols;
  Dtype param = Dtype::kFloat32, grad = Dtype::kFloat32, momentum = Dtype::kFloat32,
        chain = Dtype::kFloat32;
  Layout layout = Layout::kContiguous;
  MomentumRule rule{0.9, true, true};
  bool has_momentum = true, gram = false, frobenius = true, regularized = false;
  bool mixed = false;  // gradients lie the other way
  int64_t restarts = 0;

  bool stays_tall() const {
    ChainArgs args{};
    args.rows = rows, args.cols = cols, args.dtype = chain, args.gram = gram;
    args.restart_count = restarts;
    const bool lies = layout == Layout::kTransposed || layout == Layout::kColumnGaps;
    return rows > 1 && lies && !mixed && takes_tall(args);
  }
};

// Everything that a step reads and writes.
struct State {
  explicit State(const Case& c)
      : params(c.batch, c.rows, c.cols, c.param, c.layout),
        grads(c.batch, c.rows, c.cols, c.grad, c.mixed ? Layout::kContiguous : c.layout),
        momenta(c.batch, c.rows, c.cols, c.momentum, c.layout),
        norms(c.batch, -1),
        inner(c.batch, -1),
        square(c.batch, -1),
        dual(c.batch, -1),
        scale(c.batch, -1),
        finite(c.batch, 7) {
    params.fill(1);
    grads.fill(2);
    momenta.fill(3);
    for (int64_t i = 0; i < c.batch; ++i) {
      powers.push_back(0.25 * (i % 3));
      lengths.push_back(0.01 * (i + 1));
      factors.push_back(1.5 - 0.1 * i);
      corrections.push_back(0.5 + 0.05 * i);
      for (int64_t k = 0; k <= kDepth; ++k) weights.push_back(k == kDepth ? 0.8 : 0.1 * (i % 3));
    }
    // The second matrix is zero, the third has an entry that is not finite.
    if (c.batch > 1) {
      clear(grads, 1);
      clear(momenta, 1);
    }
    if (c.batch > 2) grads.set(2, c.rows - 1, 0, std::numeric_limits<double>::infinity());
  }

  static void clear(List& list, int64_t i) {
    for (int64_t k = 0; k < list.storage[i].count(); ++k) list.storage[i].set(k, 0);
  }

  GatherArgs gather(const Case& c) {
    GatherArgs args{};
    args.batch = c.batch, args.rows = c.rows, args.cols = c.cols;
    args.grads = grads.views.data();
    args.momenta = c.has_momentum ? momenta.views.data() : nullptr;
    args.grad_dtype = c.grad, args.momentum_dtype = c.momentum, args.wide_dtype = c.chain;
    args.rule = c.rule;
    args.size = 2;
    args.norms = norms.data(), args.finite = finite.data();
    return args;
  }

  ChainArgs chain(const Case& c) {
    ChainArgs args{};
    args.batch = c.batch, args.rows = c.rows, args.cols = c.cols;
    args.dtype = c.chain;
    args.depth = kDepth, args.steps = kSteps;
    args.weights = weights.data(), args.powers = powers.data();
    args.gram = c.gram;
    args.restarts = kRestarts, args.restart_count = c.restarts;
    args.direction = {nullptr, inner.data(), square.data()};
    return args;
  }

  ScatterArgs scatter(const Case& c) {
    ScatterArgs args{};
    args.batch = c.batch, args.rows = c.rows, args.cols = c.cols;
    args.params = params.views.data(), args.grads = grads.views.data();
    args.momenta = c.has_momentum ? momenta.views.data() : nullptr;
    args.param_dtype = c.param, args.grad_dtype = c.grad, args.momentum_dtype = c.momentum;
    args.direction_dtype = c.chain;
    args.rule = {c.rule.momentum, c.rule.ema, false};
    args.decay = 0.99;
    args.finite = finite.data();
    return args;
  }

  void update(const Case& c, int64_t workers, int threads) {
    lists::Elements scratch(c.chain, 2 * workers * c.rows * c.cols);
    ChainUpdateArgs args{};
    args.gather = gather(c), args.chain = chain(c), args.scatter = scatter(c);
    args.workers = workers, args.scratch = scratch.data();
    args.lr = 0.5, args.factors = factors.data(), args.lengths = lengths.data();
    args.corrections = corrections.data();
    args.frobenius = c.frobenius, args.regularized = c.regularized;
    args.dual = dual.data(), args.scale = scale.data();
    chain_update(args, lists::on_threads(threads));
  }

  void one_after_the_other(const Case& c) {
    const Parallel parallel = lists::on_threads(2);
    lists::Elements wide(c.chain, c.batch * c.rows * c.cols), direction = wide;
    GatherArgs first = gather(c);
    first.wide = wide.data();
    gather_momentum(first, parallel);
    ChainArgs second = chain(c);
    second.wide = wide.data(), second.direction.data = direction.data();
    chain_direction(second, parallel);
    for (int64_t i = 0; i < c.batch; ++i) {
      const double root = std::pow(std::max(inner[i], 0.0), 1 / (1 + powers[i]));
      dual[i] = norms[i] / corrections[i] * root;
      const double size = c.frobenius ? std::sqrt(square[i]) : inner[i] / root;
      const double length = 0.5 * factors[i] * lengths[i] * (c.regularized ? dual[i] : 1);
      scale[i] = inner[i] > 0 ? length / size : 0;
    }
    ScatterArgs third = scatter(c);
    third.direction = direction.data(), third.scale = scale.data();
    scatter_update(third, parallel);
  }

  List params, grads, momenta;
  std::vector<double> norms, inner, square, dual, scale, powers, lengths, factors, corrections,
      weights;
  std::vector<uint8_t> finite;
};

bool close(const std::vector<double>& x, const std::vector<double>& y, double unit = 1e-14) {
  bool all = true;
  for (size_t i = 0; i < x.size(); ++i) all &= std::fabs(x[i] - y[i]) <= unit * std::fabs(y[i]);
  return all;
}

// Scales may differ in their last bit, so that weights are compared where they do not.
void check_case(const Case& c) {
  State expected(c);
  expected.one_after_the_other(c);
  State first(c);
  first.update(c, 1, 1);
  CHECK(close(first.norms, expected.norms) && first.finite == expected.finite, "gathered");
  if (c.stays_tall()) {
    const double unit = c.chain == Dtype::kFloat64 ? 1e-12 : 1e-5;
    for (const auto& [x, y] : {std::pair(&first.inner, &expected.inner),
                               {&first.square, &expected.square},
                               {&first.dual, &expected.dual},
                               {&first.scale, &expected.scale}}) {
      CHECK(close(*x, *y, unit), "%ld x %ld as it lies", long(c.rows), long(c.cols));
    }
  } else {
    CHECK(first.norms == expected.norms, "gathered");
    CHECK(first.inner == expected.inner && first.square == expected.square, "directed");
    CHECK(close(first.dual, expected.dual) && close(first.scale, expected.scale), "scales");
  }
  CHECK(first.momenta.bytes() == expected.momenta.bytes(), "moments");
  const double unit = c.param == Dtype::kFloat64 ? 1e-14 : c.param == Dtype::kFloat32 ? 1e-6 : 1e-2;
  double error = 0;
  for (int64_t i = 0; i < c.batch; ++i) {
    for (int64_t k = 0; k < c.rows * c.cols; ++k) {
      const int64_t r = k / c.cols, col = k % c.cols;
      error =
          std::max(error, std::fabs(first.params.at(i, r, col) - expected.params.at(i, r, col)));
    }
  }
  CHECK(error <= unit, "%ld x %ld: weights are off by %g", long(c.rows), long(c.cols), error);
  const State before(c);
  if (c.batch > 2) {
    CHECK(first.params.bytes()[2] == before.params.bytes()[2] && first.finite[2] == 0,
          "what is not finite does not move");
  }
  if (c.batch > 1) CHECK(first.scale[1] == 0 && first.dual[1] == 0, "a zero matrix");
  for (const auto& [workers, threads] : {std::pair<int, int>{2, 2}, {3, 3}, {5, 2}}) {
    State split(c);
    split.update(c, workers, threads);
    CHECK(split.params.bytes() == first.params.bytes(), "%d workers", workers);
    CHECK(split.momenta.bytes() == first.momenta.bytes(), "%d workers", workers);
    CHECK(split.dual == first.dual && split.scale == first.scale, "%d workers", workers);
  }
}

void shapes_and_layouts() {
  for (const int64_t batch : {1, 2, 3, 7}) {
    for (const int64_t rows : {1, 2, 17, 33}) {
      for (const int64_t cols : {33, 40, 700}) {
        for (const Layout layout : lists::kLayouts) {
          Case c{batch, rows, cols};
          c.layout = layout;
          c.gram = cols == 700;
          check_case(c);
        }
      }
    }
  }
}

// Some that lie as one strip of vectors does, at every level.
void tall() {
  int stay = 0;
  for (const int64_t rows : {2, 8, 12, 16, 32, 48, 64}) {
    for (const int64_t cols : {64, 65, 192}) {
      for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16}) {
        Case c{6, rows, cols, dtype, dtype, dtype, dtype};
        c.gram = true;
        c.layout = cols == 192 ? Layout::kColumnGaps : Layout::kTransposed;
        check_case(c);
        stay += c.stays_tall();
        c.mixed = true;
        check_case(c);
        for (const int64_t restarts : {1, 2}) {
          c.mixed = false, c.restarts = restarts;
          check_case(c);
        }
      }
    }
  }
  CHECK(stay > 0, "none was left as it lies");
}

void dtypes_and_rules() {
  for (const Dtype param : lists::kDtypes) {
    for (const Dtype grad : lists::kDtypes) {
      for (const Dtype chain : lists::kDtypes) {
        Case c{4, 9, 20, param, grad, grad, chain};
        c.layout = Layout::kTransposed;
        check_case(c);
      }
    }
  }
  for (int bits = 0; bits < 32; ++bits) {
    Case c{4, 9, 20};
    c.rule = {0.75, (bits & 1) != 0, (bits & 2) != 0};
    c.frobenius = (bits & 4) != 0, c.regularized = (bits & 8) != 0;
    c.has_momentum = (bits & 16) != 0;
    check_case(c);
  }
}

}  // namespace

int main() {
  lists::at_each_level([] {
    shapes_and_layouts();
    tall();
    dtypes_and_rules();
  });
  return check::finish();
}

// scatter_update against its formula in double, for every instruction set, dtype and layout.
#include <cmath>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "lists.h"

namespace {

using namespace schattor::cpu;
using lists::Layout;
using lists::List;

struct Case {
  int64_t batch, rows, cols;
  Dtype param, grad, momentum, direction;
  Layout layout, momentum_layout;
  MomentumRule rule;
  double decay, scale;
  bool has_momentum;
  bool has_squares = false;
  Dtype square = Dtype::kFloat32;
  double beta = 0.98;
};

// Everything that an update reads and writes.
struct State {
  explicit State(const Case& c)
      : params(c.batch, c.rows, c.cols, c.param, c.layout),
        grads(c.batch, c.rows, c.cols, c.grad, c.layout),
        momenta(c.batch, c.rows, c.cols, c.momentum, c.momentum_layout),
        squares(c.batch, c.rows, c.cols, c.square, c.momentum_layout),
        direction(1, c.batch * c.rows, c.cols, c.direction, Layout::kContiguous),
        scale(c.batch),
        finite(c.batch, 1) {
    params.fill(1);
    grads.fill(2);
    momenta.fill(3);
    squares.fill(5);
    direction.fill(4);
    for (int64_t i = 0; i < c.batch; ++i) scale[i] = c.scale * (i + 1);
  }

  void update(const Case& c, int threads) {
    scatter_update(
        {c.batch, c.rows, c.cols, params.views.data(), grads.views.data(),
         c.has_momentum ? momenta.views.data() : nullptr, direction.storage[0].data(), c.param,
         c.grad, c.momentum, c.direction, c.rule, scale.data(), c.decay, finite.data(),
         c.has_squares ? squares.views.data() : nullptr, c.square, c.beta},
        lists::on_threads(threads));
  }

  List params, grads, momenta, squares, direction;
  std::vector<double> scale;
  std::vector<uint8_t> finite;
};

bool in_double(const Case& c) {
  const Dtype f64 = Dtype::kFloat64;
  return c.param == f64 || c.direction == f64 || (c.has_momentum && c.momentum == f64) ||
         (c.has_squares && c.square == f64) || ((c.has_momentum || c.has_squares) && c.grad == f64);
}

// a x + b y: two coefficients, two products and a sum at the compute type, then one rounding. A
// square y may have been rounded itself.
bool close(const Case& c, double got, double a, double x, double b, double y, Dtype dtype) {
  const double unit = in_double(c) ? 0x1p-53 : 0x1p-24;
  const double truth = a * x + b * y, size = std::fabs(a * x) + std::fabs(b * y);
  const lists::Format format = lists::format_of(dtype);
  const double rounded = std::max(format.epsilon() * std::fabs(truth), format.least()) / 2;
  return CHECK(std::fabs(got - truth) <= 4 * unit * size + rounded,
               "%ld x %ld, dtypes %d %d %d %d: %.9g, not %.9g", long(c.rows), long(c.cols),
               int(c.param), int(c.grad), int(c.momentum), int(c.direction), got, truth);
}

// Gaps between the elements of a list keep their bytes.
void check_gaps(const List& before, const List& after, const char* what) {
  for (size_t i = 0; i < before.storage.size(); ++i) {
    std::vector<bool> inside(before.storage[i].count());
    for (int64_t k = 0; k < before.rows * before.cols; ++k) {
      inside[k / before.cols * before.row_stride + k % before.cols * before.col_stride] = true;
    }
    bool kept = true;
    for (size_t k = 0; k < inside.size(); ++k) {
      kept &= inside[k] || before.storage[i][k] == after.storage[i][k];
    }
    CHECK(kept, "gaps of %s", what);
  }
}

void check_case(const Case& c) {
  const State before(c);
  State after(c), split(c);
  after.update(c, 1);
  split.update(c, 3);
  CHECK(after.params.bytes() == split.params.bytes(), "3 threads");
  CHECK(after.momenta.bytes() == split.momenta.bytes(), "3 threads");
  CHECK(after.squares.bytes() == split.squares.bytes(), "3 threads");
  CHECK(after.grads.bytes() == before.grads.bytes(), "gradients are only read");
  CHECK(after.direction.bytes() == before.direction.bytes(), "directions are only read");
  check_gaps(before.params, after.params, "params");
  check_gaps(before.momenta, after.momenta, "momenta");
  check_gaps(before.squares, after.squares, "squares");
  const double weight = c.rule.ema ? 1 - c.rule.momentum : 1;
  for (int64_t i = 0; i < c.batch; ++i) {
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t col = 0; col < c.cols; ++col) {
        const double direction = before.direction.at(0, i * c.rows + r, col);
        if (!close(c, after.params.at(i, r, col), c.decay, before.params.at(i, r, col),
                   -before.scale[i], direction, c.param)) {
          return;
        }
        const double m = before.momenta.at(i, r, col);
        if (!c.has_momentum) {
          CHECK(after.momenta.at(i, r, col) == m, "no momentum is written");
        } else if (!close(c, after.momenta.at(i, r, col), c.rule.momentum, m, weight,
                          before.grads.at(i, r, col), c.momentum)) {
          return;
        }
        const double v = before.squares.at(i, r, col), g = before.grads.at(i, r, col);
        if (!c.has_squares) {
          CHECK(after.squares.at(i, r, col) == v, "no second moments are written");
        } else if (!close(c, after.squares.at(i, r, col), c.beta, v, c.beta == 1 ? 1 : 1 - c.beta,
                          g * g, c.square)) {
          return;
        }
      }
    }
  }
}

Case plain(int64_t batch, int64_t rows, int64_t cols) {
  const Dtype f32 = Dtype::kFloat32;
  return {batch,
          rows,
          cols,
          f32,
          f32,
          f32,
          f32,
          Layout::kContiguous,
          Layout::kContiguous,
          {0.9, true, false},
          0.99,
          0.02,
          true};
}

void shapes_and_layouts() {
  const int64_t sizes[] = {0, 1, 2, 3, 15, 16, 17, 31, 33, 100};
  for (const int64_t rows : sizes) {
    for (const int64_t cols : sizes) {
      for (const Layout layout : lists::kLayouts) {
        if (rows > cols) continue;
        Case c = plain(2, rows, cols);
        c.layout = c.momentum_layout = layout;
        check_case(c);
        c.momentum_layout = Layout::kTransposed;
        if (rows == 17 || rows == 33) check_case(c);
      }
    }
  }
  for (const Layout layout : {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps}) {
    Case c = plain(2, 250, 601);
    c.layout = layout;
    check_case(c);
  }
}

void dtypes_and_rules() {
  for (const Dtype param : lists::kDtypes) {
    for (const Dtype grad : lists::kDtypes) {
      for (const Dtype momentum : lists::kDtypes) {
        for (const Dtype direction : lists::kDtypes) {
          Case c = plain(2, 15, 33);
          c.param = param, c.grad = grad, c.momentum = momentum, c.direction = direction;
          c.layout = c.momentum_layout = Layout::kTransposed;
          check_case(c);
          c.layout = c.momentum_layout = Layout::kContiguous;
          check_case(c);
        }
      }
    }
  }
  for (const bool ema : {false, true}) {
    for (const bool nesterov : {false, true}) {
      Case c = plain(2, 3, 16);
      c.rule = {0.75, ema, nesterov};
      check_case(c);
      c.has_momentum = false;
      check_case(c);
    }
  }
}

void second_moments() {
  for (const Dtype grad : lists::kDtypes) {
    for (const Dtype square : lists::kDtypes) {
      for (const Layout layout : lists::kLayouts) {
        Case c = plain(2, 15, 33);
        c.grad = grad, c.square = square, c.momentum_layout = layout;
        c.has_squares = true;
        check_case(c);
        c.has_momentum = false, c.layout = Layout::kTransposed;
        check_case(c);
        c.beta = 1;
        check_case(c);
      }
    }
  }
  Case c = plain(2, 250, 601);
  c.has_squares = true;
  check_case(c);
}

// Signed zeros, subnormals and NaN in the weights included.
void no_step_keeps_every_bit() {
  for (const Dtype dtype : lists::kDtypes) {
    Case c = plain(2, 16, 17);
    c.param = dtype, c.decay = 1, c.scale = 0;
    State state(c);
    state.params.set(0, 0, 0, -0.0);
    state.params.set(0, 0, 1, lists::format_of(dtype).least());
    state.params.set(1, 2, 3, NAN);
    state.direction.set(0, 0, 0, -1);
    state.direction.set(0, 0, 1, NAN);
    const auto before = state.params.bytes();
    state.update(c, 1);
    CHECK(state.params.bytes() == before, "dtype %d", int(dtype));
  }
}

void not_finite_keeps_everything() {
  for (const Layout layout : lists::kLayouts) {
    Case c = plain(3, 17, 31);
    c.has_squares = true;
    c.layout = c.momentum_layout = layout;
    State state(c), whole(c);
    const State before(c);
    state.finite[1] = 0;
    state.update(c, 3);
    whole.update(c, 1);
    for (int64_t i = 0; i < 3; ++i) {
      const State& expected = i == 1 ? before : whole;
      CHECK(state.params.bytes()[i] == expected.params.bytes()[i], "params %ld", long(i));
      CHECK(state.momenta.bytes()[i] == expected.momenta.bytes()[i], "momenta %ld", long(i));
      CHECK(state.squares.bytes()[i] == expected.squares.bytes()[i], "squares %ld", long(i));
    }
  }
}

void nothing() {
  Case c = plain(0, 3, 4);
  State(c).update(c, 3);
  c = plain(2, 0, 4);
  State(c).update(c, 3);
  CHECK(true, "empty lists");
}

}  // namespace

int main() {
  lists::at_each_level([] {
    shapes_and_layouts();
    dtypes_and_rules();
    second_moments();
    no_step_keeps_every_bit();
    not_finite_keeps_everything();
    nothing();
  });
  return check::finish();
}

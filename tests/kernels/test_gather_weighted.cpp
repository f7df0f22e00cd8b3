// gather_momentum with weights: weights and w M against formulas in long double, for every dtype,
// layout and path.
#include "views.cuh"
#include "weighted_state.h"

namespace {

using namespace weighted_test;

bool same_matrix(const Case& c, const Gathered& x, int64_t i, const Gathered& y, int64_t j) {
  const auto same = [&](const Bytes& one, const Bytes& other, Dtype dtype) {
    const int64_t bytes = c.count() * lists::size_of(dtype);
    return std::equal(one.begin() + i * bytes, one.begin() + (i + 1) * bytes,
                      other.begin() + j * bytes);
  };
  return x.norms[i] == y.norms[j] && x.finite[i] == y.finite[j] && same(x.wide, y.wide, c.wide) &&
         same(x.weights, y.weights, c.weights());
}

void check_case(const Case& c, const char* what) {
  if (!lists::its_turn()) return;
  Lists all(c);
  const auto before = all.host();
  const Gathered out = gather(c, all, Weights::kMade);
  all.grads.download(), all.squares.download();
  if (c.has_momentum) all.momenta.download();
  CHECK(before == all.host(), "%s: only read", what);
  for (int64_t i = 0; i < c.batch; ++i) check_matrix(c, all, out, i, what);
  // Read back, unless second moments alone were double.
  if (c.has_others_in_double() == c.in_double()) {
    const Gathered again = gather(c, all, Weights::kRead, out.weights);
    CHECK(again.weights == out.weights, "%s: weights are only read", what);
    for (int64_t i = 0; i < c.batch; ++i) check_wide(c, all, again, i, "read weights");
  }
  if (c.batch < 2) return;
  const Gathered alone = gather(c, all, Weights::kMade, {}, c.batch - 1, 1);
  CHECK(same_matrix(c, alone, 0, out, c.batch - 1), "%s: batch of one", what);
}

void shapes() {
  struct Shape {
    int64_t rows, cols;
  };
  int turn = 0;
  for (const Shape shape :
       std::vector<Shape>{{1, 1},    {1, 2},   {1, 300},  {2, 3},    {3, 5},    {7, 9},   {8, 8},
                          {8, 520},  {9, 17},  {16, 300}, {33, 64},  {63, 64},  {64, 64}, {64, 65},
                          {64, 128}, {65, 65}, {3, 2100}, {1, 8200}, {64, 129}, {66, 130}}) {
    Case c{1, shape.rows, shape.cols};
    c.grad_layout = lists::kLayouts[turn % 8], c.momentum_layout = lists::kLayouts[turn * 3 % 8];
    c.square_layout = lists::kLayouts[turn * 5 % 8], c.has_momentum = turn % 3 > 0;
    if (++turn % 2) c.grad = c.momentum = c.wide = Dtype::kBFloat16;
    check_case(c, "shapes");
  }
}

// One tile, kept in one block; and several, whose edges are and are not whole units.
void layouts() {
  int turn = 0;
  for (const Layout layout : lists::kLayouts) {
    for (const Layout other : lists::kLayouts) {
      Case c{1, 16, 24};
      c.grad_layout = layout, c.square_layout = other;
      c.momentum_layout = lists::kLayouts[turn++ % 8];
      check_case(c, "layouts");
    }
    Case c{1, 70, 75};
    c.grad = c.wide = Dtype::kBFloat16;
    c.grad_layout = c.square_layout = c.momentum_layout = layout;
    check_case(c, "tiles");
    c = Case{2, 72, 72};
    c.grad_layout = layout;
    c.square_layout = lists::kLayouts[(static_cast<int>(layout) + 1) % 8];
    c.wide = Dtype::kFloat16, c.size = 4;
    check_case(c, "tiles of whole units");
  }
}

void dtypes() {
  int turn = 0;
  for (const Dtype grad : lists::kDtypes) {
    for (const Dtype wide : lists::kDtypes) {
      for (const Dtype square : lists::kDtypes) {
        Case c{1, 9, 16};
        c.grad = grad, c.square = square, c.wide = wide;
        c.momentum = lists::kDtypes[turn % 3 + 1], c.has_momentum = turn % 4 > 0;
        c.grad_layout = c.momentum_layout = c.square_layout = lists::kLayouts[turn++ % 8];
        check_case(c, "dtypes");
      }
    }
  }
  Case c{1, 70, 75};
  c.square = Dtype::kFloat64;
  check_case(c, "tiles in double");
}

void numbers() {
  for (const bool square_root : {false, true}) {
    for (const double exponent : {0.0, 0.1, 0.5, 1.0}) {
      for (const double beta : {0.0, 0.999, 1.0}) {
        for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
          Case c{2, 3, 16};
          c.grad = c.square = c.momentum = c.wide = dtype;
          c.square_root = square_root, c.exponents = {exponent}, c.beta = beta;
          c.eps = exponent == 0.5 ? 0 : 1e-8, c.nesterov = exponent < 1;
          check_case(c, "numbers");
        }
      }
    }
  }
}

// In one and in two launches each.
void exponents() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    for (const bool small : {true, false}) {
      Case c{small ? 6 : 3, small ? 3 : 65, small ? 16 : 66};
      c.grad = c.square = c.momentum = c.wide = dtype;
      c.square_root = false, c.exponents = {0.5, 0.0, 0.125, 0.25, 0.3};
      check_case(c, "each its exponent");
    }
  }
}

// v is zero where g and the old v are: w is zero, whatever eps and the exponent.
void zero_moments(int64_t rows, int64_t cols) {
  for (const double exponent : {0.0, 0.5, 1.0}) {
    if (!lists::its_turn()) continue;
    Case c{3, rows, cols};
    c.eps = 0, c.exponents = {exponent};
    Lists all(c);
    for (int64_t k = 0; k < c.count(); ++k) {
      all.grads.set(1, k / cols, k % cols, 0);
      all.squares.set(1, k / cols, k % cols, 0);
    }
    all.grads.set(2, rows - 1, cols - 1, 0);
    all.squares.set(2, rows - 1, cols - 1, 0);
    const Gathered out = gather(c, all, Weights::kMade);
    for (int64_t i = 0; i < 3; ++i) check_matrix(c, all, out, i, "a moment of zero");
    CHECK(out.finite[1] == 1 && out.norms[1] == 0, "norm %g", out.norms[1]);
    for (int64_t k = 0; k < c.count(); ++k) {
      const double w = out.weight(c.count() + k), x = out.at(c.count() + k);
      if (!CHECK(w == 0 && x == 0, "w %g, wide %g", w, x)) break;
    }
  }
}

enum class Bad { kGrad, kMomentum, kSquare };

void check_bad(const Case& c, Bad where, double value) {
  Lists all(c);
  List& list = where == Bad::kGrad       ? all.grads
               : where == Bad::kMomentum ? all.momenta
                                         : all.squares;
  list.set(1, c.rows - 1, c.cols - 1, value);
  const Gathered out = gather(c, all, Weights::kMade);
  CHECK(out.finite[1] == 0, "finite with %g in list %d", value, int(where));
  CHECK(out.norms[1] == 0, "norm %g with %g in list %d", out.norms[1], value, int(where));
  for (int64_t k = 0; k < c.count(); ++k) {
    if (!CHECK(out.at(c.count() + k) == 0, "wide with %g in list %d", value, int(where))) break;
  }
  check_matrix(c, all, out, 0, "before a bad one");
  check_matrix(c, all, out, 2, "after a bad one");
}

// Of g, m and v; g^2 beyond its type though g is not; and w M beyond it though w and M are not.
void not_finite(int64_t rows, int64_t cols) {
  int turn = 0;
  for (const double value : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
    for (const Bad where : {Bad::kGrad, Bad::kMomentum, Bad::kSquare}) {
      const Layout layout = ++turn % 2 ? Layout::kTransposed : Layout::kContiguous;
      if (!lists::its_turn()) continue;
      Case c{3, rows, cols};
      c.grad_layout = c.momentum_layout = c.square_layout = layout;
      check_bad(c, where, value);
    }
  }
  for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16}) {
    if (!lists::its_turn()) continue;
    Case c{3, rows, cols};
    c.grad = dtype;
    check_bad(c, Bad::kGrad, dtype == Dtype::kFloat64 ? 1e200 : 1e30);
  }
  if (!lists::its_turn()) return;
  Case c{3, rows, cols};
  c.square_root = false, c.eps = 0, c.exponents = {1};
  Lists all(c);
  all.grads.set(1, 0, 0, 0), all.squares.set(1, 0, 0, 1e-38), all.momenta.set(1, 0, 0, 100);
  const Gathered out = gather(c, all, Weights::kMade);
  CHECK(out.finite[0] == 1 && out.finite[1] == 0 && out.norms[1] == 0, "w M overflows");
}

// Weights that a caller brings, of any sign; ones among them, which change no bit.
void read_weights() {
  int turn = 0;
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{5, 9}, {70, 75}}) {
    for (const Dtype dtype : lists::kDtypes) {
      Case c{3, rows, cols};
      c.grad = c.momentum = c.wide = dtype, c.square = Dtype::kFloat32;
      c.grad_layout = lists::kLayouts[turn % 8], c.momentum_layout = lists::kLayouts[turn * 3 % 8];
      c.has_momentum = ++turn % 3 > 0;
      if (!lists::its_turn()) continue;
      Lists all(c);
      List weights(1, 3 * rows, cols, c.weights(), Layout::kContiguous);
      weights.fill(9);
      const Gathered out = gather(c, all, Weights::kRead, weights.host[0]);
      CHECK(out.weights == weights.host[0], "weights are only read");
      for (int64_t i = 0; i < 3; ++i) check_wide(c, all, out, i, "read weights");
      weights.set(0, rows, 0, NAN);
      const Gathered bad = gather(c, all, Weights::kRead, weights.host[0]);
      CHECK(bad.finite[0] == 1 && bad.finite[1] == 0 && bad.finite[2] == 1, "NaN in a weight");
      for (int64_t k = 0; k < 3 * c.count(); ++k) weights.set(0, k / cols, k % cols, 1);
      const Gathered ones = gather(c, all, Weights::kRead, weights.host[0]);
      const Gathered none = gather(c, all, Weights::kNone);
      CHECK(ones.wide == none.wide && ones.norms == none.norms, "weights of one");
    }
  }
}

// More matrices than a launch has room for, in one and in two launches each.
void long_lists(int64_t batch, int64_t rows, int64_t cols) {
  Case c{batch, rows, cols};
  c.exponents = {0.5, 0.0, 0.3};
  Lists all(c);
  const Gathered out = gather(c, all, Weights::kMade);
  for (int64_t i = 0; i < batch; ++i) check_matrix(c, all, out, i, "long list");
  const Gathered again = gather(c, all, Weights::kRead, out.weights);
  CHECK(again.wide == out.wide && again.norms == out.norms, "weights as they were made");
}

void nothing() {
  for (const Case& c : {Case{0, 3, 4}, Case{2, 0, 4}, Case{2, 0, 0}}) {
    Lists all(c);
    for (const Weights weights : {Weights::kRead, Weights::kMade}) {
      const Gathered out = gather(c, all, weights);
      for (int64_t i = 0; i < c.batch; ++i) {
        CHECK(out.finite[i] == 1 && out.norms[i] == 0, "an empty matrix is zero");
      }
    }
  }
}

void body() {
  shapes();
  layouts();
  dtypes();
  numbers();
  exponents();
  zero_moments(9, 16);
  zero_moments(65, 66);
  not_finite(9, 16);
  not_finite(65, 66);
  read_weights();
  nothing();
  lists::next_run();
}

}  // namespace

int main(int argc, char** argv) {
  if (lists::kLong) {
    long_lists(131, 3, 5);
    long_lists(130, 65, 66);
    long_lists(1, 1, 514 * kTileSize + 5);  // more tiles than blocks
  }
  lists::deal_out(argc);
  return device_test::run(argc, argv, body);
}

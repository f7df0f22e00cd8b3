// gather_momentum with weights against its formula in long double, for every instruction set, dtype
// and layout; and weigh, exactly.
#include <cmath>
#include <limits>
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
  Dtype grad = Dtype::kFloat32, momentum = Dtype::kFloat32, square = Dtype::kFloat32,
        wide = Dtype::kFloat32;
  Layout layout = Layout::kContiguous;  // of gradients and moments
  Layout square_layout = Layout::kContiguous;
  bool has_momentum = true, has_squares = true;
  double beta = 0.98, correction = 0.37, eps = 1e-3;
  std::vector<double> exponents = {0.5, 0.3, 0.0};  // of the matrices in turn
  bool square_root = true;

  bool in_double() const {
    const Dtype f64 = Dtype::kFloat64;
    return grad == f64 || wide == f64 || (has_momentum && momentum == f64) ||
           (has_squares && square == f64);
  }
  Dtype weights() const { return in_double() ? Dtype::kFloat64 : Dtype::kFloat32; }
  double correction_of(int64_t i) const { return correction * (i + 1); }
  double eps_of(int64_t i) const { return eps * (i + 1); }
  double exponent_of(int64_t i) const { return exponents[i % exponents.size()]; }
  double unit() const { return in_double() ? 0x1p-53 : 0x1p-24; }
};

constexpr MomentumRule kRule{0.9, true, true};

// Everything that a call reads and writes.
struct State {
  explicit State(const Case& c)
      : grads(c.batch, c.rows, c.cols, c.grad, c.layout),
        momenta(c.batch, c.rows, c.cols, c.momentum, c.layout),
        squares(c.batch, c.rows, c.cols, c.square, c.square_layout),
        weights(1, c.batch * c.rows, c.cols, c.weights(), Layout::kContiguous),
        wide(1, c.batch * c.rows, c.cols, c.wide, Layout::kContiguous),
        norms(c.batch, -1),
        finite(c.batch, 7) {
    grads.fill(c.rows * 1000 + c.cols);
    momenta.fill(c.rows + c.cols * 1000);
    squares.fill(3);
    for (int64_t i = 0; i < c.batch; ++i) {
      for (int64_t k = 0; k < c.rows * c.cols; ++k) {
        const int64_t row = k / c.cols, col = k % c.cols;
        squares.set(i, row, col, std::fabs(squares.at(i, row, col)));
      }
    }
    weights.fill(4);
    for (int64_t k = 0; k < c.batch * c.rows * c.cols; ++k) {
      wide.set(0, k / c.cols, k % c.cols, NAN);
    }
  }

  void gather(const Case& c, int threads, int64_t first = 0, int64_t batch = -1) {
    if (batch < 0) batch = c.batch;
    std::vector<double> corrections, eps, exponents;
    for (int64_t i = first; i < first + batch; ++i) {
      corrections.push_back(c.correction_of(i)), eps.push_back(c.eps_of(i));
      exponents.push_back(c.exponent_of(i));
    }
    GatherArgs args{};
    args.batch = batch, args.rows = c.rows, args.cols = c.cols;
    args.grads = grads.views.data() + first;
    args.momenta = c.has_momentum ? momenta.views.data() + first : nullptr;
    args.grad_dtype = c.grad, args.momentum_dtype = c.momentum, args.wide_dtype = c.wide;
    args.rule = kRule, args.size = 2;
    args.wide = wide.storage[0].data(), args.norms = norms.data(), args.finite = finite.data();
    args.second.squares = c.has_squares ? squares.views.data() + first : nullptr;
    args.second.dtype = c.square, args.second.beta = c.beta;
    args.second.corrections = corrections.data(), args.second.eps = eps.data();
    args.second.square_root = c.square_root, args.second.exponent = exponents.data();
    args.second.weights = weights.storage[0].data();
    gather_momentum(args, lists::on_threads(threads));
  }

  List grads, momenta, squares, weights, wide;
  std::vector<double> norms;
  std::vector<uint8_t> finite;
};

long double moment(const Case& c, const State& s, int64_t i, int64_t r, int64_t col) {
  const long double g = s.grads.at(i, r, col), beta = c.beta;
  return beta * s.squares.at(i, r, col) + (beta == 1 ? 1 : 1 - beta) * g * g;
}

long double weight(const Case& c, const State& s, int64_t i, int64_t r, int64_t col) {
  if (!c.has_squares) return s.weights.at(0, i * c.rows + r, col);
  const long double v = moment(c, s, i, r, col), corrected = v / c.correction_of(i);
  const long double base = (c.square_root ? std::sqrt(corrected) : corrected) + c.eps_of(i);
  return v > 0 ? std::pow(base, -static_cast<long double>(c.exponent_of(i))) : 0;
}

// One entry of w M: the weight, and the two shares of M = m + g.
struct Entry {
  long double w, m, g;
  long double value() const { return w * (m + g); }
  long double size() const { return std::fabs(w) * (std::fabs(m) + std::fabs(g)); }
};
Entry entry(const Case& c, const State& s, int64_t i, int64_t r, int64_t col) {
  const long double g = s.grads.at(i, r, col), momentum = kRule.momentum;
  const long double w = weight(c, s, i, r, col);
  if (!c.has_momentum) return {w, 0, g};
  return {w, momentum * momentum * s.momenta.at(i, r, col), (1 - momentum) * (1 + momentum) * g};
}

// v has six roundings and its weight a few more; M has eight on the sizes of its shares, and so has
// their product. Then the wide batch is divided by the norm, and rounded.
void check_matrix(const Case& c, const State& before, const State& after, int64_t i,
                  const char* what) {
  std::vector<Entry> entries;
  long double square = 0, size = 0;
  for (int64_t k = 0; k < c.rows * c.cols; ++k) {
    entries.push_back(entry(c, before, i, k / c.cols, k % c.cols));
    square += entries[k].value() * entries[k].value();
    size += entries[k].size() * entries[k].size();
  }
  const long double norm = std::sqrt(square) / 2;
  const double unit = c.unit() + (c.in_double() ? 0 : 1e-9);
  const double spread = norm > 0 ? static_cast<double>(std::sqrt(size / square)) : 0;
  CHECK(after.finite[i] == 1, "%s: finite", what);
  CHECK(std::fabs(after.norms[i] - norm) <= 20 * unit * spread * norm, "%s: norm %g, not %Lg", what,
        after.norms[i], norm);
  const lists::Format format = lists::format_of(c.wide);
  for (int64_t k = 0; k < c.rows * c.cols; ++k) {
    const int64_t r = i * c.rows + k / c.cols, col = k % c.cols;
    const double weight = after.weights.at(0, r, col), got = after.wide.at(0, r, col);
    const double truth = norm > 0 ? static_cast<double>(entries[k].value() / norm) : 0;
    const double sizes = norm > 0 ? static_cast<double>(entries[k].size() / norm) : 0;
    const double computed = 20 * unit * (sizes + spread * std::fabs(truth));
    const double rounded = std::max(format.epsilon() * std::fabs(truth), format.least()) / 2;
    const bool right =
        CHECK(std::fabs(weight - entries[k].w) <= 10 * unit * std::fabs(entries[k].w),
              "%s: weight %.9g, not %.9Lg", what, weight, entries[k].w) &&
        CHECK(std::fabs(got - truth) <= computed + rounded,
              "%s: %ld x %ld, dtypes %d %d %d %d, at %ld, %ld: %.9g, not %.9g", what, long(c.rows),
              long(c.cols), int(c.grad), int(c.momentum), int(c.square), int(c.wide), long(r),
              long(col), got, truth);
    if (!right) return;
  }
}

bool same_start(const List& whole, const List& part, size_t begin, size_t bytes) {
  const std::vector<char>&all = whole.storage[0].bytes, &some = part.storage[0].bytes;
  return std::equal(some.begin(), some.begin() + bytes, all.begin() + begin);
}

void check_case(const Case& c, const char* what) {
  const State before(c);
  State after(c), split(c);
  after.gather(c, 1);
  split.gather(c, 3);
  for (int64_t i = 0; i < c.batch; ++i) check_matrix(c, before, after, i, what);
  CHECK(after.grads.bytes() == before.grads.bytes() &&
            after.momenta.bytes() == before.momenta.bytes() &&
            after.squares.bytes() == before.squares.bytes(),
        "%s: lists are only read", what);
  CHECK(c.has_squares || after.weights.bytes() == before.weights.bytes(),
        "%s: weights are only read", what);
  CHECK(after.wide.bytes() == split.wide.bytes() && after.norms == split.norms &&
            after.weights.bytes() == split.weights.bytes(),
        "%s: 3 threads", what);
  if (c.batch < 2 || !c.has_squares) return;
  State alone(c);
  alone.gather(c, 2, 1, 1);
  const size_t wide = after.wide.storage[0].bytes.size() / c.batch;
  const size_t weights = after.weights.storage[0].bytes.size() / c.batch;
  CHECK(alone.norms[0] == after.norms[1] && same_start(after.wide, alone.wide, wide, wide) &&
            same_start(after.weights, alone.weights, weights, weights),
        "%s: batch of one", what);
}

void shapes_and_layouts() {
  const int64_t sizes[] = {0, 1, 2, 15, 17, 33, 100};
  for (const int64_t rows : sizes) {
    for (const int64_t cols : sizes) {
      for (const Layout layout : lists::kLayouts) {
        if (rows > cols) continue;
        Case c{2, rows, cols};
        c.layout = c.square_layout = layout;
        check_case(c, "shapes");
        c.has_squares = false;
        check_case(c, "weights that are read");
        c.has_squares = true;
        for (const Layout other : lists::kLayouts) {
          c.square_layout = other;
          if (rows == 17) check_case(c, "mixed layouts");
        }
      }
    }
  }
}

void dtypes() {
  for (const Dtype grad : lists::kDtypes) {
    for (const Dtype momentum : lists::kDtypes) {
      for (const Dtype square : lists::kDtypes) {
        for (const Dtype wide : lists::kDtypes) {
          Case c{2, 5, 19, grad, momentum, square, wide};
          check_case(c, "dtypes");
          if (square == momentum) continue;
          c.layout = Layout::kTransposed;
          c.has_momentum = false;
          check_case(c, "dtypes without momentum");
          c.square_layout = Layout::kTransposed;
          c.has_squares = false;
          check_case(c, "dtypes of weights that are read");
        }
      }
    }
  }
}

void numbers() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    for (const bool square_root : {false, true}) {
      for (const double exponent : {0.0, 0.125, 0.25, 0.3, 0.5, 1.0}) {
        for (const double eps : {0.0, 1e-8, 0.1}) {
          Case c{1, 5, 17, dtype, dtype, dtype, dtype};
          c.square_root = square_root, c.exponents = {exponent}, c.eps = eps;
          check_case(c, "numbers");
          c.beta = 1, c.correction = 1;
          check_case(c, "sums of squares");
          c.beta = 0;
          check_case(c, "squares alone");
        }
      }
    }
  }
}

// Several blocks, so that threads share one matrix.
void large() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps}) {
      Case c{2, 250, 601, dtype, dtype, Dtype::kFloat32, dtype};
      c.layout = layout;
      c.square_layout = dtype == Dtype::kFloat32 ? layout : Layout::kContiguous;
      check_case(c, "large");
    }
  }
}

// Where v is 0 the weight is, whatever the exponent.
void zero_moments() {
  for (const Dtype wide : lists::kDtypes) {
    for (const double exponent : {0.0, 0.3, 0.5}) {
      Case c{3, 5, 17};
      c.wide = wide, c.exponents = {exponent}, c.eps = 0;
      State before(c), after(c);
      for (State* s : {&before, &after}) {
        for (int64_t k = 0; k < 5 * 17; ++k) {
          for (List* list : {&s->grads, &s->squares}) {
            list->set(1, k / 17, k % 17, 0);
            if (k % 3 == 0) list->set(2, k / 17, k % 17, 0);
          }
        }
      }
      after.gather(c, 1);
      CHECK(after.finite[1] == 1 && after.norms[1] == 0, "a zero matrix: norm %g", after.norms[1]);
      for (int64_t k = 0; k < 5 * 17; ++k) {
        const double w = after.weights.at(0, 5 + k / 17, k % 17);
        CHECK(w == 0 && after.wide.at(0, 5 + k / 17, k % 17) == 0, "a zero matrix: weight %g", w);
      }
      check_matrix(c, before, after, 0, "before a zero matrix");
      check_matrix(c, before, after, 2, "zeros in a matrix");
    }
  }
}

// One bad entry, and the neighbours as they would be without.
void check_not_finite(Case c, List State::*list, double bad, const char* what) {
  const State before(c);
  State after(c);
  (after.*list).set(1, c.rows - 1, c.cols - 1, bad);
  after.gather(c, 1);
  CHECK(after.finite[1] == 0 && after.norms[1] == 0, "%s %g: norm %g", what, bad, after.norms[1]);
  for (int64_t k = 0; k < c.rows * c.cols; ++k) {
    if (!CHECK(after.wide.at(0, c.rows + k / c.cols, k % c.cols) == 0, "%s %g", what, bad)) break;
  }
  check_matrix(c, before, after, 0, "before a bad one");
  check_matrix(c, before, after, 2, "after a bad one");
}

void not_finite() {
  for (const Layout layout : {Layout::kContiguous, Layout::kTransposed}) {
    for (const Dtype dtype : lists::kDtypes) {
      for (const double exponent : {0.0, 0.3, 0.5}) {
        Case c{3, 17, 33, dtype, dtype, dtype, dtype};
        c.layout = layout, c.exponents = {exponent};
        for (const double bad : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
          check_not_finite(c, &State::grads, bad, "gradient");
          check_not_finite(c, &State::momenta, bad, "moment");
          if (bad > 0 || std::isnan(bad)) check_not_finite(c, &State::squares, bad, "square");
        }
        // Finite, but its square is not.
        if (dtype == Dtype::kFloat32 || dtype == Dtype::kBFloat16) {
          check_not_finite(c, &State::grads, 2e19, "huge gradient");
        }
        if (dtype == Dtype::kFloat64) check_not_finite(c, &State::grads, 2e154, "huge gradient");
      }
    }
    // A weight that leaves float32: its square would be 1e45.
    Case c{3, 17, 33};
    c.layout = layout, c.has_squares = false;
    State state(c);
    state.weights.set(0, 20, 3, HUGE_VAL);
    state.gather(c, 1);
    CHECK(state.finite[1] == 0 && state.norms[1] == 0 && state.finite[2] == 1, "infinite weight");
  }
  Case c{1, 1, 1};
  c.has_momentum = false, c.eps = 0, c.square_root = false, c.beta = 1, c.correction = 1;
  for (const double exponent : {0.5, 1.0}) {
    c.exponents = {exponent};
    State state(c);
    state.grads.set(0, 0, 0, 1e-30);
    state.squares.set(0, 0, 0, 1e-42);
    state.gather(c, 1);
    CHECK(state.finite[0] == (exponent == 0.5), "weight of 1e-42 to -%g", exponent);
  }
}

void nothing() {
  State(Case{0, 3, 4}).gather(Case{0, 3, 4}, 3);
  State state(Case{2, 0, 4});
  state.gather(Case{2, 0, 4}, 3);
  CHECK(state.finite[1] == 1 && state.norms[1] == 0, "an empty matrix is zero");
}

// ---- weigh ----

template <typename T>
void check_weigh(int64_t batch, int64_t size, Dtype dtype) {
  const Dtype own = sizeof(T) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
  List weights(1, batch, size, own, Layout::kContiguous);
  List direction(1, batch, size, dtype, Layout::kContiguous);
  weights.fill(1);
  direction.fill(2);
  List one = weights, three = weights;
  std::vector<double> square(batch, NAN), split(batch, NAN);
  weigh(
      {batch, size, own, dtype, one.storage[0].data(), direction.storage[0].data(), square.data()},
      lists::on_threads(1));
  weigh(
      {batch, size, own, dtype, three.storage[0].data(), direction.storage[0].data(), split.data()},
      lists::on_threads(3));
  CHECK(one.bytes() == three.bytes() && square == split, "3 threads");
  for (int64_t i = 0; i < batch; ++i) {
    long double sum = 0;
    bool right = true;
    for (int64_t k = 0; k < size; ++k) {
      const T truth = static_cast<T>(weights.at(0, i, k)) * static_cast<T>(direction.at(0, i, k));
      right &= one.at(0, i, k) == truth;
      sum += static_cast<long double>(truth) * truth;
    }
    CHECK(right, "weights of size %ld, dtype %d", long(size), int(dtype));
    CHECK(std::fabs(square[i] - sum) <= (size + 1) * 0x1p-53 * sum, "square %.17g, not %.17Lg",
          square[i], sum);
  }
}

void weighs() {
  for (const Dtype dtype : lists::kDtypes) {
    for (const int64_t size : {0, 1, 15, 17, 100, 5000}) {
      check_weigh<float>(3, size, dtype);
      check_weigh<double>(3, size, dtype);
    }
    check_weigh<float>(0, 4, dtype);
    check_weigh<float>(2, 150000, dtype);
  }
}

}  // namespace

int main() {
  lists::at_each_level([] {
    shapes_and_layouts();
    dtypes();
    numbers();
    large();
    zero_moments();
    not_finite();
    nothing();
    weighs();
  });
  return check::finish();
}

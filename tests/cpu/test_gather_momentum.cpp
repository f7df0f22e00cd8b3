// gather_momentum against its formula in long double, for every instruction set, dtype and layout.
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
  Dtype grad, momentum, wide;
  Layout grad_layout, momentum_layout;
  MomentumRule rule;
  bool has_momentum;
  double size = 1;
};

struct Gathered {
  lists::Elements wide;
  std::vector<double> norms;
  std::vector<uint8_t> finite;
};

Gathered gather(const Case& c, List& grads, List& momenta, int threads, int64_t first,
                int64_t batch) {
  const int64_t count = batch * c.rows * c.cols;
  Gathered out{{c.wide, count}, std::vector<double>(batch, -1), std::vector<uint8_t>(batch, 7)};
  for (int64_t i = 0; i < count; ++i) out.wide.set(i, NAN);
  gather_momentum({batch, c.rows, c.cols, grads.views.data() + first,
                   c.has_momentum ? momenta.views.data() + first : nullptr, c.grad, c.momentum,
                   c.wide, c.rule, c.size, out.wide.data(), out.norms.data(), out.finite.data()},
                  lists::on_threads(threads));
  return out;
}

Gathered gather(const Case& c, List& grads, List& momenta, int threads) {
  return gather(c, grads, momenta, threads, 0, c.batch);
}

bool in_double(const Case& c) {
  return c.grad == Dtype::kFloat64 || c.wide == Dtype::kFloat64 ||
         (c.has_momentum && c.momentum == Dtype::kFloat64);
}

// The two shares of M = m_share + g_share at one place.
struct Shares {
  long double m, g;
};
Shares shares(const Case& c, const List& grads, const List& momenta, int64_t i, int64_t r,
              int64_t col) {
  const long double g = grads.at(i, r, col);
  if (!c.has_momentum) return {0, g};
  const long double m = momenta.at(i, r, col), beta = c.rule.momentum;
  const long double weight = c.rule.ema ? 1 - beta : 1;
  if (!c.rule.nesterov) return {beta * m, weight * g};
  return {beta * beta * m, beta * weight * g + weight * g};
}

// The rounding errors that the formula has at the compute type, counted: two coefficients, two
// products and a sum in M, on an element and on the norm; the reciprocal and two products after;
// then the rounding to the wide dtype.
void check_matrix(const Case& c, const List& grads, const List& momenta, const Gathered& out,
                  int64_t i, const char* what) {
  const double unit = in_double(c) ? 0x1p-53 : 0x1p-24;
  long double square = 0, size = 0;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t col = 0; col < c.cols; ++col) {
      const Shares s = shares(c, grads, momenta, i, r, col);
      square += (s.m + s.g) * (s.m + s.g);
      size += (std::fabs(s.m) + std::fabs(s.g)) * (std::fabs(s.m) + std::fabs(s.g));
    }
  }
  const long double norm = std::sqrt(square) / c.size;
  const double spread = norm > 0 ? static_cast<double>(std::sqrt(size / square)) : 0;
  CHECK(out.finite[i] == 1, "%s: finite", what);
  CHECK(std::fabs(out.norms[i] - norm) <= 8 * unit * spread * norm, "%s: norm %g, not %Lg", what,
        out.norms[i], norm);
  const lists::Format format = lists::format_of(c.wide);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t col = 0; col < c.cols; ++col) {
      const Shares s = shares(c, grads, momenta, i, r, col);
      const double truth = norm > 0 ? static_cast<double>((s.m + s.g) / norm) : 0;
      const double shares_size =
          norm > 0 ? static_cast<double>((std::fabs(s.m) + std::fabs(s.g)) / norm) : 0;
      const double computed = 8 * unit * (shares_size + spread * std::fabs(truth));
      const double rounded = std::max(format.epsilon() * std::fabs(truth), format.least()) / 2;
      const double got = out.wide[(i * c.rows + r) * c.cols + col];
      if (!CHECK(std::fabs(got - truth) <= computed + rounded,
                 "%s: %ld x %ld, dtypes %d %d %d, at %ld, %ld: %.9g, not %.9g", what, long(c.rows),
                 long(c.cols), int(c.grad), int(c.momentum), int(c.wide), long(r), long(col), got,
                 truth)) {
        return;
      }
    }
  }
}

void check_case(const Case& c, const char* what) {
  List grads(c.batch, c.rows, c.cols, c.grad, c.grad_layout);
  List momenta(c.batch, c.rows, c.cols, c.momentum, c.momentum_layout);
  grads.fill(c.rows * 1000 + c.cols);
  momenta.fill(c.rows + c.cols * 1000);
  const auto grad_bytes = grads.bytes(), momentum_bytes = momenta.bytes();
  const Gathered out = gather(c, grads, momenta, 1);
  for (int64_t i = 0; i < c.batch; ++i) check_matrix(c, grads, momenta, out, i, what);
  CHECK(grads.bytes() == grad_bytes && momenta.bytes() == momentum_bytes, "%s: only read", what);
  const Gathered split = gather(c, grads, momenta, 3);
  CHECK(out.wide.bytes == split.wide.bytes && out.norms == split.norms, "%s: 3 threads", what);
  if (c.batch < 2) return;
  const Gathered alone = gather(c, grads, momenta, 2, 1, 1);
  const size_t bytes = alone.wide.bytes.size();
  CHECK(
      alone.norms[0] == out.norms[1] && std::equal(alone.wide.bytes.begin(), alone.wide.bytes.end(),
                                                   out.wide.bytes.begin() + bytes),
      "%s: batch of one", what);
}

Case plain(int64_t batch, int64_t rows, int64_t cols) {
  const Dtype f32 = Dtype::kFloat32;
  return {
      batch, rows, cols, f32, f32, f32, Layout::kContiguous, Layout::kContiguous, {0.9, true, true},
      true};
}

void shapes_and_layouts() {
  const int64_t sizes[] = {0, 1, 2, 3, 15, 16, 17, 31, 33, 100};
  for (const int64_t rows : sizes) {
    for (const int64_t cols : sizes) {
      for (const Layout layout : lists::kLayouts) {
        if (rows > cols) continue;
        Case c = plain(2, rows, cols);
        c.grad_layout = c.momentum_layout = layout;
        check_case(c, "shapes");
        if (rows == 17 || rows == 33) {
          for (const Layout other : lists::kLayouts) {
            c.momentum_layout = other;
            check_case(c, "mixed layouts");
          }
        }
      }
    }
  }
}

void dtypes_and_rules() {
  for (const Dtype grad : lists::kDtypes) {
    for (const Dtype momentum : lists::kDtypes) {
      for (const Dtype wide : lists::kDtypes) {
        Case c = plain(2, 17, 33);
        c.grad = grad, c.momentum = momentum, c.wide = wide;
        for (const Layout layout : {Layout::kContiguous, Layout::kColumnGaps, Layout::kScattered}) {
          c.grad_layout = c.momentum_layout = layout;
          check_case(c, "dtypes");
        }
        c.has_momentum = false;
        check_case(c, "no momentum");
      }
    }
  }
  for (const bool ema : {false, true}) {
    for (const bool nesterov : {false, true}) {
      for (const double momentum : {0.0, 0.5, 0.95}) {
        Case c = plain(1, 15, 16);
        c.rule = {momentum, ema, nesterov};
        check_case(c, "rules");
      }
    }
  }
}

// Powers of two move exponents alone: same digits, whatever the size.
void sizes() {
  for (const Dtype wide : lists::kDtypes) {
    Case c = plain(2, 17, 33);
    c.wide = wide;
    List grads(2, 17, 33, c.grad, c.grad_layout), momenta(2, 17, 33, c.momentum, c.momentum_layout);
    grads.fill(1);
    momenta.fill(2);
    const Gathered one = gather(c, grads, momenta, 1);
    for (const double size : {0.5, 2.0, 64.0}) {
      c.size = size;
      const Gathered out = gather(c, grads, momenta, 1);
      for (int64_t i = 0; i < 2; ++i) {
        check_matrix(c, grads, momenta, out, i, "sizes");
        CHECK(out.norms[i] * size == one.norms[i], "size %g: norm %g", size, out.norms[i]);
      }
      for (int64_t k = 0; k < 2 * 17 * 33; ++k) {
        // Float16 rounds its subnormal entries otherwise.
        if (std::fabs(one.wide[k]) < 0x1p-13 || size < 1) continue;
        if (!CHECK(out.wide[k] == size * one.wide[k], "size %g: %g", size, out.wide[k])) break;
      }
    }
  }
}

// Several blocks, so that threads share one matrix.
void large() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps}) {
      Case c = plain(2, 250, 601);
      c.grad = c.momentum = c.wide = dtype;
      c.grad_layout = c.momentum_layout = layout;
      check_case(c, "large");
    }
  }
}

void extreme_sizes() {
  struct Extreme {
    Dtype dtype;
    double size;
  };
  for (const Extreme extreme : std::initializer_list<Extreme>{{Dtype::kFloat32, 1e-30},
                                                              {Dtype::kFloat32, 1e30},
                                                              {Dtype::kFloat32, 1e38},
                                                              {Dtype::kFloat32, 1e-38},
                                                              {Dtype::kBFloat16, 1e-30},
                                                              {Dtype::kBFloat16, 1e38},
                                                              {Dtype::kFloat16, 1e-4},
                                                              {Dtype::kFloat64, 1e-170},
                                                              {Dtype::kFloat64, 1e170},
                                                              {Dtype::kFloat64, 1e-300},
                                                              {Dtype::kFloat64, 1e305}}) {
    for (const Dtype wide : lists::kDtypes) {
      Case c = plain(3, 17, 33);
      c.grad = extreme.dtype, c.wide = wide, c.has_momentum = false;
      List grads(3, 17, 33, c.grad, Layout::kContiguous),
          none(0, 0, 0, c.grad, Layout::kContiguous);
      grads.fill(5, extreme.size);
      const Gathered out = gather(c, grads, none, 1);
      for (int64_t i = 0; i < 3; ++i) check_matrix(c, grads, none, out, i, "extreme");
    }
  }
}

// One subnormal entry alone: its reciprocal is beyond the compute type.
void subnormal_entry() {
  for (const Dtype dtype : lists::kDtypes) {
    Case c = plain(1, 3, 5);
    c.grad = dtype, c.has_momentum = false;
    List grads(1, 3, 5, dtype, Layout::kContiguous), none(0, 0, 0, dtype, Layout::kContiguous);
    grads.set(0, 1, 2, -lists::format_of(dtype).least());
    const Gathered out = gather(c, grads, none, 1);
    CHECK(out.norms[0] == lists::format_of(dtype).least(), "norm %g", out.norms[0]);
    CHECK(out.wide[7] == -1 && out.wide[6] == 0, "wide %g", out.wide[7]);
  }
  // Finite, though its norm is not: the direction is right and the norm saturates.
  Case c = plain(1, 2, 2);
  c.grad = c.wide = Dtype::kFloat64, c.has_momentum = false;
  List grads(1, 2, 2, c.grad, Layout::kContiguous), none(0, 0, 0, c.grad, Layout::kContiguous);
  for (int64_t k = 0; k < 4; ++k) grads.set(0, k / 2, k % 2, std::numeric_limits<double>::max());
  const Gathered out = gather(c, grads, none, 1);
  CHECK(out.finite[0] == 1 && out.norms[0] == std::numeric_limits<double>::max(), "%g",
        out.norms[0]);
  for (int64_t k = 0; k < 4; ++k) CHECK(std::fabs(out.wide[k] - 0.5) < 1e-15, "%g", out.wide[k]);
}

void zero_and_not_finite() {
  for (const Dtype dtype : lists::kDtypes) {
    for (const double bad : {0.0, HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      for (const bool in_momentum : {false, true}) {
        for (const Layout layout : {Layout::kContiguous, Layout::kTransposed}) {
          Case c = plain(3, 17, 33);
          c.grad = c.momentum = c.wide = dtype;
          c.grad_layout = c.momentum_layout = layout;
          List grads(3, 17, 33, dtype, layout), momenta(3, 17, 33, dtype, layout);
          grads.fill(1);
          momenta.fill(2);
          for (int64_t k = 0; bad == 0 && k < 17 * 33; ++k) {
            grads.set(1, k / 33, k % 33, 0);
            momenta.set(1, k / 33, k % 33, 0);
          }
          (in_momentum ? momenta : grads).set(1, 16, 32, bad);
          const Gathered out = gather(c, grads, momenta, 1);
          CHECK(out.finite[1] == (bad == 0), "finite with %g", bad);
          CHECK(out.norms[1] == 0, "norm %g with %g", out.norms[1], bad);
          for (int64_t k = 0; k < 17 * 33; ++k) {
            if (!CHECK(out.wide[17 * 33 + k] == 0, "wide with %g", bad)) break;
          }
          check_matrix(c, grads, momenta, out, 0, "before a bad one");
          check_matrix(c, grads, momenta, out, 2, "after a bad one");
        }
      }
    }
  }
}

void expanded_gradient() {
  Case c = plain(1, 3, 4);
  c.has_momentum = false;
  List grads(1, 1, 1, c.grad, Layout::kContiguous), none(0, 0, 0, c.grad, Layout::kContiguous);
  grads.set(0, 0, 0, -2);
  grads.views[0] = {grads.views[0].data, 0, 0};
  const Gathered out = gather(c, grads, none, 1);
  CHECK(std::fabs(out.norms[0] - std::sqrt(48.0)) < 1e-14, "norm %g", out.norms[0]);
  for (int64_t k = 0; k < 12; ++k) {
    CHECK(std::fabs(out.wide[k] + std::sqrt(1 / 12.0)) < 1e-7, "wide %g", out.wide[k]);
  }
}

void nothing() {
  Case c = plain(0, 3, 4);
  List none(0, 3, 4, c.grad, Layout::kContiguous);
  gather(c, none, none, 3);
  c = plain(2, 0, 4);
  List empty(2, 0, 4, c.grad, Layout::kContiguous);
  const Gathered out = gather(c, empty, empty, 3);
  CHECK(out.finite[1] == 1 && out.norms[1] == 0, "an empty matrix is zero");
}

}  // namespace

int main() {
  lists::at_each_level([] {
    shapes_and_layouts();
    dtypes_and_rules();
    sizes();
    large();
    extreme_sizes();
    subnormal_entry();
    zero_and_not_finite();
    expanded_gradient();
    nothing();
  });
  return check::finish();
}

// gather_momentum against its formula in long double, for every dtype, layout and path.
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "device_lists.h"
#include "views.cuh"

namespace {

using namespace schattor::cuda;
using device_test::Buffer;
using lists::Bytes;
using lists::Layout;
using lists::List;

struct Case {
  int64_t batch, rows, cols;
  Dtype grad, momentum, wide;
  Layout grad_layout, momentum_layout;
  double momentum_value;
  bool ema, nesterov;
  double size;
  bool has_momentum;

  int64_t count() const { return rows * cols; }
};

Case plain(int64_t batch, int64_t rows, int64_t cols) {
  const Dtype f32 = Dtype::kFloat32;
  return {batch, rows, cols, f32, f32, f32, Layout::kContiguous, Layout::kContiguous,
          0.9,   true, true, 1,   true};
}

struct Gathered {
  Dtype dtype;
  Bytes wide;
  std::vector<double> norms;
  std::vector<uint8_t> finite;

  double at(int64_t k) const { return lists::get(wide, dtype, k); }
};

// `finite` lies by itself: the race detector knows pairs of bytes only.
Gathered gather(const Case& c, List& grads, List& momenta, int64_t first, int64_t batch) {
  Buffer<unsigned char> wide(batch * c.count() * lists::size_of(c.wide), "wide");
  Buffer<double> norms(batch, "norms"), momentum(std::vector<double>{c.momentum_value});
#ifdef __CUDACC__
  Buffer<uint8_t> finite(batch);
  uint8_t* const flags = finite.data();
#else
  std::vector<uint8_t> finite(batch, 7);
  uint8_t* const flags = finite.data();
#endif
  const View* g = grads.upload() + first;
  const View* m = c.has_momentum ? momenta.upload() + first : nullptr;
  const GatherArgs args = {batch,      c.rows,      c.cols,
                           g,          m,           c.grad,
                           c.momentum, c.wide,      {momentum.data(), c.ema, c.nesterov},
                           c.size,     wide.data(), norms.data(),
                           flags,      {}};
  Buffer<double> workspace(gather_momentum_workspace(args) / sizeof(double), "workspace");
  const cudaError_t error = gather_momentum(args, workspace.data(), nullptr);
  CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
#ifdef __CUDACC__
  return {c.wide, wide.read(), norms.read(), finite.read()};
#else
  return {c.wide, wide.read(), norms.read(), finite};
#endif
}

Gathered gather(const Case& c, List& grads, List& momenta) {
  return gather(c, grads, momenta, 0, c.batch);
}

bool in_double(const Case& c) {
  return c.grad == Dtype::kFloat64 || c.wide == Dtype::kFloat64 ||
         (c.has_momentum && c.momentum == Dtype::kFloat64);
}

// The two shares of M = m_share + g_share at one place.
struct Shares {
  long double m, g;
  long double sum() const { return m + g; }
  long double size() const { return std::fabs(m) + std::fabs(g); }
};

Shares shares(const Case& c, const List& grads, const List& momenta, int64_t i, int64_t k) {
  const int64_t r = k / c.cols, col = k % c.cols;
  const long double g = grads.at(i, r, col);
  if (!c.has_momentum) return {0, g};
  const long double m = momenta.at(i, r, col), beta = c.momentum_value;
  const long double weight = c.ema ? 1 - beta : 1;
  if (!c.nesterov) return {beta * m, weight * g};
  return {beta * beta * m, beta * weight * g + weight * g};
}

// Rounding errors at the compute type, counted: two coefficients, two products and a sum in M, on
// an entry and on the norm; the reciprocal and two products after; then the rounding to wide.
void check_matrix(const Case& c, const List& grads, const List& momenta, const Gathered& out,
                  int64_t i, const char* what) {
  const double unit = in_double(c) ? 0x1p-53 : 0x1p-24;
  long double square = 0, sizes = 0;
  for (int64_t k = 0; k < c.count(); ++k) {
    const Shares s = shares(c, grads, momenta, i, k);
    square += s.sum() * s.sum();
    sizes += s.size() * s.size();
  }
  const long double norm = std::sqrt(square);
  const double spread = norm > 0 ? static_cast<double>(std::sqrt(sizes) / norm) : 0;
  CHECK(out.finite[i] == 1, "%s: finite", what);
  CHECK(std::fabs(out.norms[i] - norm / c.size) <= 8 * unit * spread * norm / c.size,
        "%s: norm %g, not %Lg", what, out.norms[i], norm / c.size);
  const lists::Format format = lists::format_of(c.wide);
  for (int64_t k = 0; k < c.count(); ++k) {
    const Shares s = shares(c, grads, momenta, i, k);
    const double truth = norm > 0 ? static_cast<double>(c.size * s.sum() / norm) : 0;
    const double size = norm > 0 ? static_cast<double>(c.size * s.size() / norm) : 0;
    const double computed = 8 * unit * (size + spread * std::fabs(truth));
    const double rounded = std::max(format.epsilon() * std::fabs(truth), format.least()) / 2;
    const double got = out.at(i * c.count() + k);
    if (!CHECK(std::fabs(got - truth) <= computed + rounded,
               "%s: %ld x %ld, dtypes %d %d %d, layouts %d %d, at %ld: %.9g, not %.9g", what,
               long(c.rows), long(c.cols), int(c.grad), int(c.momentum), int(c.wide),
               int(c.grad_layout), int(c.momentum_layout), long(k), got, truth)) {
      return;
    }
  }
}

bool same_matrix(const Case& c, const Gathered& x, int64_t i, const Gathered& y, int64_t j) {
  const int64_t bytes = c.count() * lists::size_of(c.wide);
  return x.norms[i] == y.norms[j] && x.finite[i] == y.finite[j] &&
         std::equal(x.wide.begin() + i * bytes, x.wide.begin() + (i + 1) * bytes,
                    y.wide.begin() + j * bytes);
}

void check_case(const Case& c, const char* what) {
  if (!lists::its_turn()) return;
  List grads(c.batch, c.rows, c.cols, c.grad, c.grad_layout);
  List momenta(c.batch, c.rows, c.cols, c.momentum, c.momentum_layout);
  grads.fill(c.rows * 1000 + c.cols);
  momenta.fill(c.rows + c.cols * 1000);
  const auto before = std::make_pair(grads.host, momenta.host);
  const Gathered out = gather(c, grads, momenta);
  grads.download();
  if (c.has_momentum) momenta.download();
  CHECK(before == std::make_pair(grads.host, momenta.host), "%s: only read", what);
  for (int64_t i = 0; i < c.batch; ++i) check_matrix(c, grads, momenta, out, i, what);
  if (c.batch < 2) return;
  const Gathered alone = gather(c, grads, momenta, c.batch - 1, 1);
  CHECK(same_matrix(c, alone, 0, out, c.batch - 1), "%s: batch of one", what);
}

void shapes() {
  struct Shape {
    int64_t rows, cols;
  };
  int turn = 0;
  for (const Shape shape :
       std::vector<Shape>{{1, 1},   {1, 2},    {1, 300},  {2, 3},    {3, 5},    {7, 9},   {8, 8},
                          {8, 520}, {9, 17},   {15, 40},  {16, 300}, {33, 64},  {63, 64}, {64, 64},
                          {64, 65}, {64, 128}, {64, 129}, {65, 65},  {3, 2100}, {1, 8200}}) {
    Case c = plain(1, shape.rows, shape.cols);
    c.grad_layout = lists::kLayouts[turn % 8], c.momentum_layout = lists::kLayouts[turn * 3 % 8];
    if (++turn % 2) c.grad = c.momentum = c.wide = Dtype::kBFloat16;
    check_case(c, "shapes");
  }
}

// One tile, kept in one block; and several, whose edges are and are not whole units.
void layouts() {
  for (const Layout layout : lists::kLayouts) {
    for (const Layout other : lists::kLayouts) {
      Case c = plain(1, 16, 24);
      c.grad_layout = layout, c.momentum_layout = other;
      check_case(c, "layouts");
    }
    Case c = plain(1, 70, 75);
    c.grad = c.wide = Dtype::kBFloat16;
    c.grad_layout = layout, c.momentum_layout = layout;
    check_case(c, "tiles");
    c = plain(1, 72, 72);
    c.grad_layout = layout;
    c.momentum_layout = lists::kLayouts[(static_cast<int>(layout) + 1) % 8];
    c.wide = Dtype::kFloat16, c.size = 4;
    check_case(c, "tiles of whole units");
  }
}

void dtypes() {
  int turn = 0;
  for (const Dtype grad : lists::kDtypes) {
    for (const Dtype wide : lists::kDtypes) {
      for (const Dtype momentum : lists::kDtypes) {
        Case c = plain(1, 9, 16);
        c.grad = grad, c.momentum = momentum, c.wide = wide;
        c.grad_layout = lists::kLayouts[turn++ % 8];
        c.momentum_layout = c.grad_layout;
        check_case(c, "dtypes");
      }
      Case c = plain(1, 9, 16);
      c.grad = grad, c.wide = wide, c.has_momentum = false;
      check_case(c, "no momentum");
    }
  }
  for (const bool ema : {false, true}) {
    for (const bool nesterov : {false, true}) {
      for (const double momentum : {0.0, 0.5, 0.95}) {
        Case c = plain(1, 3, 16);
        c.ema = ema, c.nesterov = nesterov, c.momentum_value = momentum;
        c.size = momentum == 0.5 ? 2 : 1;
        check_case(c, "rules");
      }
    }
  }
}

void extreme_sizes() {
  struct Extreme {
    Dtype dtype;
    double size;
  };
  for (const Extreme extreme : std::vector<Extreme>{{Dtype::kFloat32, 1e-30},
                                                    {Dtype::kFloat32, 1e30},
                                                    {Dtype::kFloat32, 1e38},
                                                    {Dtype::kFloat32, 1e-38},
                                                    {Dtype::kBFloat16, 1e-30},
                                                    {Dtype::kBFloat16, 1e38},
                                                    {Dtype::kFloat16, 1e-4},
                                                    {Dtype::kFloat64, 1e-120},
                                                    {Dtype::kFloat64, 1e-122},
                                                    {Dtype::kFloat64, 1e120},
                                                    {Dtype::kFloat64, 1e121},
                                                    {Dtype::kFloat64, 1e-200},
                                                    {Dtype::kFloat64, 1e200},
                                                    {Dtype::kFloat64, 1e-300},
                                                    {Dtype::kFloat64, 1e305}}) {
    for (const Dtype wide : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kFloat16}) {
      if (!lists::its_turn()) continue;
      Case c = plain(1, 5, 13);
      c.grad = extreme.dtype, c.wide = wide, c.has_momentum = false;
      List grads(1, c.rows, c.cols, c.grad, Layout::kContiguous), none(0, 0, 0, c.grad, {});
      grads.fill(5, extreme.size);
      check_matrix(c, grads, none, gather(c, grads, none), 0, "extreme");
    }
  }
  if (!lists::its_turn()) return;
  // Of one float32 matrix in two launches, whose blocks see sizes that differ by 1e30.
  Case c = plain(1, 65, 130);
  c.has_momentum = false;
  List grads(1, c.rows, c.cols, c.grad, Layout::kContiguous), none(0, 0, 0, c.grad, {});
  grads.fill(6, 1e-10);
  grads.set(0, 64, 129, 3e20);
  check_matrix(c, grads, none, gather(c, grads, none), 0, "mixed sizes");
}

// One subnormal entry alone: its reciprocal is beyond the compute type.
void subnormal_entry() {
  for (const Dtype dtype : lists::kDtypes) {
    if (!lists::its_turn()) continue;
    Case c = plain(1, 3, 5);
    c.grad = dtype, c.has_momentum = false;
    List grads(1, 3, 5, dtype, Layout::kContiguous), none(0, 0, 0, dtype, {});
    grads.set(0, 1, 2, -lists::format_of(dtype).least());
    const Gathered out = gather(c, grads, none);
    CHECK(out.norms[0] == lists::format_of(dtype).least(), "norm %g", out.norms[0]);
    CHECK(out.at(7) == -1 && out.at(6) == 0, "wide %g", out.at(7));
  }
  // Finite, though its norm is not: the direction is right and the norm saturates, unless the size
  // brings it back.
  for (const double size : {1.0, 2.0}) {
    Case c = plain(1, 2, 2);
    c.grad = c.wide = Dtype::kFloat64, c.has_momentum = false, c.size = size;
    const double most = std::numeric_limits<double>::max();
    List grads(1, 2, 2, c.grad, Layout::kContiguous), none(0, 0, 0, c.grad, {});
    for (int64_t k = 0; k < 4; ++k) grads.set(0, k / 2, k % 2, most);
    const Gathered out = gather(c, grads, none);
    CHECK(out.finite[0] == 1 && std::fabs(out.norms[0] / most - 1) < 1e-15, "%g", out.norms[0]);
    for (int64_t k = 0; k < 4; ++k) {
      CHECK(std::fabs(out.at(k) - size / 2) < 1e-15, "%g", out.at(k));
    }
  }
}

void zero_and_not_finite(int64_t rows, int64_t cols) {
  int turn = 0;
  for (const Dtype dtype : lists::kDtypes) {
    for (const double bad : {0.0, HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      if (rows > 64 && (dtype != Dtype::kFloat32 || bad < 0)) continue;
      const bool in_momentum = ++turn % 2;
      if (!lists::its_turn()) continue;
      const Layout layout = turn % 3 == 0 ? Layout::kTransposed : Layout::kContiguous;
      Case c = plain(3, rows, cols);
      c.grad = c.momentum = c.wide = dtype;
      c.grad_layout = c.momentum_layout = layout;
      List grads(3, rows, cols, dtype, layout), momenta(3, rows, cols, dtype, layout);
      grads.fill(1);
      momenta.fill(2);
      for (int64_t k = 0; bad == 0 && k < c.count(); ++k) {
        grads.set(1, k / cols, k % cols, 0);
        momenta.set(1, k / cols, k % cols, 0);
      }
      (in_momentum ? momenta : grads).set(1, rows - 1, cols - 1, bad);
      const Gathered out = gather(c, grads, momenta);
      CHECK(out.finite[1] == (bad == 0), "finite with %g", bad);
      CHECK(out.norms[1] == 0, "norm %g with %g", out.norms[1], bad);
      for (int64_t k = 0; k < c.count(); ++k) {
        if (!CHECK(out.at(c.count() + k) == 0, "wide with %g", bad)) break;
      }
      check_matrix(c, grads, momenta, out, 0, "before a bad one");
      check_matrix(c, grads, momenta, out, 2, "after a bad one");
    }
  }
}

// What was applied, to the bit: the new moment that scatter_update will store, and its division.
void applied_to_the_bit() {
  for (const bool nesterov : {false, true}) {
    Case c = plain(1, 16, 20);
    c.nesterov = nesterov, c.size = 2;
    List grads(1, 16, 20, c.grad, Layout::kTransposed), momenta(1, 16, 20, c.grad, {});
    grads.fill(8), momenta.fill(9);
    const Gathered out = gather(c, grads, momenta);
    const float beta = 0.9, weight = 1 - 0.9;
    int exponent;
    const double fraction = std::frexp(out.norms[0] * c.size, &exponent);
    const float power = std::ldexp(1.0f, -exponent), rest = c.size / fraction;
    for (int64_t k = 0; k < c.count(); ++k) {
      const float g = grads.at(0, k / 20, k % 20), m = momenta.at(0, k / 20, k % 20);
      const float share = weight * g, updated = std::fma(beta, m, share);
      const float applied = nesterov ? std::fma(beta, updated, share) : updated;
      const float scaled = applied * power, truth = scaled * rest;
      if (!CHECK(out.at(k) == truth, "%ld: %.9g, not %.9g", long(k), out.at(k), truth)) break;
    }
  }
}

void expanded_gradient() {
  Case c = plain(1, 3, 4);
  Buffer<float> one(std::vector<float>{-2}), wide(12);
  Buffer<double> norm(1);
  Buffer<uint8_t> finite(1);
  const View view = {one.data(), 0, 0};
  const GatherArgs args = {1,      3,  4, &view,       nullptr,     c.grad,        c.momentum,
                           c.wide, {}, 1, wide.data(), norm.data(), finite.data(), {}};
  CHECK(gather_momentum(args, nullptr, nullptr) == cudaSuccess, "launch");
  CHECK(std::fabs(norm.read()[0] - std::sqrt(48.0)) < 1e-6, "norm %g", norm.read()[0]);
  for (const float x : wide.read()) CHECK(std::fabs(x + std::sqrt(1 / 12.0)) < 1e-7, "%g", x);
}

// More matrices than a launch has room for, in one and in two launches each.
void long_lists(int64_t batch, int64_t rows, int64_t cols) {
  Case c = plain(batch, rows, cols);
  List grads(batch, rows, cols, c.grad, {}), momenta(batch, rows, cols, c.grad, {});
  grads.fill(3), momenta.fill(4);
  const Gathered out = gather(c, grads, momenta);
  for (int64_t i = 0; i < batch; ++i) check_matrix(c, grads, momenta, out, i, "long list");
}

void nothing() {
  Case c = plain(0, 3, 4);
  List none(0, 3, 4, c.grad, {});
  gather(c, none, none);
  for (const int64_t cols : {0, 4}) {
    c = plain(2, 0, cols);
    List empty(2, 0, cols, c.grad, {});
    const Gathered out = gather(c, empty, empty);
    CHECK(out.finite[1] == 1 && out.norms[1] == 0, "an empty matrix is zero");
  }
}

void body() {
  shapes();
  layouts();
  dtypes();
  extreme_sizes();
  subnormal_entry();
  zero_and_not_finite(9, 16);
  zero_and_not_finite(65, 66);
  applied_to_the_bit();
  expanded_gradient();
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

// What gather_momentum reads and writes where there are weights, and its formulas on the host: v to
// the bit, since fma is exact on every device; weights and w M in long double.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "device_lists.h"

namespace weighted_test {

using namespace schattor::cuda;
using device_test::Buffer;
using lists::Bytes;
using lists::Layout;
using lists::List;

struct Case {
  int64_t batch, rows, cols;
  Dtype grad = Dtype::kFloat32, momentum = grad, square = grad, wide = grad;
  Layout grad_layout{}, momentum_layout{}, square_layout{};
  bool has_momentum = true, nesterov = true;
  double beta = 0.99, eps = 1e-4, correction = 0.7;
  std::vector<double> exponents = {0.5};  // of the matrices in turn
  bool square_root = true;
  double size = 2;

  int64_t count() const { return rows * cols; }
  bool has_others_in_double() const {
    const Dtype most = Dtype::kFloat64;
    return grad == most || wide == most || (has_momentum && momentum == most);
  }
  bool in_double() const { return square == Dtype::kFloat64 || has_others_in_double(); }
  Dtype weights() const { return in_double() ? Dtype::kFloat64 : Dtype::kFloat32; }
  double unit() const { return in_double() ? 0x1p-53 : 0x1p-24; }
};

constexpr double kMomentum = 0.9;

struct Lists {
  explicit Lists(const Case& c)
      : grads(c.batch, c.rows, c.cols, c.grad, c.grad_layout),
        momenta(c.batch, c.rows, c.cols, c.momentum, c.momentum_layout),
        squares(c.batch, c.rows, c.cols, c.square, c.square_layout) {
    grads.fill(c.rows * 1000 + c.cols);
    momenta.fill(c.rows + c.cols * 1000);
    squares.fill(c.rows + c.cols);
    for (int64_t i = 0; i < c.batch; ++i) {
      for (int64_t k = 0; k < c.count(); ++k) {
        const int64_t r = k / c.cols, col = k % c.cols;
        squares.set(i, r, col, std::fabs(squares.at(i, r, col)));
      }
    }
  }
  std::vector<std::vector<Bytes>> host() const { return {grads.host, momenta.host, squares.host}; }

  List grads, momenta, squares;
};

struct Gathered {
  Dtype dtype, weights_dtype;
  Bytes wide, weights;
  std::vector<double> norms;
  std::vector<uint8_t> finite;

  double at(int64_t k) const { return lists::get(wide, dtype, k); }
  double weight(int64_t k) const { return lists::get(weights, weights_dtype, k); }
};

inline double correction_of(const Case& c, int64_t i) { return c.correction / (1 + i); }
inline double eps_of(const Case& c, int64_t i) { return c.eps * (1 + i); }
inline double exponent_of(const Case& c, int64_t i) { return c.exponents[i % c.exponents.size()]; }

enum class Weights { kNone, kRead, kMade };

// Matrices first .. first + batch. `given`: what weights hold before.
inline Gathered gather(const Case& c, Lists& all, Weights weights, const Bytes& given = {},
                       int64_t first = 0, int64_t batch = -1) {
  if (batch < 0) batch = c.batch;
  Buffer<unsigned char> wide(batch * c.count() * lists::size_of(c.wide), "wide");
  Buffer<unsigned char> made(batch * c.count() * lists::size_of(c.weights()), "weights");
  if (!given.empty()) made.write(given);
  std::vector<double> corrections, eps, exponents;
  for (int64_t i = first; i < first + batch; ++i) {
    corrections.push_back(correction_of(c, i)), eps.push_back(eps_of(c, i));
    exponents.push_back(exponent_of(c, i));
  }
  Buffer<double> norms(batch, "norms"), corrections_on(corrections, "corrections");
  Buffer<double> eps_on(eps, "eps"), exponents_on(exponents, "exponents");
  Buffer<double> momentum(std::vector<double>{kMomentum}), beta(std::vector<double>{c.beta});
#ifdef __CUDACC__
  Buffer<uint8_t> finite(batch);
  uint8_t* const flags = finite.data();
#else
  std::vector<uint8_t> finite(batch, 7);  // by itself: the race detector knows pairs of bytes only
  uint8_t* const flags = finite.data();
#endif
  GatherArgs args{};
  args.batch = batch, args.rows = c.rows, args.cols = c.cols;
  args.grads = all.grads.upload() + first;
  args.momenta = c.has_momentum ? all.momenta.upload() + first : nullptr;
  args.grad_dtype = c.grad, args.momentum_dtype = c.momentum, args.wide_dtype = c.wide;
  args.rule = {momentum.data(), true, c.nesterov};
  args.size = c.size;
  args.wide = wide.data(), args.norms = norms.data(), args.finite = flags;
  const View* squares = weights == Weights::kMade ? all.squares.upload() + first : nullptr;
  args.second = {squares,       c.square,      beta.data(),         corrections_on.data(),
                 eps_on.data(), c.square_root, exponents_on.data(), made.data()};
  if (weights == Weights::kNone) args.second = {};
  Buffer<double> workspace(gather_momentum_workspace(args) / sizeof(double), "workspace");
  const cudaError_t error = gather_momentum(args, workspace.data(), nullptr);
  CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
#ifdef __CUDACC__
  return {c.wide, c.weights(), wide.read(), made.read(), norms.read(), finite.read()};
#else
  return {c.wide, c.weights(), wide.read(), made.read(), norms.read(), finite};
#endif
}

// The new second moment, to the bit: fma is exact on every device.
inline double new_square(const Case& c, const Lists& all, int64_t i, int64_t k) {
  const double v = all.squares.at(i, k / c.cols, k % c.cols);
  const double g = all.grads.at(i, k / c.cols, k % c.cols);
  const double share = c.beta == 1 ? 1 : 1 - c.beta;
  if (c.in_double()) return std::fma(c.beta, v, share * (g * g));
  const float single = static_cast<float>(g), square = single * single;
  const float part = static_cast<float>(share) * square;
  return std::fma(static_cast<float>(c.beta), static_cast<float>(v), part);
}

// What a weight must be, and how far from it rounding may bring it: of the quotient, the root, the
// sum and the power, and of the exponent as it is stored.
struct Weight {
  long double value, allowed;
};
inline Weight weight_of(const Case& c, double v, int64_t i) {
  if (v == 0) return {0, 0};
  const long double corrected = v / static_cast<long double>(correction_of(c, i));
  const long double base = (c.square_root ? std::sqrt(corrected) : corrected) + eps_of(c, i);
  const double exponent = exponent_of(c, i);
  const long double value = std::pow(base, -static_cast<long double>(exponent));
  const double power = exponent * std::fabs(static_cast<double>(std::log(base)));
  return {value, value * c.unit() * (10 + 4 * exponent + power)};
}

// M, and the sum of its parts' sizes.
inline std::pair<long double, long double> applied(const Case& c, const Lists& all, int64_t i,
                                                   int64_t k) {
  const long double g = all.grads.at(i, k / c.cols, k % c.cols);
  if (!c.has_momentum) return {g, std::fabs(g)};
  const long double m = all.momenta.at(i, k / c.cols, k % c.cols), beta = kMomentum;
  const long double share = 1 - beta;
  const long double of_m = c.nesterov ? beta * beta * m : beta * m;
  const long double of_g = c.nesterov ? beta * share * g + share * g : share * g;
  return {of_m + of_g, std::fabs(of_m) + std::fabs(of_g)};
}

inline void check_weights(const Case& c, const Lists& all, const Gathered& out, int64_t i,
                          const char* what) {
  for (int64_t k = 0; k < c.count(); ++k) {
    const Weight w = weight_of(c, new_square(c, all, i, k), i);
    const double got = out.weight(i * c.count() + k);
    if (!CHECK(std::fabs(got - w.value) <= w.allowed,
               "%s: %ld x %ld, dtypes %d %d %d, layouts %d %d, at %ld: w %.9g, not %.9Lg", what,
               long(c.rows), long(c.cols), int(c.grad), int(c.square), int(c.wide),
               int(c.grad_layout), int(c.square_layout), long(k), got, w.value)) {
      return;
    }
  }
}

// wide and norms belong to the stored weights: rounding as in test_gather_momentum.cpp, and one
// product more.
inline void check_wide(const Case& c, const Lists& all, const Gathered& out, int64_t i,
                       const char* what) {
  long double square = 0, sizes = 0;
  for (int64_t k = 0; k < c.count(); ++k) {
    const auto [m, size] = applied(c, all, i, k);
    const long double w = out.weight(i * c.count() + k);
    square += w * m * w * m, sizes += w * size * w * size;
  }
  const long double norm = std::sqrt(square);
  const double spread = norm > 0 ? static_cast<double>(std::sqrt(sizes) / norm) : 0;
  CHECK(out.finite[i] == 1, "%s: finite", what);
  CHECK(std::fabs(out.norms[i] - norm / c.size) <= 9 * c.unit() * spread * norm / c.size,
        "%s: norm %g, not %Lg", what, out.norms[i], norm / c.size);
  const lists::Format format = lists::format_of(c.wide);
  for (int64_t k = 0; k < c.count() && norm > 0; ++k) {
    const auto [m, all_of_m] = applied(c, all, i, k);
    const long double scale = c.size * out.weight(i * c.count() + k) / norm;
    const double truth = static_cast<double>(scale * m);
    const double computed =
        9 * c.unit() *
        (std::fabs(static_cast<double>(scale * all_of_m)) + spread * std::fabs(truth));
    const double rounded = std::max(format.epsilon() * std::fabs(truth), format.least()) / 2;
    const double got = out.at(i * c.count() + k);
    if (!CHECK(std::fabs(got - truth) <= computed + rounded,
               "%s: %ld x %ld, dtypes %d %d %d, at %ld: %.9g, not %.9g", what, long(c.rows),
               long(c.cols), int(c.grad), int(c.square), int(c.wide), long(k), got, truth)) {
      return;
    }
  }
}

inline void check_matrix(const Case& c, const Lists& all, const Gathered& out, int64_t i,
                         const char* what) {
  check_weights(c, all, out, i, what);
  check_wide(c, all, out, i, what);
}

}  // namespace weighted_test

// What scatter_update reads and writes, and its formula on the host: to the bit, since fma and
// rounding are exact on every device.
#pragma once

#include <cmath>
#include <vector>

#include "device_lists.h"

namespace scatter_test {

using namespace schattor::cuda;
using device_test::Buffer;
using lists::Layout;
using lists::List;

struct Case {
  int64_t batch, rows, cols;
  Dtype param, grad, momentum, direction;
  Layout param_layout, grad_layout, momentum_layout;
  double momentum_value;
  bool ema;
  double decay, scale;
  bool has_momentum;
  Dtype square;
  Layout square_layout;
  double beta;
  bool has_squares;

  bool step_in_double() const { return param == Dtype::kFloat64 || direction == Dtype::kFloat64; }
  bool moments_in_double() const {
    return grad == Dtype::kFloat64 || direction == Dtype::kFloat64 ||
           (has_momentum && momentum == Dtype::kFloat64) ||
           (has_squares && square == Dtype::kFloat64);
  }
};

inline Case plain(int64_t batch, int64_t rows, int64_t cols) {
  const Dtype f32 = Dtype::kFloat32;
  return {batch, rows, cols, f32,  f32,  f32, f32, {},   {},   {},
          0.9,   true, 0.99, 0.02, true, f32, {},  0.99, false};
}

// Everything that an update reads and writes.
struct State {
  explicit State(const Case& c)
      : params(c.batch, c.rows, c.cols, c.param, c.param_layout),
        grads(c.batch, c.rows, c.cols, c.grad, c.grad_layout),
        momenta(c.batch, c.rows, c.cols, c.momentum, c.momentum_layout),
        squares(c.batch, c.rows, c.cols, c.square, c.square_layout),
        direction(1, c.batch * c.rows, c.cols, c.direction, Layout::kContiguous),
        scale(c.batch),
        finite(c.batch, 1) {
    params.fill(1);
    grads.fill(2);
    momenta.fill(3);
    direction.fill(4);
    squares.fill(5);
    for (int64_t i = 0; i < c.batch; ++i) scale[i] = c.scale * (i + 1);
  }

  void update(const Case& c, const int64_t* seed = nullptr) {
    Buffer<double> momentum(std::vector<double>{c.momentum_value}), scales(scale, "scale");
    Buffer<double> decay(std::vector<double>{c.decay}), beta(std::vector<double>{c.beta});
    Buffer<uint8_t> flags(finite, "finite");
    Buffer<int64_t> seeds(std::vector<int64_t>{seed == nullptr ? 0 : *seed});
    const ScatterArgs args = {c.batch,
                              c.rows,
                              c.cols,
                              params.upload(),
                              grads.upload(),
                              c.has_momentum ? momenta.upload() : nullptr,
                              direction.upload()->data,
                              c.param,
                              c.grad,
                              c.momentum,
                              c.direction,
                              {momentum.data(), c.ema, true},
                              scales.data(),
                              decay.data(),
                              flags.data(),
                              seed == nullptr ? nullptr : seeds.data(),
                              c.has_squares ? squares.upload() : nullptr,
                              c.square,
                              beta.data()};
    const cudaError_t error = scatter_update(args, nullptr);
    CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
    params.download();
    grads.download();
    if (c.has_momentum) momenta.download();
    if (c.has_squares) squares.download();
  }

  List params, grads, momenta, squares, direction;
  std::vector<double> scale;
  std::vector<uint8_t> finite;
};

inline double blended(bool in_double, double a, double x, double b, double y) {
  if (in_double) return std::fma(a, x, b * y);
  const float product = static_cast<float>(b) * static_cast<float>(y);
  return std::fma(static_cast<float>(a), static_cast<float>(x), product);
}

// The formula on the host.
inline void expect(const Case& c, State& state) {
  const double share = c.ema ? 1 - c.momentum_value : 1;
  for (int64_t i = 0; i < c.batch; ++i) {
    for (int64_t r = 0; r < c.rows && state.finite[i]; ++r) {
      for (int64_t col = 0; col < c.cols; ++col) {
        const double direction = state.direction.at(0, i * c.rows + r, col);
        state.params.set(i, r, col,
                         blended(c.step_in_double(), c.decay, state.params.at(i, r, col),
                                 -state.scale[i], direction));
        const double g = state.grads.at(i, r, col);
        const bool in_double = c.moments_in_double();
        if (c.has_momentum) {
          state.momenta.set(
              i, r, col,
              blended(in_double, c.momentum_value, state.momenta.at(i, r, col), share, g));
        }
        if (c.has_squares) {
          const double square = in_double ? g * g : static_cast<float>(g) * static_cast<float>(g);
          state.squares.set(i, r, col,
                            blended(in_double, c.beta, state.squares.at(i, r, col),
                                    c.beta == 1 ? 1 : 1 - c.beta, square));
        }
      }
    }
  }
}

// Gaps included: all that lies in the same memory.
inline void check_equal(const Case& c, const State& got, const State& truth, const char* what) {
  for (int64_t i = 0; i < c.batch; ++i) {
    CHECK(got.params.host[i] == truth.params.host[i],
          "%s: params %ld of %ld x %ld, dtypes %d %d, layout %d", what, long(i), long(c.rows),
          long(c.cols), int(c.param), int(c.direction), int(c.param_layout));
    CHECK(got.momenta.host[i] == truth.momenta.host[i],
          "%s: momenta %ld of %ld x %ld, dtypes %d %d, layouts %d %d", what, long(i), long(c.rows),
          long(c.cols), int(c.grad), int(c.momentum), int(c.grad_layout), int(c.momentum_layout));
    CHECK(got.squares.host[i] == truth.squares.host[i],
          "%s: squares %ld of %ld x %ld, dtypes %d %d, layouts %d %d", what, long(i), long(c.rows),
          long(c.cols), int(c.grad), int(c.square), int(c.grad_layout), int(c.square_layout));
    CHECK(got.grads.host[i] == truth.grads.host[i], "%s: grads are only read", what);
  }
}

}  // namespace scatter_test

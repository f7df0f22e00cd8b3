// scatter_update against its formula, to the bit: fma and rounding are exact on every device.
#include <cmath>
#include <vector>
#ifndef __CUDACC__
#include <sys/mman.h>
#endif

#include "scatter_state.h"

namespace {

using namespace scatter_test;

void check_case(const Case& c, const char* what) {
  if (!lists::its_turn()) return;
  State state(c), truth(c);
  expect(c, truth);
  state.update(c);
  check_equal(c, state, truth, what);
}

void shapes() {
  struct Shape {
    int64_t rows, cols;
  };
  int turn = 0;
  for (const Shape shape : std::vector<Shape>{{1, 1},
                                              {1, 2},
                                              {1, 300},
                                              {2, 3},
                                              {3, 5},
                                              {7, 9},
                                              {8, 8},
                                              {8, 520},
                                              {9, 17},
                                              {15, 40},
                                              {16, 300},
                                              {33, 64},
                                              {63, 64},
                                              {64, 64},
                                              {64, 65},
                                              {64, 129},
                                              {65, 65},
                                              {3, 2100},
                                              {1, 8200}}) {
    for (int k = 0; k < 2; ++k, ++turn) {
      Case c = plain(1, shape.rows, shape.cols);
      c.param_layout = lists::kLayouts[turn % 8];
      c.grad_layout = lists::kLayouts[turn * 3 % 8];
      c.momentum_layout = lists::kLayouts[turn * 5 % 8];
      c.square_layout = lists::kLayouts[turn * 7 % 8], c.has_squares = turn % 3 == 0;
      if (k == 1) c.param = c.grad = c.direction = Dtype::kBFloat16;
      check_case(c, "shapes");
    }
  }
}

void layouts() {
  for (const Layout layout : lists::kLayouts) {
    for (const Layout other : lists::kLayouts) {
      Case c = plain(1, 16, 24);
      c.param_layout = c.momentum_layout = layout, c.grad_layout = other;
      check_case(c, "layouts");
    }
    for (const Case& shape : {plain(2, 72, 72), plain(1, 70, 75)}) {
      Case c = shape;
      c.param = c.momentum = Dtype::kBFloat16;
      c.param_layout = c.momentum_layout = c.grad_layout = layout;
      check_case(c, "tiles");
    }
  }
}

void dtypes() {
  int turn = 0;
  for (const Dtype one : lists::kDtypes) {
    for (const Dtype other : lists::kDtypes) {
      for (const Dtype direction : lists::kDtypes) {
        Case c = plain(1, 9, 16);
        c.param = c.momentum = one, c.grad = other, c.direction = direction;
        c.param_layout = c.momentum_layout = lists::kLayouts[turn++ % 8];
        check_case(c, "dtypes");
      }
      Case c = plain(1, 9, 16);
      c.param = one, c.grad = c.momentum = other, c.direction = Dtype::kFloat16;
      check_case(c, "dtypes of weights and moments");
    }
  }
  for (const bool ema : {false, true}) {
    Case c = plain(2, 3, 16);
    c.ema = ema, c.momentum_value = 0.75;
    check_case(c, "rules");
    c.has_momentum = false;
    check_case(c, "rules");
  }
}

// Second moments beside first ones and alone, by every layout and dtype.
void second_moments() {
  int turn = 0;
  for (const Layout layout : lists::kLayouts) {
    for (const Case& shape : {plain(2, 16, 24), plain(1, 70, 75), plain(1, 72, 72)}) {
      Case c = shape;
      c.has_squares = true, c.has_momentum = turn % 3 > 0;
      c.square_layout = layout, c.grad_layout = lists::kLayouts[turn % 8];
      c.momentum_layout = lists::kLayouts[(turn + turn / 8) % 8];
      c.beta = turn++ % 5 == 0 ? 1 : 0.999;
      check_case(c, "layouts of second moments");
    }
  }
  for (const Dtype square : lists::kDtypes) {
    for (const Dtype grad : lists::kDtypes) {
      for (const Dtype other : lists::kDtypes) {
        Case c = plain(1, 9, 16);
        c.has_squares = true, c.has_momentum = turn % 4 > 0;
        c.square = square, c.grad = grad;
        c.param = c.momentum = other, c.beta = 0.95;
        c.square_layout = c.momentum_layout = c.grad_layout = lists::kLayouts[turn++ % 8];
        check_case(c, "dtypes of second moments");
      }
    }
  }
}

// A square that overflows, and what comes of moments that are not finite where the flag allows it.
void second_moments_beyond_their_range() {
  for (const double g : {1e30, HUGE_VAL, 1e-30}) {
    Case c = plain(2, 4, 9);
    c.has_squares = true;
    State state(c), truth(c);
    for (State* each : {&state, &truth}) {
      each->grads.set(1, 2, 3, g);
      each->squares.set(0, 0, 0, 0);
      each->grads.set(0, 0, 0, 0);
      each->squares.set(0, 1, 1, lists::format_of(c.square).least());
    }
    expect(c, truth);
    state.update(c);
    check_equal(c, state, truth, "extreme second moments");
  }
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
    const auto before = state.params.host;
    state.update(c);
    CHECK(state.params.host == before, "dtype %d", int(dtype));
  }
}

void not_finite_keeps_everything() {
  for (const Layout layout : {Layout::kContiguous, Layout::kTransposed, Layout::kScattered}) {
    Case c = plain(3, 17, 31);
    c.param_layout = c.grad_layout = c.momentum_layout = c.square_layout = layout;
    c.has_squares = true;
    State state(c), truth(c);
    state.finite[1] = truth.finite[1] = 0;
    state.grads.set(1, 3, 3, NAN), truth.grads.set(1, 3, 3, NAN);
    expect(c, truth);
    state.update(c);
    check_equal(c, state, truth, "one is not finite");
  }
}

// From double to a half dtype in one rounding: by way of float this is a tie, and goes down.
void rounds_once() {
  for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
    Case c = plain(1, 2, 8);
    c.param = dtype, c.direction = Dtype::kFloat64, c.has_momentum = false;
    c.decay = c.scale = 1;
    const double epsilon = lists::format_of(dtype).epsilon();
    for (const Layout layout : {Layout::kContiguous, Layout::kScattered}) {
      c.param_layout = layout;
      State state(c);
      state.params.set(0, 1, 3, 1);
      state.direction.set(0, 1, 3, -epsilon / 2 - 0x1p-40);
      state.update(c);
      CHECK(state.params.at(0, 1, 3) == 1 + epsilon, "%.9g", state.params.at(0, 1, 3));
    }
  }
}

void nothing() {
  Case c = plain(0, 3, 4);
  State(c).update(c);
  c = plain(2, 0, 4);
  State(c).update(c);
}

// More matrices than a launch has room for.
void long_list(bool has_squares) {
  Case c = plain(131, 3, 5);
  c.has_squares = has_squares;
  State state(c), truth(c);
  truth.finite[129] = state.finite[129] = 0;
  expect(c, truth);
  state.update(c);
  check_equal(c, state, truth, "long list");
}

#ifndef __CUDACC__
// A row further away than int32 reaches, in address space that takes no memory.
void far_rows() {
  const int64_t stride = (int64_t{1} << 31) + 8;
  const size_t bytes = (stride + 16) * sizeof(uint16_t);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!CHECK(memory != MAP_FAILED, "no address space")) return;
  Buffer<double> scale(std::vector<double>{1}), decay(std::vector<double>{1});
  Buffer<uint8_t> finite(std::vector<uint8_t>{1});
  Buffer<float> direction(std::vector<float>(32, -2));
  const View view = {memory, stride, 1};
  const Dtype half = Dtype::kBFloat16, single = Dtype::kFloat32;
  const ScatterArgs args = {
      1,       2,      16,     &view, nullptr,      nullptr,      direction.data(), half,
      single,  single, single, {},    scale.data(), decay.data(), finite.data(),    nullptr,
      nullptr, half,   nullptr};
  CHECK(scatter_update(args, nullptr) == cudaSuccess, "launch");
  const uint16_t* entries = static_cast<const uint16_t*>(memory);
  for (int64_t k = 0; k < 16; ++k) {
    CHECK(entries[k] == 0x4000 && entries[stride + k] == 0x4000, "entry %ld", long(k));
  }
  munmap(memory, bytes);
}
#endif

void body() {
  shapes();
  layouts();
  dtypes();
  second_moments();
  second_moments_beyond_their_range();
  no_step_keeps_every_bit();
  not_finite_keeps_everything();
  rounds_once();
  nothing();
  lists::next_run();
}

}  // namespace

int main(int argc, char** argv) {
#ifndef __CUDACC__
  far_rows();
#endif
  if (lists::kLong) long_list(false), long_list(true);
  lists::deal_out(argc);
  return device_test::run(argc, argv, body);
}

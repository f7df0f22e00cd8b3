// Rounding to bfloat16 at random: its mean, and what its bits depend on.
#include <cmath>
#include <vector>

#include "scatter_state.h"

namespace {

using namespace scatter_test;

// Weights of 1 that move by `part` of the distance to the next bfloat16 number.
Case random_case(int64_t batch, int64_t rows, int64_t cols) {
  Case c = plain(batch, rows, cols);
  c.param = Dtype::kBFloat16, c.has_momentum = false, c.decay = 1;
  return c;
}

State rounded(const Case& c, double part, int64_t seed) {
  State state(c);
  for (int64_t i = 0; i < c.batch; ++i) {
    state.scale[i] = 1;
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t col = 0; col < c.cols; ++col) {
        state.params.set(i, r, col, 1);
        state.direction.set(0, i * c.rows + r, col, -part * 0x1p-7);
      }
    }
  }
  state.update(c, &seed);
  return state;
}

// In a second launch too.
void matrices_differ() {
  int64_t same = 0;
  const State random = rounded(random_case(131, 3, 5), 0.5, 7);
  for (int64_t i = 0; i < 131; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      same += random.params.host[i] == random.params.host[j];
    }
  }
  // 8515 pairs of 15 bits.
  CHECK(same <= 3, "%ld pairs of matrices round alike", long(same));
}

void keeps_the_mean() {
  const Case c = random_case(1, 64, 64);
  for (const Dtype direction : {Dtype::kFloat32, Dtype::kFloat64}) {
    for (const double part : {0.0, 0.25, 0.3, 0.9}) {
      Case each = c;
      each.direction = direction;
      const State state = rounded(each, part, 1234567890123);
      int64_t up = 0, neither = 0;
      for (int64_t k = 0; k < 64 * 64; ++k) {
        const double w = state.params.at(0, k / 64, k % 64);
        up += w == 1 + 0x1p-7;
        neither += w != 1 && w != 1 + 0x1p-7;
      }
      const double share = up / 4096.0, deviation = std::sqrt(part * (1 - part) / 4096);
      CHECK(neither == 0, "%ld of other values", long(neither));
      CHECK(std::fabs(share - part) <= 4 * deviation, "%g up, not %g", share, part);
    }
  }
}

void depends_on() {
  const Case c = random_case(3, 20, 29);
  const State state = rounded(c, 0.5, 7);
  CHECK(rounded(c, 0.5, 7).params.host == state.params.host, "the same seed");
  CHECK(rounded(c, 0.5, 8).params.host[0] != state.params.host[0], "another seed");
  CHECK(rounded(c, 0.5, 7 + (int64_t{1} << 32)).params.host[0] != state.params.host[0],
        "another seed above 32 bits");
  CHECK(state.params.host[0] != state.params.host[1], "another matrix");
  CHECK(rounded(random_case(1, 20, 29), 0.5, 7).params.host[0] == state.params.host[0],
        "its neighbours are of no account");
  Case transposed = random_case(1, 20, 29);
  transposed.param_layout = Layout::kTransposed;
  const State columns = rounded(transposed, 0.5, 7);
  for (const Layout layout : {Layout::kRowGaps, Layout::kOddRowGaps, Layout::kOffset}) {
    Case other = c;
    other.param_layout = layout;
    const State gaps = rounded(other, 0.5, 7);
    for (int64_t k = 0; k < 20 * 29; ++k) {
      CHECK(gaps.params.at(2, k / 29, k % 29) == state.params.at(2, k / 29, k % 29), "gaps");
      const double number = lists::get(state.params.host[0], c.param, k);
      CHECK(lists::get(columns.params.host[0], c.param, k) == number, "transposed");
    }
  }
}

// Nothing to round, or not a number: as without a seed. Other dtypes take no notice of it.
void leaves() {
  Case c = random_case(1, 2, 8);
  State state(c);
  const int64_t seed = 3;
  const double values[] = {HUGE_VAL, -HUGE_VAL, 0, 1.5, -2, 1e30, -0.0};
  for (int64_t k = 0; k < 7; ++k) {
    state.params.set(0, 0, k, values[k]);
    state.direction.set(0, 0, k, 0);
  }
  state.params.set(0, 1, 0, NAN);
  state.update(c, &seed);
  for (int64_t k = 0; k < 7; ++k) {
    const double nearest = lists::nearest(values[k], c.param);
    CHECK(state.params.at(0, 0, k) == nearest, "%g", state.params.at(0, 0, k));
  }
  CHECK(std::isnan(state.params.at(0, 1, 0)), "NaN stays");
  c = plain(1, 9, 16);
  State with_seed(c), without(c);
  with_seed.update(c, &seed);
  without.update(c);
  check_equal(c, with_seed, without, "float32 weights");
}

void body() {
  depends_on();
  leaves();
  lists::next_run();
}

}  // namespace

int main(int argc, char** argv) {
  keeps_the_mean();
  if (lists::kLong) matrices_differ();
  return device_test::run(argc, argv, body);
}

// The AMX chain against the chain in double: on emulated tiles, or, compiled without
// SCHATTOR_EMULATE_AMX, on a processor that has them.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "amx_tiles.h"
#include "bfloat16_chain.h"
#include "chain_amx.h"
#include "check.h"

namespace {

using bfloat16_chain::Chain;
using bfloat16_chain::gaussian;
using bfloat16_chain::make_chain;
using bfloat16_chain::Matrix;
using bfloat16_chain::reference;
using bfloat16_chain::rounded;
using bfloat16_chain::to_bfloat16;
using bfloat16_chain::to_double;
using schattor::cpu::ChainArgs;
using schattor::cpu::Dtype;
using schattor::cpu::Parallel;

// Ranges on threads of their own, as a pool would run them.
Parallel pool(int threads) {
  Parallel parallel;
  parallel.threads = threads;
  parallel.run = [threads](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::vector<std::thread> others;
    for (int t = 0; t < threads; ++t) {
      const int64_t begin = count * t / threads, end = count * (t + 1) / threads;
      if (begin < end) others.emplace_back([=, &body] { body(begin, end); });
    }
    for (std::thread& other : others) other.join();
  };
  return parallel;
}

struct Result {
  std::vector<uint16_t> direction;
  std::vector<double> inner, square;
  bool operator==(const Result& other) const {
    return direction == other.direction && inner == other.inner && square == other.square;
  }
};

// A batch of one shape; the chains share their steps.
struct Batch {
  int64_t rows, cols;
  std::vector<uint16_t> wide;
  std::vector<Chain> chains;
  std::vector<int64_t> restarts;
  bool gram = false;

  void add(const Matrix& matrix, const Chain& chain) {
    rows = matrix.rows;
    cols = matrix.cols;
    for (double entry : matrix.data) wide.push_back(to_bfloat16(entry));
    chains.push_back(chain);
  }

  Result run(const Parallel& parallel = {}) const {
    const int64_t batch = static_cast<int64_t>(chains.size());
    std::vector<double> weights, powers;
    for (const Chain& chain : chains) {
      weights.insert(weights.end(), chain.weights.begin(), chain.weights.end());
      powers.push_back(chain.power);
    }
    Result result{std::vector<uint16_t>(wide.size(), 0xffff), std::vector<double>(batch, -1),
                  std::vector<double>(batch, -1)};
    ChainArgs args{};
    args.batch = batch;
    args.rows = rows;
    args.cols = cols;
    args.dtype = Dtype::kBFloat16;
    args.wide = wide.data();
    args.depth = chains[0].depth();
    args.steps = chains[0].steps.data();
    args.weights = weights.data();
    args.powers = powers.data();
    args.gram = gram;
    args.restarts = restarts.data();
    args.restart_count = static_cast<int64_t>(restarts.size());
    args.direction = {result.direction.data(), result.inner.data(), result.square.data()};
    CHECK(amx_chain_applies(args), "bfloat16");
    CHECK(amx_workspace_bytes(args, parallel.threads) > 0, "no workspace");
    chain_direction_amx(args, parallel);
    return result;
  }
};

Result run_one(const Matrix& matrix, const Chain& chain, const Parallel& parallel = {}) {
  Batch batch;
  batch.add(matrix, chain);
  return batch.run(parallel);
}

double error(const uint16_t* direction, const Matrix& truth) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < truth.data.size(); ++i) {
    difference += std::pow(to_double(direction[i]) - truth.data[i], 2);
    size += truth.data[i] * truth.data[i];
  }
  return std::sqrt(difference / size);
}

double error(const Matrix& matrix, const Matrix& truth) {
  std::vector<uint16_t> rounded_matrix;
  for (double entry : matrix.data) rounded_matrix.push_back(to_bfloat16(entry));
  return error(rounded_matrix.data(), truth);
}

// The scalars that come with a direction are those of what was stored.
void check_scalars(const Batch& batch, const Result& result) {
  const int64_t size = batch.rows * batch.cols;
  for (size_t index = 0; index < batch.chains.size(); ++index) {
    double inner = 0, square = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double out = to_double(result.direction[index * size + i]);
      inner += to_double(batch.wide[index * size + i]) * out;
      square += out * out;
    }
    CHECK(std::abs(result.inner[index] - inner) <= 1e-12 * std::abs(inner),
          "inner %.17g, not %.17g", result.inner[index], inner);
    CHECK(std::abs(result.square[index] - square) <= 1e-12 * square, "square %.17g, not %.17g",
          result.square[index], square);
  }
}

// Of one rounding of the output, below which no error can be asked to stay.
constexpr double kRounding = 1.0 / 512;

void test_sizes() {
  const int64_t extra[] = {0, 1, 30, 67};
  for (int64_t rows = 1; rows <= 100; ++rows) {
    const Matrix wide = gaussian(rows, rows + extra[rows % 4]);
    const Chain chain = make_chain(3 + rows % 3, rows % 5 / 4.0);
    Batch batch;
    batch.add(wide, chain);
    const Result result = batch.run();
    const Matrix truth = reference(wide, chain, false);
    const double ours = error(result.direction.data(), truth);
    const double naive = error(reference(wide, chain, true), truth);
    CHECK(ours <= 2 * std::max(naive, kRounding), "%ldx%ld: error %.4f, naively %.4f", wide.rows,
          wide.cols, ours, naive);
    check_scalars(batch, result);
  }
}

void test_batch_and_threads() {
  const std::pair<int64_t, int64_t> shapes[] = {{5, 9}, {32, 32}, {33, 65}, {64, 800}, {70, 71}};
  for (const auto& [rows, cols] : shapes) {
    Batch batch;
    for (int64_t i = 0; i < 5; ++i) {
      Chain chain = make_chain(4, i / 4.0);
      chain.weights[i] = 0;
      batch.add(i == 3 ? Matrix(rows, cols) : gaussian(rows, cols), chain);
    }
    const Result result = batch.run();
    check_scalars(batch, result);
    for (int threads : {2, 3, 7}) {
      CHECK(batch.run(pool(threads)) == result, "%ldx%ld: %d threads", rows, cols, threads);
    }
    const int64_t size = rows * cols;
    for (int64_t i = 0; i < 5; ++i) {
      Batch one;
      one.rows = rows;
      one.cols = cols;
      one.wide.assign(batch.wide.begin() + i * size, batch.wide.begin() + (i + 1) * size);
      one.chains = {batch.chains[i]};
      const Result alone = one.run();
      CHECK(std::equal(alone.direction.begin(), alone.direction.end(),
                       result.direction.begin() + i * size) &&
                alone.inner[0] == result.inner[i] && alone.square[0] == result.square[i],
            "%ldx%ld: matrix %ld alone", rows, cols, i);
    }
  }
}

// A permuted diagonal, of which the chain is known entry by entry, in sizes at which all threads
// share a matrix and products are cut into stretches.
void test_large() {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{500, 540}, {780, 800}}) {
    Matrix wide(rows, cols);
    std::vector<double> diagonal(rows);
    double fourth = 0;
    for (int64_t i = 0; i < rows; ++i) {
      diagonal[i] = rounded(0.01 + 0.99 * i / rows);
      wide.at(i, (i * 7 + 3) % cols) = diagonal[i];
      fourth += std::pow(diagonal[i], 4);
    }
    const double tau = std::sqrt(std::sqrt(fourth));
    const Chain chain = make_chain(2, 0.5);
    Matrix truth(rows, cols);
    for (int64_t i = 0; i < rows; ++i) {
      double x = diagonal[i] / tau, sum = chain.weights[0] * x;
      for (int64_t k = 0; k < chain.depth(); ++k) {
        const double *step = chain.steps.data() + 3 * k, square = x * x;
        x *= step[0] + square * (step[1] + square * step[2]);
        sum += chain.weights[k + 1] * x;
      }
      truth.at(i, (i * 7 + 3) % cols) = std::sqrt(tau) * sum;
    }
    const Result result = run_one(wide, chain);
    const double ours = error(result.direction.data(), truth);
    CHECK(ours <= 3 * kRounding, "%ldx%ld: error %.4f", rows, cols, ours);
    for (int threads : {2, 3}) {
      CHECK(run_one(wide, chain, pool(threads)) == result, "%ldx%ld: %d threads", rows, cols,
            threads);
    }
  }
}

// Only the scale changes with the scale of the input, down to the last bit.
void test_scales() {
  for (double power : {0.0, 0.5, 1.0}) {
    const Matrix wide = gaussian(20, 45);
    const Chain chain = make_chain(4, power);
    const Result expected = run_one(wide, chain);
    for (int exponent : {-100, -40, 40, 100}) {
      Matrix scaled = wide;
      for (double& entry : scaled.data) entry = std::ldexp(entry, exponent);
      const Result result = run_one(scaled, chain);
      const double factor = std::exp2(power * exponent);
      bool same = true;
      for (size_t i = 0; i < result.direction.size(); ++i) {
        same &= to_double(result.direction[i]) == factor * to_double(expected.direction[i]);
      }
      CHECK(same, "input times 2^%d, power %g", exponent, power);
      const double inner = result.inner[0] / (factor * std::exp2(exponent)) / expected.inner[0];
      CHECK(std::abs(inner - 1) <= 1e-12, "input times 2^%d: inner is off by %g", exponent,
            inner - 1);
    }
  }
}

void test_weights() {
  const Matrix wide = gaussian(40, 50);
  for (int64_t only = 0; only <= 4; ++only) {
    Chain chain = make_chain(4, 0.25);
    for (int64_t k = 0; k <= 4; ++k) chain.weights[k] = k == only;
    const Matrix truth = reference(wide, chain, false);
    const double naive = error(reference(wide, chain, true), truth);
    const Result result = run_one(wide, chain);
    const double ours = error(result.direction.data(), truth);
    CHECK(ours <= 2 * std::max(naive, kRounding), "w_%ld alone: error %.4f, naively %.4f", only,
          ours, naive);
    // Steps after the last weight change nothing.
    Chain shorter = chain;
    shorter.weights.resize(only + 1);
    shorter.steps.resize(3 * only);
    CHECK(run_one(wide, shorter) == result, "the steps after w_%ld count", only);
    CHECK(result.inner[0] > 0, "<M, O> is %g", result.inner[0]);
  }
}

// Zero gives zero, what is not finite gives NaN, and no weights at all give zero.
void test_degenerate() {
  Batch batch;
  const Chain chain = make_chain(3, -0.25);
  for (int i = 0; i < 5; ++i) batch.add(i == 0 ? Matrix(33, 40) : gaussian(33, 40), chain);
  const int64_t size = 33 * 40;
  batch.wide[2 * size + 17] = 0x7f80;    // infinity
  batch.wide[3 * size + 1319] = 0xffc1;  // NaN
  for (double& weight : batch.chains[4].weights) weight = 0;
  const Result result = batch.run();
  for (int64_t i = 0; i < 5; ++i) {
    const auto begin = result.direction.begin() + i * size;
    const int64_t zeros = std::count(begin, begin + size, 0);
    const int64_t nans = std::count(begin, begin + size, 0x7fc0);
    CHECK((zeros == size) == (i == 0 || i == 4), "matrix %ld: %ld zeros", i, zeros);
    CHECK(nans == (i == 2 || i == 3 ? size : 0), "matrix %ld: %ld NaN", i, nans);
    CHECK(std::isnan(result.inner[i]) == (i == 2 || i == 3), "inner %g", result.inner[i]);
    CHECK((result.square[i] == 0) == (i == 0 || i == 4), "square %g", result.square[i]);
  }
}

void test_gram() {
  const std::vector<int64_t> restarts[] = {{}, {1}, {2}, {2, 4}, {1, 2, 3}};
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 40}, {31, 95}, {65, 300}}) {
    const Matrix wide = gaussian(rows, cols);
    for (const std::vector<int64_t>& restart : restarts) {
      const int64_t longest = 3;  // steps that bfloat16 stands without a restart
      Batch batch;
      batch.gram = true;
      batch.restarts = restart;
      for (double power : {0.0, 0.3, 1.0}) {
        batch.add(wide, make_chain(restart.empty() ? longest : restart.back() + longest, power));
      }
      // The last iterate alone shows best what rounding does to the Gram side, and a last segment
      // that is cut short what it does at its end.
      std::fill(batch.chains[0].weights.begin(), batch.chains[0].weights.end() - 1, 0.0);
      batch.chains[2].weights.back() = 0;
      const Result result = batch.run();
      check_scalars(batch, result);
      for (int64_t i = 0; i < 3; ++i) {
        const Matrix truth = reference(wide, batch.chains[i], false);
        const double ours = error(result.direction.data() + i * rows * cols, truth);
        const double naive = error(reference(wide, batch.chains[i], true), truth);
        CHECK(ours <= 2 * std::max(naive, kRounding),
              "%ldx%ld, %zu restarts, matrix %ld: error %.4f, naively %.4f", rows, cols,
              restart.size(), i, ours, naive);
      }
      CHECK(batch.run(pool(2)) == result, "%ldx%ld: 2 threads", rows, cols);
    }
  }
}

}  // namespace

int main() {
#ifdef SCHATTOR_EMULATE_AMX
  const bool runs = amx_emulation::runs_here();
#else
  const bool runs = schattor::cpu::detected_level() == schattor::cpu::Level::kAmx;
#endif
  if (!runs) {
    std::puts("skipped: the processor has no AMX, or no AVX-512 to emulate it");
    return 0;
  }
  test_sizes();
  test_batch_and_threads();
  test_large();
  test_scales();
  test_weights();
  test_degenerate();
  test_gram();
  return check::finish();
}

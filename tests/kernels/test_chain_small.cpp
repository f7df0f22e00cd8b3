// The chain of small matrices against the same chain in double, and against that chain with its
// matrices rounded on the host, than which it may be at most twice as far from the truth.
#include "chain_small.h"
#include "chain_small_strips.h"
#include "on_chip_chains.h"

namespace {

using namespace on_chip_chains;
namespace small = schattor::cuda::small;

const DeviceFacts kHopperFacts{90, 132, 232448}, kAdaFacts{89, 128, 101376};

const Kernel kSmall{
    small::serves, small::workspace,
    [](const ChainArgs& args, void* workspace) { return small::run(args, workspace, nullptr); },
    facts_here()};

// The kernel for larger ones serves any, so that most of what it does is tested on small ones.
// Two blocks for three matrices: one of them takes two.
const DeviceFacts kTwoBlocks{80, 2, facts_here().shared_bytes};
const Kernel kStrips{small::strips_serve, small::strips_workspace,
                     [](const ChainArgs& args, void* workspace) {
                       return small::run_strips(args, kTwoBlocks, workspace, nullptr);
                     },
                     kTwoBlocks};

double allowed(const Shape& shape, Dtype dtype, const Matrix& x, const Chain& chain,
               const Matrix& truth) {
  const Matrix twin = direction_of(x, shape.rows, shape.cols, chain, Rounded(dtype));
  const double luck = (dtype == Dtype::kFloat16 ? 1e-3 : 8e-3) / std::sqrt(double(x.size()));
  return 2 * matrices::distance(twin, truth) + luck * matrices::norm(truth);
}

void check(const Kernel& kernel, const Shape& shape, Dtype dtype, const Chain& chain,
           int64_t offset = 0) {
  check_chain(kernel, shape, dtype, {chain}, allowed, offset);
}

constexpr Dtype kHalves[] = {Dtype::kFloat16, Dtype::kBFloat16};

void test_shapes() {
  int turn = 0;
  for (const int64_t rows : {1, 2, 15, 16, 17, 33}) {
    for (const int64_t cols : {rows, rows + 1, (2 * rows + 15) / 8 * 8}) {
      const Shape shape{rows < 16 ? 3 : 1, rows, cols};
      for (const Kernel& kernel : {kSmall, kStrips}) {
        check(kernel, shape, kHalves[turn % 2], chain_of(2 + turn % 3, 0.4));
      }
      ++turn;
    }
  }
}

// Every warp at work, whole tiles and not.
void test_large() {
  check(kSmall, {1, 1, 1024}, Dtype::kFloat16, chain_of(3, 0.4));
  check(kSmall, {1, 5, 1023}, Dtype::kBFloat16, chain_of(3, 0.4));
  check(kSmall, {1, 30, 500}, Dtype::kBFloat16, chain_of(2, 0.4));
  check(kSmall, {1, 70, 100}, Dtype::kFloat16, chain_of(2, 0.4));
  check(kSmall, {1, 128, 128}, Dtype::kFloat16, chain_of(1, 0.4));
  check(kStrips, {1, 70, 150}, Dtype::kFloat16, chain_of(2, 0.4));
  check(kSmall, {1, 130, 137}, Dtype::kBFloat16, chain_of(2, 0.4));
  const bool roomy = kSmall.facts.shared_bytes >= (160 << 10);
  if (roomy) check(kSmall, {1, 208, 208}, Dtype::kFloat16, chain_of(1, 0.4));
}

// Rows that do not begin at multiples of 16 bytes, and batches that do not.
void test_alignment() {
  for (const Kernel& kernel : {kSmall, kStrips}) {
    check(kernel, {2, 16, 24}, Dtype::kFloat16, chain_of(3, 0.5), 3);
    check(kernel, {2, 17, 23}, Dtype::kBFloat16, chain_of(3, 0.5), 1);
    check(kernel, {2, 17, 22}, Dtype::kBFloat16, chain_of(3, 0.5), 2);
    check(kernel, {2, 17, 32}, Dtype::kBFloat16, chain_of(3, 0.5), 8);
  }
}

void test_numbers() {
  for (const Kernel& kernel : {kSmall, kStrips}) {
    for (int depth = 1; depth <= schattor::cuda::kMostSteps; depth += depth < 4 ? 1 : 6) {
      check(kernel, {1, 20, 24}, Dtype::kFloat16, chain_of(depth, 0.5));
    }
    for (const double power : {-0.3, 0.0, 0.5, 1.0, 2.3}) {
      for (const Dtype dtype : kHalves) check(kernel, {2, 12, 20}, dtype, table_chain(8, power));
    }
    check_chain(kernel, {4, 18, 33}, Dtype::kFloat16, sparse_chains(), allowed);
  }
}

// What the table promises for the depth, at the precision of the dtype. A float16 input cannot hold
// singular values much below 1e-3 of a matrix this small, so the spectra end there.
void test_spectra() {
  for (const int depth : {5, 8}) {
    const Spectrum spectrum = log_uniform(48, 64, depth == 5 ? 1e-2 : 2e-3);
    const Matrix x = rounded(spectrum.map([](double s) { return 2 * s; }), Dtype::kFloat16);
    for (const double power : {0.0, 0.5, 1.0}) {
      const Kernel& kernel = power == 0.5 ? kStrips : kSmall;
      const Result result =
          run_chain(kernel, {1, 48, 64}, Dtype::kFloat16, x, {table_chain(depth, power)});
      const Matrix truth = spectrum.map([&](double s) { return std::pow(2 * s, power); });
      const double error = matrices::distance(result.direction, truth) / matrices::norm(truth);
      CHECK(error <= 0.01, "depth %d power %g: error %.2e", depth, power, error);
    }
  }
}

// Chains do not care for the size of what they are given, as long as the Gram matrix is a float.
void check_sizes(const Kernel& kernel) {
  const Shape shape{1, 12, 20};
  Matrix x = matrices::gaussian(shape.size());
  matrices::normalise(x);
  for (const double size : {1e-15, 1e-3, 1e3, 1e15}) {
    const Chain chain = chain_of(4, 0.25);
    const Matrix values = rounded(scaled(x, size), Dtype::kBFloat16);
    const Result result = run_chain(kernel, shape, Dtype::kBFloat16, values, {chain});
    const Matrix truth = direction_of(values, shape.rows, shape.cols, chain);
    const double error = matrices::distance(result.direction, truth) / matrices::norm(truth);
    CHECK(error <= 0.02, "size %g: error %.2e", size, error);
  }
  for (const double size : {1e-30, 1e30}) {
    const Shape one{1, 1, 2};
    const Result result =
        run_chain(kernel, one, Dtype::kBFloat16, {size, -size}, {chain_of(4, 0.25)});
    CHECK(is_constant(result, one, 0, size > 1 ? std::nan("") : 0), "size %g", size);
  }
}

void test_values() {
  for (const Kernel& kernel : {kSmall, kStrips}) {
    check_sizes(kernel);
    check_values(kernel, {1, 17, 24}, Dtype::kFloat16);
    check_values(kernel, {1, 17, 25}, Dtype::kBFloat16);
    check_batch(kernel, {3, 20, 40}, Dtype::kFloat16, chain_of(4, 0.5));
  }
}

bool served(int64_t rows, int64_t cols, Dtype dtype, const DeviceFacts& facts) {
  ChainArgs args{};
  args.batch = 1, args.rows = rows, args.cols = cols, args.dtype = dtype, args.depth = 8;
  return small::serves(args, facts);
}

void test_serves() {
  CHECK(served(64, 64, Dtype::kFloat16, kAdaFacts), "64x64");
  CHECK(served(128, 128, Dtype::kBFloat16, kAdaFacts), "128x128");
  CHECK(!served(64, 64, Dtype::kFloat32, kHopperFacts), "float32");
  CHECK(!served(16, 8192, Dtype::kFloat16, kHopperFacts), "16x8192");
  CHECK(!served(64, 48, Dtype::kFloat16, kHopperFacts), "tall");
  CHECK(served(256, 256, Dtype::kFloat16, kHopperFacts), "256x256");
  CHECK(served(176, 176, Dtype::kFloat16, kAdaFacts), "176x176");
  CHECK(!served(256, 256, Dtype::kFloat16, kAdaFacts), "256x256 in 100 KB");
  CHECK(!served(512, 512, Dtype::kFloat16, kHopperFacts), "512x512");
}

void test() {
  test_shapes();
  test_large();
  test_alignment();
  test_numbers();
  test_spectra();
  test_values();
  test_serves();
#ifndef __CUDACC__
  CHECK(emu::conflicts() == 0, "%ld bank conflicts", emu::conflicts());
#endif
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, test); }

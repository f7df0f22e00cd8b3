// The chain of long thin matrices against the same chain in double, in one launch and by panels.
#include "chain_thin.h"
#include "on_chip_chains.h"

namespace {

using namespace on_chip_chains;
namespace thin = schattor::cuda::thin;

const DeviceFacts kHopperFacts{90, 132, 232448}, kAdaFacts{89, 128, 101376};

Kernel kernel_on(const DeviceFacts& facts) {
  return {thin::serves, thin::workspace,
          [facts](const ChainArgs& args, void* workspace) {
            return thin::run(args, facts, workspace, nullptr);
          },
          facts};
}
const Kernel kWhole = kernel_on(facts_here());

// The sum's rounding to the dtype, and little else, whatever the dtype: S stands in float between
// double and X, and products of eight columns are summed in float. What that makes of directions
// below 1e-3 of the norm is less than what a chain with iterates of half precision makes of them.
double allowed(const Shape& shape, Dtype dtype, const Matrix& x, const Chain& chain,
               const Matrix& truth) {
  const double rounding = dtype == Dtype::kFloat16 ? 5e-4 : dtype == Dtype::kBFloat16 ? 4e-3 : 1e-5;
  const double luck = x.size() < 100 ? 2 : 1;
  double bound = (luck * rounding + 1e-5) * matrices::norm(truth);
  if (chain.depth() >= 8) {
    const Dtype half = dtype == Dtype::kBFloat16 ? dtype : Dtype::kFloat16;
    const Matrix twin = direction_of(x, shape.rows, shape.cols, chain, Rounded(half));
    bound += (is_half(dtype) ? 1 : 0.05) * matrices::distance(twin, truth);
  }
  return bound;
}

void check(const Kernel& kernel, const Shape& shape, Dtype dtype, const Chain& chain,
           int64_t offset = 0) {
  check_chain(kernel, shape, dtype, {chain}, allowed, offset);
}

constexpr Dtype kServed[] = {Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat32};

void test_whole() {
  int turn = 0;
  for (const int64_t rows : {1, 2, 3, 4, 5, 8, 15, 16, 17, 33}) {
    for (const int64_t cols : {8 * rows, 8 * rows + 5}) {
      check(kWhole, {rows < 4 ? 3 : 1, rows, cols}, kServed[turn % 3], chain_of(2 + turn % 4, 0.4));
      ++turn;
    }
  }
  check(kWhole, {1, 3, 300}, Dtype::kFloat16, chain_of(4, 0.4));
  check(kWhole, {1, 36, 291}, Dtype::kFloat32, chain_of(6, 0.4));
}

// Matrices that a block with so little room does not hold.
const Kernel kPanels = kernel_on({80, 4, 56 << 10});

void test_panels() {
  check(kPanels, {1, 3, 8197}, Dtype::kFloat16, chain_of(4, 0.4));
  check(kPanels, {1, 7, 3700}, Dtype::kBFloat16, chain_of(4, 0.4));
  check(kPanels, {3, 2, 3600}, Dtype::kFloat32, chain_of(4, 0.4));
  check(kPanels, {1, 34, 320}, Dtype::kFloat16, chain_of(6, 0.4));
}

void test_alignment() {
  check(kWhole, {2, 6, 64}, Dtype::kFloat16, chain_of(3, 0.5), 3);
  check(kWhole, {2, 6, 61}, Dtype::kBFloat16, chain_of(3, 0.5), 1);
  check(kWhole, {2, 6, 63}, Dtype::kFloat32, chain_of(3, 0.5), 1);
}

void test_numbers() {
  for (int depth = 1; depth <= schattor::cuda::kMostSteps; depth += depth < 4 ? 1 : 6) {
    check(kWhole, {1, 7, 60}, Dtype::kFloat32, chain_of(depth, 0.5));
  }
  for (const double power : {-0.3, 0.0, 0.5, 1.0, 2.3}) {
    for (const Dtype dtype : kServed) check(kWhole, {2, 5, 48}, dtype, table_chain(8, power));
  }
  check_chain(kWhole, {4, 5, 48}, Dtype::kFloat16, sparse_chains(), allowed);
}

// What the table promises, at depth: without a restart, for a float Gram matrix would not do.
void check_spectrum(const Spectrum& spectrum, Dtype dtype, double power) {
  const int64_t rows = spectrum.s.size(), cols = spectrum.v.size() / rows;
  const Chain chain = table_chain(8, power);
  const Matrix x = rounded(spectrum.map([](double s) { return s; }), dtype);
  const Result result = run_chain(kWhole, {1, rows, cols}, dtype, x, {chain});
  const Matrix truth = direction_of(x, rows, cols, chain);
  const double error = matrices::distance(result.direction, truth) / matrices::norm(truth);
  CHECK(error <= 0.01, "%s %ld rows, power %g: error %.2e of the chain", name_of(dtype), long(rows),
        power, error);
  if (dtype != Dtype::kFloat32) return;  // the rounding of x has made it another matrix
  const Matrix exact = spectrum.map([&](double s) { return std::pow(s, power); });
  const double whole = matrices::distance(result.direction, exact) / matrices::norm(exact);
  CHECK(whole <= 0.01, "%ld rows, power %g: error %.2e", long(rows), power, whole);
}

void test_spectra() {
  const Spectrum narrow = log_uniform(16, 128, 3.3e-4);
  for (const Dtype dtype : kServed) {
    check_spectrum(narrow, dtype, dtype == Dtype::kBFloat16 ? 0.5 : 0);
  }
  check_spectrum(log_uniform(33, 264, 3.3e-4), Dtype::kFloat16, 0);
}

void test_sizes() {
  const Shape shape{1, 5, 60};
  Matrix x = matrices::gaussian(shape.size());
  matrices::normalise(x);
  for (const double size : {1e-15, 1e-3, 1e3, 1e15}) {
    Matrix values = x;
    for (double& value : values) value *= size;
    values = rounded(values, Dtype::kFloat32);
    const Chain chain = chain_of(4, 0.25);
    const Result result = run_chain(kWhole, shape, Dtype::kFloat32, values, {chain});
    const Matrix truth = direction_of(values, shape.rows, shape.cols, chain);
    const double error = matrices::distance(result.direction, truth) / matrices::norm(truth);
    CHECK(error <= 1e-5, "size %g: error %.2e", size, error);
  }
  for (const double size : {1e-30, 1e30}) {
    const Shape one{1, 1, 8};
    const Matrix values(8, size);
    const Result result = run_chain(kWhole, one, Dtype::kFloat32, values, {chain_of(4, 0.25)});
    CHECK(is_constant(result, one, 0, size > 1 ? std::nan("") : 0), "size %g", size);
  }
}

void test_values() {
  check_values(kWhole, {1, 6, 50}, Dtype::kBFloat16);
  check_values(kWhole, {1, 4, 40}, Dtype::kFloat32);
  check_values(kWhole, {1, 17, 136}, Dtype::kFloat16);
  check_values(kPanels, {1, 1, 8197}, Dtype::kFloat16);
  check_batch(kWhole, {3, 6, 64}, Dtype::kFloat16, chain_of(4, 0.5));
  check_batch(kPanels, {2, 2, 3600}, Dtype::kFloat32, chain_of(3, 0.5));
}

bool served(int64_t rows, int64_t cols, Dtype dtype, const DeviceFacts& facts) {
  ChainArgs args{};
  args.batch = 1, args.rows = rows, args.cols = cols, args.dtype = dtype, args.depth = 8;
  return thin::serves(args, facts);
}

void test_serves() {
  for (const DeviceFacts& facts : {kHopperFacts, kAdaFacts}) {
    for (const Dtype dtype : kServed) {
      CHECK(served(16, 4096, dtype, facts), "16x4096");
      CHECK(served(64, 1 << 20, dtype, facts), "64x1M");
      CHECK(!served(65, 4096, dtype, facts), "65 rows");
      CHECK(!served(64, 256, dtype, facts), "64x256");
    }
    CHECK(!served(16, 4096, Dtype::kFloat64, facts), "float64");
  }
  ChainArgs args{};
  args.batch = 7, args.rows = 16, args.cols = 4096, args.dtype = Dtype::kFloat16, args.depth = 8;
  CHECK(thin::workspace(args, kHopperFacts) == 0, "one launch wants memory");
  CHECK(thin::workspace(args, kAdaFacts) > 0, "panels want none");
}

void test() {
  test_whole();
  test_panels();
  test_alignment();
  test_numbers();
  test_spectra();
  test_sizes();
  test_values();
  test_serves();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, test); }

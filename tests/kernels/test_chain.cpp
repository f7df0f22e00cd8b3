// chain_direction on every kernel that serves, against the same chain in double, and in half
// precision against that chain with its matrices rounded on the host.
#include <limits>

#include "chain.h"
#include "chain_twin.h"

namespace {

using namespace schattor::cuda;
using namespace chain_twin;

// Of a shape with the table's, of any depth; the numbers do not matter here, so they are few bits
// long: float holds them.
Chain chain_of(int depth, double power) {
  Chain chain{{}, {0.5}, power};
  for (int k = 0; k < depth; ++k) {
    const bool last = k + 1 == depth;
    chain.steps.insert(chain.steps.end(),
                       {last ? 2.25 : 3.125, last ? -2.25 : -4.875, last ? 0.9375 : 2.25});
    chain.weights.push_back(last ? 0.25 : 0.75 * chain.weights.back());
  }
  return chain;
}

const Form kDirect{false, {}}, kGram{true, {}};

DeviceFacts facts_here() {
  DeviceFacts facts{};
  CHECK(device_facts(&facts) == cudaSuccess, "no facts of the device");
  return facts;
}

// Weights and powers of every matrix of the batch: those of chains[i % size].
Result run_chain(ChainKernel kernel, const Shape& shape, Dtype dtype, const Matrix& values,
                 const std::vector<Chain>& chains, const Form& form, int64_t offset = 0) {
  Matrix weights, powers;
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Chain& chain = chains[i % chains.size()];
    weights.insert(weights.end(), chain.weights.begin(), chain.weights.end());
    powers.push_back(chain.power);
  }
  Buffer<double> device_weights(weights, "weights"), device_powers(powers, "powers");
  return run_batch(shape, dtype, values, offset, [&](const void* wide, Direction direction) {
    ChainArgs args{};
    args.batch = shape.batch, args.rows = shape.rows, args.cols = shape.cols;
    args.dtype = dtype, args.wide = wide, args.direction = direction;
    args.depth = chains[0].depth(), args.steps = chains[0].steps.data();
    args.weights = device_weights.data(), args.powers = device_powers.data();
    args.gram = form.gram, args.restarts = form.restarts.data();
    args.restart_count = static_cast<int>(form.restarts.size());
    Buffer<unsigned char> workspace(chain_workspace(kernel, args, facts_here()), "workspace");
    const cudaError_t error = chain_direction(kernel, args, workspace.data(), nullptr);
    CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
  });
}

bool serves(ChainKernel kernel, const Shape& shape, Dtype dtype, int depth, const Form& form,
            int64_t offset = 0) {
  ChainArgs args{};
  args.batch = shape.batch, args.rows = shape.rows, args.cols = shape.cols, args.dtype = dtype;
  const Matrix steps(3 * depth);
  args.depth = depth, args.steps = steps.data();
  args.gram = form.gram, args.restarts = form.restarts.data();
  args.restart_count = static_cast<int>(form.restarts.size());
  // An address that is asked for its alignment alone.
  args.wide = reinterpret_cast<const void*>((uintptr_t{1} << 20) + offset * size_of(dtype));
  args.direction.data = const_cast<void*>(args.wide);
  return chain_kernel_serves(kernel, args, facts_here());
}

// Without Hopper's, which are slow to emulate and have a test below.
constexpr ChainKernel kKernels[] = {ChainKernel::kTiles, ChainKernel::kSmall, ChainKernel::kThin};
const char* name_of_kernel(ChainKernel kernel) {
  const char* names[] = {"small", "thin", "tiles", "hopper"};
  return names[static_cast<int>(kernel)];
}

// Float and double: rounding enlarged by steps of slope 3, on the Gram side by its square.
double tolerance(Dtype dtype, bool gram) {
  if (dtype == Dtype::kFloat64) return 1e-11;
  return gram ? 4e-3 : 1e-4;
}

// The largest error of the chain with rounded matrices.
double twin_error(const Matrix& x, const Matrix& truth, const Shape& shape, Dtype dtype,
                  const Chain& chain, const Form& form) {
  double largest = 0;
  for (const double scale : kScales) {
    const Matrix twin = direction_of(x, shape.rows, shape.cols, chain, Rounded(dtype, scale), form);
    largest = std::max(largest, matrices::distance(twin, truth));
  }
  return largest;
}

void check_direction(const char* what, const Shape& shape, Dtype dtype, const Matrix& x,
                     const Matrix& direction, const Chain& chain, const Form& form,
                     double ratio = 2) {
  const Matrix truth = direction_of(x, shape.rows, shape.cols, chain);
  const double size = matrices::norm(truth), error = matrices::distance(direction, truth);
  double allowed = tolerance(dtype, form.gram) * size;
  if (is_half(dtype)) {
    allowed = ratio * twin_error(x, truth, shape, dtype, chain, form);
    allowed += (dtype == Dtype::kFloat16 ? 5e-4 : 4e-3) * size / std::sqrt(double(x.size()));
  }
  CHECK(error <= allowed, "%s %s %s %ldx%ld depth %d, %zu restarts: error %.2e of %.2e", what,
        name_of(dtype), form.gram ? "gram" : "direct", long(shape.rows), long(shape.cols),
        chain.depth(), form.restarts.size(), error / size, allowed / size);
}

void check_chain(ChainKernel kernel, const Shape& shape, Dtype dtype,
                 const std::vector<Chain>& chains, const Form& form, int64_t offset = 0) {
  if (!serves(kernel, shape, dtype, chains[0].depth(), form, offset)) return;
  const char* what = name_of_kernel(kernel);
  const Matrix values = rounded(batch_of(shape, size_for(dtype, shape.rows)), dtype);
  const Result result = run_chain(kernel, shape, dtype, values, chains, form, offset);
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Matrix x = part(values, i, shape.size());
    const Chain& chain = chains[i % chains.size()];
    check_direction(what, shape, dtype, x, part(result.direction, i, shape.size()), chain, form,
                    i == kRankOne ? 4 : 2);  // of noise alone, in all values but one
    check_inner(what, shape, x, i, result);
  }
  if (shape.batch == 1 || offset > 0) return;
  const Result alone = run_chain(kernel, {1, shape.rows, shape.cols}, dtype,
                                 part(values, 0, shape.size()), {chains[0]}, form);
  CHECK(matrices::same_bits(alone.direction, part(result.direction, 0, shape.size())) &&
            alone.inner[0] == result.inner[0] && alone.square[0] == result.square[0],
        "%s %s %ldx%ld: the batch changes bits", what, name_of(dtype), long(shape.rows),
        long(shape.cols));
}

void check_on_all(const Shape& shape, Dtype dtype, const std::vector<Chain>& chains,
                  const Form& form, int64_t offset = 0) {
  if (!Shares::take()) return;
  for (const ChainKernel kernel : kKernels) {
    check_chain(kernel, shape, dtype, chains, form, offset);
  }
}

// As they are planned: bfloat16 needs two restarts.
std::vector<Form> forms_of(Dtype dtype) {
  if (dtype == Dtype::kBFloat16) return {kDirect, {true, {2, 4}}};
  if (is_half(dtype)) return {kDirect, {true, {3}}, {true, {2, 5}}};
  return {kDirect, kGram, {true, {3}}, {true, {2, 4}}};
}

void test_shapes() {
  int turn = 0;
  for (const int64_t rows : {1, 3, 8, 17, 33}) {
    for (const int64_t cols : {rows, rows + 5, 4 * rows}) {
      const Dtype dtype = kDtypes[turn % 4];
      const std::vector<Form> forms = forms_of(dtype);
      check_on_all({rows == 3 ? 3 : 1, rows, cols}, dtype, {chain_of(6, 0.4)},
                   forms[turn / 4 % forms.size()]);
      ++turn;
    }
  }
  check_on_all({1, 63, 64}, Dtype::kFloat16, {chain_of(2, 0.5)}, kDirect);
  check_on_all({1, 65, 130}, Dtype::kBFloat16, {chain_of(2, 0.5)}, {true, {1}});
  check_on_all({1, 130, 131}, Dtype::kFloat16, {chain_of(1, 0.5)}, kDirect);
  check_on_all({2, 5, 130}, Dtype::kFloat32, {chain_of(4, 0.5)}, kDirect);
  check_on_all({2, 12, 100}, Dtype::kBFloat16, {chain_of(4, 0.5)}, {true, {2}});
}

void test_dtypes_and_forms() {
  for (const Dtype dtype : kDtypes) {
    for (const Form& form : forms_of(dtype)) {
      check_on_all({1, 12, 24}, dtype, {chain_of(is_half(dtype) ? 8 : 5, 0.4)}, form);
    }
    check_on_all({1, 12, 20}, dtype, {chain_of(5, 0.4)}, {true, {1, 2, 4}});
    check_on_all({2, 8, 23}, dtype, {chain_of(4, 0.3)}, {true, {2}}, 1);
    check_on_all({2, 8, 24}, dtype, {chain_of(3, 0.3)}, kDirect, 1);
  }
}

void test_hopper() {
  const auto check = [](const Shape& shape, Dtype dtype, int depth, const Form& form) {
    if (!Shares::take()) return;
    check_chain(ChainKernel::kHopper, shape, dtype, {chain_of(depth, 0.4)}, form);
  };
  check({2, 9, 16}, Dtype::kBFloat16, 3, kDirect);
  check({2, 8, 23}, Dtype::kFloat16, 4, {true, {2}});
  check({1, 65, 130}, Dtype::kBFloat16, 2, {true, {1}});
  check({1, 130, 131}, Dtype::kFloat16, 1, kDirect);
}

void test_depths() {
  for (const Dtype dtype : kDtypes) {
    for (const int depth : {1, 2}) {
      check_on_all({1, 6, 16}, dtype, {chain_of(depth, 0.4)}, kDirect);
      check_on_all({1, 6, 16}, dtype, {chain_of(depth, 0.4)}, kGram);
    }
    check_on_all({1, 6, 16}, dtype, {chain_of(kMostSteps, 0.4)}, kDirect);
  }
}

// Exponents differ within the batch, and so do weights; some of them are zero.
void test_weights() {
  std::vector<Chain> chains(4, chain_of(4, 0));
  chains[1].power = 0.5, chains[1].weights = {0, 0, 0, 0.25, 0.75};
  chains[2].power = 1, chains[2].weights = {1, 0, 0, 0, 0};
  chains[3].power = -0.2, chains[3].weights = {0, 1.5, 0, 0, 0};
  for (const Dtype dtype : kDtypes) {
    check_on_all({4, 9, 16}, dtype, chains, kDirect);
    check_on_all({4, 9, 16}, dtype, chains, {true, {2}});
  }
  // The weight of the input alone gives back the input.
  for (const Form& form : {kDirect, Form{true, {2}}}) {
    const Shape shape{1, 9, 16};
    const Matrix x = rounded(batch_of(shape, 1), Dtype::kFloat16);
    const Result result =
        run_chain(ChainKernel::kTiles, shape, Dtype::kFloat16, x, {chains[2]}, form);
    CHECK(matrices::same_bits(result.direction, x), "power 1 changes the input");
  }
}

void test_values() {
  const Shape shape{3, 6, 9};
  const double inf = std::numeric_limits<double>::infinity();
  for (const Dtype dtype : kDtypes) {
    for (const Form& form : {kDirect, Form{true, {1}}}) {
      for (const ChainKernel kernel : kKernels) {
        const Chain chain = chain_of(2, form.gram ? 0.5 : 0);
        if (!Shares::take() || !serves(kernel, shape, dtype, 2, form)) continue;
        Matrix values = batch_of(shape, 1);
        values[7] = form.gram ? std::nan("") : -inf;
        const Result result = run_chain(kernel, shape, dtype, values, {chain}, form);
        CHECK(is_constant(result, shape, 0, std::nan("")), "%s %s: numbers from NaN or inf",
              name_of_kernel(kernel), name_of(dtype));
        CHECK(std::isfinite(matrices::norm(part(result.direction, 1, shape.size()))) &&
                  std::isfinite(result.inner[1]),
              "%s %s: the next matrix is touched", name_of_kernel(kernel), name_of(dtype));
        CHECK(is_constant(result, shape, 2, 0), "%s %s: a direction of zero",
              name_of_kernel(kernel), name_of(dtype));
      }
    }
  }
}

// Inputs far from norm 1 on the scale of the dtype.
void test_sizes() {
  const Shape shape{1, 10, 17};
  for (const Dtype dtype : kDtypes) {
    for (const double size : {1.0 / 32, 32.0, 1e-6, 1e6}) {
      if (!Shares::take()) continue;
      if (dtype == Dtype::kFloat16 && std::abs(std::log2(size)) > 6) continue;
      const Matrix x = rounded(batch_of(shape, size), dtype);
      for (const Form& form : {kDirect, Form{true, {1}}}) {
        const Chain chain = chain_of(2, 0.5);
        const Result result = run_chain(ChainKernel::kTiles, shape, dtype, x, {chain}, form);
        check_direction("tiles", shape, dtype, x, result.direction, chain, form);
      }
    }
  }
}

// More chunks than the block that adds them up has threads.
void test_long_finish() {
  if (!Shares::take()) return;
  const Shape shape{1, 1, 270 * 2048 + 1};
  const Matrix x = rounded(matrices::gaussian(shape.size()), Dtype::kFloat16);
  Buffer<unsigned char> mixture(stored(scaled(x, 2), Dtype::kFloat16), "mixture");
  Buffer<double> sums(2 * finish_chunks(shape.rows, shape.cols), "sums");
  const Result result =
      run_batch(shape, Dtype::kFloat16, x, 0, [&](const void* wide, Direction direction) {
        const Operand operand{mixture.data(), shape.cols, shape.cols};
        const Finish args{Dtype::kFloat16, 1,           shape.rows, shape.cols, wide,
                          operand,         constant(1), direction,  sums.data()};
        CHECK(finish(args, nullptr) == cudaSuccess, "finish fails");
      });
  check_inner("finish", shape, x, 0, result);
  CHECK(matrices::same_bits(result.direction, rounded(scaled(x, 3), Dtype::kFloat16)),
        "x + 2 x is not 3 x");
}

void test_empty() {
  for (const Shape& shape : {Shape{0, 6, 9}, Shape{2, 0, 9}, Shape{2, 0, 0}}) {
    const Result result =
        run_chain(ChainKernel::kTiles, shape, Dtype::kFloat32, {}, {chain_of(3, 0)}, kDirect);
    for (double value : result.inner) CHECK(value == 0, "no entries, yet an inner product");
    for (double value : result.square) CHECK(value == 0, "no entries, yet a norm");
  }
}

// The table's chain of depth 8 in half precision, on a spectrum to where it reaches. What float16
// leaves of the smallest singular values shows at small powers, in the host's chain just as much.
struct Row {
  double power;
  Matrix weights;
};
const Matrix kStep = {3.0979664911, -4.8776809055, 2.2809126835};
const Matrix kFinish = {2.8514076660, -4.0268162686, 1.8607791726,
                        2.2865111960, -2.2506510288, 0.9238826514};
const std::vector<Row> kRows = {
    {0,
     {0.00019753899, -0.00010278589, -0.00116516766, 0.00066906718, 0.00089729887, -0.00212783964,
      0.00431382654, 0.09667324039, 0.94272063482}},
    {1.0 / 3,
     {0.53583498232, 0.21010082339, 0.14124265038, 0.09602845204, 0.06586645768, 0.04516818695,
      0.02617901575, 0.01665443269, 0.04229058996}},
    {0.5,
     {0.70937267283, 0.18917655182, 0.10414472150, 0.05850911033, 0.03342156747, 0.01881876331,
      0.00936231546, 0.00485743762, 0.00797439241}},
    {1, {1, 0, 0, 0, 0, 0, 0, 0, 0}}};

void check_spectrum(ChainKernel kernel, int64_t rows, int64_t cols, const Form& form) {
  const Shape shape{4, rows, cols};
  if (!Shares::take() || !serves(kernel, shape, Dtype::kFloat16, 8, form)) return;
  Matrix x = with_spectrum(rows, cols, 4.2e-4), values;
  x = rounded(scaled(x, size_for(Dtype::kFloat16, rows) / matrices::norm(x)), Dtype::kFloat16);
  std::vector<Chain> chains;
  for (const Row& row : kRows) {
    Chain chain{{}, row.weights, row.power};
    for (int k = 0; k < 6; ++k) {
      chain.steps.insert(chain.steps.end(), kStep.begin(), kStep.end());
    }
    chain.steps.insert(chain.steps.end(), kFinish.begin(), kFinish.end());
    chains.push_back(chain);
    values.insert(values.end(), x.begin(), x.end());
  }
  const Result result = run_chain(kernel, shape, Dtype::kFloat16, values, chains, form);
  for (int64_t i = 0; i < shape.batch; ++i) {
    const double power = kRows[i].power;
    const Matrix truth = exact_direction(x, rows, cols, power);
    const double error =
        matrices::distance(part(result.direction, i, shape.size()), truth) / matrices::norm(truth);
    const Matrix twin = direction_of(x, rows, cols, chains[i], Rounded(Dtype::kFloat16), form);
    const double allowed = 1.5 * matrices::distance(twin, truth) / matrices::norm(truth) + 1e-4;
    CHECK(error <= allowed && (power < 0.5 || error <= 0.01),
          "%s %s %ldx%ld, power %.2f: relative error %.2e of %.2e", name_of_kernel(kernel),
          form.gram ? "gram" : "direct", long(rows), long(cols), power, error, allowed);
  }
}

void test_spectrum() {
  for (const ChainKernel kernel : kKernels) {
    check_spectrum(kernel, 24, 40, kDirect);
    check_spectrum(kernel, 24, 50, {true, {2, 5}});
  }
}

void test_choice() {
  const DeviceFacts facts{80, 108, 163 * 1024};
  for (const Shape& shape : {Shape{4, 16, 16}, Shape{1, 8, 4096}, Shape{2, 2048, 2048}}) {
    for (const Dtype dtype : kDtypes) {
      const Chain chain = chain_of(5, 0);
      ChainArgs args{};
      args.batch = shape.batch, args.rows = shape.rows, args.cols = shape.cols;
      args.dtype = dtype, args.depth = 5, args.steps = chain.steps.data();
      const ChainKernel kernel = chain_kernel(args, facts);
      CHECK(chain_kernel_serves(kernel, args, facts), "a kernel that does not serve is chosen");
      CHECK(!chain_kernel_serves(ChainKernel::kHopper, args, facts), "Hopper's on Ampere");
      CHECK(shape.rows < 2048 || kernel == ChainKernel::kTiles, "2048x2048 runs on %s",
            name_of_kernel(kernel));
    }
  }
}

void body() {
  Shares::begin_run();
  test_shapes();
  test_dtypes_and_forms();
  test_hopper();
  test_depths();
  test_weights();
  test_values();
  test_sizes();
  test_long_finish();
  test_empty();
  test_spectrum();
  test_choice();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, body); }

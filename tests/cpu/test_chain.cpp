// The chain and the squarings against plain loops in double, on every level that the processor has.
#include <cmath>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "chain_references.h"
#include "check.h"
#include "levels.h"
#include "lists.h"
#include "matrices.h"

namespace {

using namespace schattor::cpu;
using namespace matrices;
using namespace references;

// Of a shape with the table's: the numbers do not matter here.
const Chain kChain = {{3.1, -4.9, 2.3, 3.1, -4.9, 2.3, 2.9, -4.0, 1.9, 2.3, -2.2, 0.92},
                      {0.5, 0.2, 0.15, 0.1, 0.15},
                      0.4};
const Chain kLast = {kChain.steps, {0, 0, 0, 0.05, 0.97}, 0};
const Chain kEarly = {kChain.steps, {0, 1.5, 0, 0, 0}, 0.3};
const Chain kInput = {kChain.steps, {1, 0, 0, 0, 0}, 1};

// ---- Batches. ----

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kBFloat16:
      return "bfloat16";
    default:
      return "float16";
  }
}

std::vector<char> stored(const Matrix& values, Dtype dtype) {
  std::vector<char> bytes(values.size() * size_of(dtype));
  kernels().rows.in_double.store(values.data(), static_cast<int64_t>(values.size()), dtype, 1,
                                 bytes.data());
  return bytes;
}

Matrix loaded(const std::vector<char>& bytes, Dtype dtype) {
  Matrix values(bytes.size() / size_of(dtype));
  kernels().rows.in_double.load(dtype, bytes.data(), 1, static_cast<int64_t>(values.size()),
                                values.data());
  return values;
}

Parallel pool(int threads) {
  Parallel parallel;
  parallel.threads = threads;
  parallel.run = [threads](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
      const int64_t begin = count * t / threads, end = count * (t + 1) / threads;
      if (begin < end) running.emplace_back(body, begin, end);
    }
    for (std::thread& thread : running) thread.join();
  };
  return parallel;
}

struct Shape {
  int64_t batch, rows, cols;
  int64_t size() const { return rows * cols; }
};

struct Result {
  Matrix direction, inner, square;
};

bool operator==(const Result& x, const Result& y) {
  return same_bits(x.direction, y.direction) && same_bits(x.inner, y.inner) &&
         same_bits(x.square, y.square);
}

// Calls run(wide, Direction) on the stored batch.
Result run_batch(const Shape& shape, Dtype dtype, const Matrix& values,
                 const std::function<void(const void*, Direction)>& run) {
  const std::vector<char> wide = stored(values, dtype);
  std::vector<char> direction(wide.size());
  Result result{{}, Matrix(shape.batch, -1), Matrix(shape.batch, -1)};
  run(wide.data(), {direction.data(), result.inner.data(), result.square.data()});
  result.direction = loaded(direction, dtype);
  return result;
}

struct Form {
  bool gram;
  std::vector<int64_t> restarts;
};

Result run_chain(const Shape& shape, Dtype dtype, const Matrix& values, const Chain& chain,
                 const Form& form, int threads) {
  std::vector<double> weights, powers(shape.batch, chain.power);
  for (int64_t i = 0; i < shape.batch; ++i) {
    weights.insert(weights.end(), chain.weights.begin(), chain.weights.end());
  }
  return run_batch(shape, dtype, values, [&](const void* wide, Direction direction) {
    ChainArgs args{};
    args.batch = shape.batch, args.rows = shape.rows, args.cols = shape.cols;
    args.dtype = dtype, args.wide = wide, args.direction = direction;
    args.depth = chain.depth(), args.steps = chain.steps.data();
    args.weights = weights.data(), args.powers = powers.data();
    args.gram = form.gram, args.restarts = form.restarts.data();
    args.restart_count = static_cast<int64_t>(form.restarts.size());
    chain_direction(args, pool(threads));
    const int64_t bytes = chain_workspace_bytes(args, threads);
    CHECK((bytes > 0) == (shape.batch * shape.rows > 0), "%ld bytes of workspace", long(bytes));
  });
}

Result run_squarings(const Shape& shape, Dtype dtype, const Matrix& values,
                     const std::vector<double>& coefficients, double power, int threads) {
  const std::vector<double> powers(shape.batch, power);
  return run_batch(shape, dtype, values, [&](const void* wide, Direction direction) {
    SquaringsArgs args{};
    args.batch = shape.batch, args.rows = shape.rows, args.cols = shape.cols;
    args.dtype = dtype, args.wide = wide, args.direction = direction;
    args.count = static_cast<int64_t>(coefficients.size());
    args.coefficients = coefficients.data(), args.powers = powers.data();
    squarings_direction(args, pool(threads));
  });
}

// Rounding of the result, or of everything else, which steps of slope 3 have enlarged: on the Gram
// side, where eigenvalues are squares, by the square of that slope.
double tolerance(Dtype dtype, bool gram = false) {
  switch (dtype) {
    case Dtype::kFloat64:
      return gram ? 1e-11 : 1e-13;
    case Dtype::kFloat32:
      return gram ? 1e-3 : 1e-5;
    // In vectors of half precision, which serve the direct form alone, every rounding grows by up
    // to 64.
    case Dtype::kBFloat16:
      return !gram && has_bfloat16() ? 0.05 : 4e-3;
    default:
      return !gram && has_float16() ? 0.03 : 5e-4;
  }
}

Matrix part(const Matrix& values, int64_t index, int64_t size) {
  return Matrix(values.begin() + index * size, values.begin() + (index + 1) * size);
}

double inner(const Matrix& x, const Matrix& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// Every matrix of the result against the reference of what was stored.
void check_result(const char* what, const Shape& shape, Dtype dtype, const Matrix& values,
                  const Result& result, bool gram,
                  const std::function<Matrix(const Matrix&)>& reference) {
  const Matrix rounded = loaded(stored(values, dtype), dtype);
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Matrix x = part(rounded, i, shape.size());
    const Matrix direction = part(result.direction, i, shape.size()), truth = reference(x);
    const double error = distance(direction, truth), size = norm(truth);
    CHECK(error <= tolerance(dtype, gram) * size, "%s %s level %d %ldx%ld: relative error %.2e",
          what, name_of(dtype), static_cast<int>(level()), long(shape.rows), long(shape.cols),
          error / size);
    const double product = inner(x, direction), square = inner(direction, direction);
    CHECK(std::abs(result.inner[i] - product) <= 1e-7 * norm(x) * norm(direction) + 1e-300,
          "%s %ldx%ld: inner %.9g, not %.9g", what, long(shape.rows), long(shape.cols),
          result.inner[i], product);
    CHECK(std::abs(result.square[i] - square) <= 1e-7 * square + 1e-300,
          "%s %ldx%ld: square %.9g, not %.9g", what, long(shape.rows), long(shape.cols),
          result.square[i], square);
  }
}

// A batch of normalised matrices, and where there is room for them one of rank one and zeros.
Matrix batch_of(const Shape& shape) {
  Matrix values;
  for (int64_t i = 0; i < shape.batch; ++i) {
    Matrix x = gaussian(shape.size());
    if (i == 1) x = times(gaussian(shape.rows), gaussian(shape.cols), shape.rows, 1, shape.cols);
    if (i == 2) x = Matrix(shape.size());
    if (i != 2) normalise(x);
    values.insert(values.end(), x.begin(), x.end());
  }
  return values;
}

const std::vector<Form> kForms = {{false, {}}, {true, {}}, {true, {2}}, {true, {1, 3}}};
const std::vector<Dtype> kDtypes = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16,
                                    Dtype::kFloat16};

void check_chain(const Shape& shape, Dtype dtype, const Chain& chain, const Form& form) {
  const Matrix values = batch_of(shape);
  const Result result = run_chain(shape, dtype, values, chain, form, 1);
  const char* what = !form.gram ? "direct" : form.restarts.empty() ? "gram" : "restarted";
  check_result(what, shape, dtype, values, result, form.gram,
               [&](const Matrix& x) { return chain_reference(x, shape.rows, shape.cols, chain); });
  CHECK(result == run_chain(shape, dtype, values, chain, form, 3),
        "%s %s %ldx%ld: three threads change bits", what, name_of(dtype), long(shape.rows),
        long(shape.cols));
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Result alone = run_chain({1, shape.rows, shape.cols}, dtype,
                                   part(values, i, shape.size()), chain, form, 2);
    CHECK(same_bits(alone.direction, part(result.direction, i, shape.size())) &&
              alone.inner[0] == result.inner[i],
          "%s %s %ldx%ld: the batch changes bits", what, name_of(dtype), long(shape.rows),
          long(shape.cols));
  }
}

void test_chain_shapes() {
  for (const int64_t rows : {1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 64, 65, 100}) {
    for (const int64_t cols : {rows, rows + 3, 4 * rows}) {
      const Form& form = kForms[(rows + cols) % kForms.size()];
      check_chain({rows <= 33 ? 3 : 1, rows, cols}, Dtype::kFloat32, kChain, form);
    }
    for (const Form& form : kForms) {
      const Dtype dtype = kDtypes[(rows + form.restarts.size()) % kDtypes.size()];
      check_chain({1, rows, 2 * rows + 1}, dtype, kChain, form);
    }
  }
}

void test_chain_weights() {
  for (const Form& form : kForms) {
    for (const Chain& chain : {kLast, kEarly, kInput}) {
      check_chain({3, 20, 40}, Dtype::kFloat32, chain, form);
    }
    for (const Dtype dtype : kDtypes) check_chain({3, 48, 50}, dtype, kChain, form);
  }
}

// More rows and terms than are worked on at a time, and large enough to be divided among threads.
void test_chain_large() {
  check_chain({1, 200, 400}, Dtype::kFloat32, kChain, kForms[0]);
  check_chain({4, 192, 200}, Dtype::kFloat32, kLast, kForms[2]);
}

// Thin ones longer than the columns that are read at a time.
void test_chain_thin() {
  for (const int64_t rows : {1, 8, 13, 64}) {
    check_chain({2, rows, 1200}, Dtype::kFloat32, kChain, kForms[1]);
    check_chain({2, rows, 1050}, Dtype::kFloat32, kChain, kForms[1]);
    check_chain({1, rows, 1050}, Dtype::kFloat64, kChain, kForms[1]);
    check_chain({1, rows, 1050}, Dtype::kBFloat16, kChain, kForms[1]);
  }
}

void check_values(Dtype dtype, const Form& form) {
  const Shape shape{2, 6, 9};
  run_chain({0, 6, 9}, dtype, {}, kChain, form, 2);
  CHECK(norm(run_chain({2, 0, 9}, dtype, {}, kChain, form, 2).square) == 0,
        "no entries, yet a norm");
  for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Matrix values = batch_of(shape);
    values[7] = value;
    const Result result = run_chain(shape, dtype, values, kChain, form, 1);
    for (int64_t i = 0; i < shape.size(); ++i) {
      CHECK(std::isnan(result.direction[i]), "entry %ld of a NaN matrix is a number", long(i));
    }
    CHECK(std::isnan(result.inner[0]) && std::isnan(result.square[0]), "sums are numbers");
    CHECK(std::isfinite(result.inner[1]) && std::isfinite(norm(part(result.direction, 1, 54))),
          "the next matrix is touched");
  }
  const Chain none = {kChain.steps, {0, 0, 0, 0, 0}, 0.5};
  const Result result = run_chain(shape, dtype, batch_of(shape), none, form, 1);
  CHECK(norm(result.direction) == 0 && norm(result.inner) == 0, "no weights, yet a direction");
}

// Whatever the size of a matrix in half precision: only the scale changes with it, and nothing
// overflows.
void check_sizes(Dtype dtype, const Form& form) {
  const Shape shape{1, 40, 50};
  const Chain chain = {kChain.steps, kChain.weights, 0};
  const Matrix values = batch_of(shape);
  const Result expected = run_chain(shape, dtype, values, chain, form, 1);
  for (const int exponent : {4, 16}) {
    Matrix scaled = values;
    for (double& value : scaled) value = std::ldexp(value, exponent);
    const Result result = run_chain(shape, dtype, scaled, chain, form, 1);
    CHECK(distance(result.direction, expected.direction) <= 1e-3 * norm(expected.direction),
          "the direction of 2^%d times a matrix is another", exponent);
  }
}

void check_squarings(const Shape& shape, Dtype dtype, int64_t count, double power) {
  const std::vector<double> all = {0.01, 0.02, -0.05, 0.4, 0.3, 0.32};
  const std::vector<double> coefficients(all.begin(), all.begin() + count);
  const Matrix values = batch_of(shape);
  const Result result = run_squarings(shape, dtype, values, coefficients, power, 1);
  check_result("squarings", shape, dtype, values, result, false, [&](const Matrix& x) {
    return squarings_reference(x, shape.rows, shape.cols, coefficients, power);
  });
  CHECK(result == run_squarings(shape, dtype, values, coefficients, power, 3),
        "squarings %ldx%ld: three threads change bits", long(shape.rows), long(shape.cols));
}

void test_squarings() {
  for (const int64_t count : {3, 4, 5, 6}) {
    check_squarings({3, 3, 5}, Dtype::kFloat64, count, 6);
    check_squarings({3, 17, 40}, Dtype::kFloat32, count, 12);
    check_squarings({3, 5, 90}, Dtype::kFloat32, count, 12);
    check_squarings({3, 70, 75}, Dtype::kFloat32, count, 8);
    check_squarings({1, 40, 40}, kDtypes[count - 3], count, 5);
  }
  check_squarings({1, 200, 210}, Dtype::kFloat32, 4, 6);
}

void test_halves(Dtype dtype) {
  for (const int64_t rows : {1, 2, 31, 32, 33, 64, 65}) {
    for (const Form& form : kForms) {
      check_chain({rows <= 33 ? 3 : 1, rows, rows}, dtype, kChain, form);
      check_chain({1, rows, 2 * rows + 1}, dtype, kChain, form);
    }
  }
  for (const Form& form : kForms) {
    for (const Chain& chain : {kLast, kEarly, kInput}) {
      check_chain({3, 20, 40}, dtype, chain, form);
    }
    check_values(dtype, form);
    check_sizes(dtype, form);
  }
  check_chain({2, 13, 1050}, dtype, kChain, kForms[1]);
}

// The kinds of half precision that the table in force has vectors of.
std::vector<Dtype> halves() {
  std::vector<Dtype> dtypes;
  if (has_bfloat16()) dtypes.push_back(Dtype::kBFloat16);
  if (has_float16()) dtypes.push_back(Dtype::kFloat16);
  return dtypes;
}

void test_level() {
  test_chain_shapes();
  test_chain_weights();
  test_chain_large();
  test_chain_thin();
  for (const Form& form : kForms) check_values(Dtype::kFloat32, form);
  test_squarings();
}

}  // namespace

int main() {
  lists::at_each_level([] {
    test_level();
    for (const Dtype dtype : halves()) {
      test_halves(dtype);
      // More rows and terms than are worked on at a time, and divided among threads.
      check_chain({1, 200, 220}, dtype, kChain, kForms[0]);
    }
  });
  emulate_halves(true);
  for (const Dtype dtype : halves()) test_halves(dtype);
  return check::finish();
}

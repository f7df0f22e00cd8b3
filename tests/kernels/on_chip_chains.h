// What the tests of the chains on chip share: numbers of the table, spectra, and the edge cases
// that every kernel of a chain has to get right.
#pragma once

#include <limits>
#include <string>

#include "chain_twin.h"

namespace on_chip_chains {

using namespace chain_twin;
using schattor::cuda::ChainArgs;
using schattor::cuda::DeviceFacts;

// A kernel of a chain, as its header declares it.
struct Kernel {
  bool (*serves)(const ChainArgs&, const DeviceFacts&);
  size_t (*workspace)(const ChainArgs&, const DeviceFacts&);
  std::function<cudaError_t(const ChainArgs&, void*)> run;
  DeviceFacts facts;
};

inline DeviceFacts facts_here() {
  DeviceFacts facts{};
  CHECK(schattor::cuda::device_facts(&facts) == cudaSuccess, "no facts of the device");
  return facts;
}

// Steps and weights of schattor/theory/chains.py: steps("schattor", depth), weights(power, depth).
inline Matrix table_steps(int depth) {
  Matrix steps;
  for (int k = 0; k < depth - 2; ++k) {
    steps.insert(steps.end(), {3.0979664911233558, -4.877680905497762, 2.2809126835356475});
  }
  steps.insert(steps.end(), {2.8514076660238725, -4.026816268636331, 1.8607791725868785,
                             2.2865111959698847, -2.250651028781941, 0.9238826513506788});
  return steps;
}

inline Chain table_chain(int depth, double power) {
  struct Row {
    int depth;
    double power;
    Matrix weights;
  };
  static const std::vector<Row> rows = {
      {5,
       0,
       {1.8580522e-05, 0.000949340392, -0.00173782588, 0.00327507827, 0.0952614634, 0.944638192}},
      {5, 0.5, {0.709260926, 0.189086256, 0.103528939, 0.0505836473, 0.0259068511, 0.0443678009}},
      {5, 1, {1, 0, 0, 0, 0, 0}},
      {8,
       -0.3,
       {-0.771149756, -0.846769805, -1.38481806, -1.43631256, -3.02545512, -4.28757306, -1.46176311,
        1.58379735, 10.1637541}},
      {8,
       0,
       {0.000197538994, -0.000102785892, -0.00116516766, 0.000669067184, 0.000897298872,
        -0.00212783964, 0.00431382654, 0.0966732404, 0.942720635}},
      {8,
       0.5,
       {0.709372673, 0.189176552, 0.104144721, 0.0585091103, 0.0334215675, 0.0188187633,
        0.00936231546, 0.00485743762, 0.00797439241}},
      {8, 1, {1, 0, 0, 0, 0, 0, 0, 0, 0}},
      {8,
       2.3,
       {1.09232452, -0.325767786, -0.00406200704, -0.00197263635, 0.000494445145, 8.91737944e-05,
        -0.000673745296, -0.000255181214, 0.000572551786}}};
  for (const Row& row : rows) {
    if (row.depth == depth && row.power == power) return {table_steps(depth), row.weights, power};
  }
  CHECK(false, "no weights for depth %d, power %g", depth, power);
  return {};
}

// Of any depth, with weights that all count.
inline Chain chain_of(int depth, double power) {
  Chain chain{{}, {0.5}, power};
  for (int k = 0; k < depth; ++k) {
    const bool last = k + 1 == depth;
    chain.steps.insert(chain.steps.end(),
                       {last ? 2.25 : 3.125, last ? -2.25 : -4.875, last ? 0.9375 : 2.25});
    chain.weights.push_back(last ? 0.25 : 0.75 * chain.weights.back());
  }
  return chain;
}

// U diag(s) V' of given singular values: gaussian rows, made orthonormal twice over.
inline void orthonormalise(Matrix& x, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i) {
    double* row = &x[i * cols];
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        double product = 0;
        for (int64_t k = 0; k < cols; ++k) product += row[k] * x[j * cols + k];
        for (int64_t k = 0; k < cols; ++k) row[k] -= product * x[j * cols + k];
      }
    }
    double square = 0;
    for (int64_t k = 0; k < cols; ++k) square += row[k] * row[k];
    for (int64_t k = 0; k < cols; ++k) row[k] /= std::sqrt(square);
  }
}

struct Spectrum {
  Matrix u, s, v;  // (rows, rows), (rows), (rows, cols)

  // U diag(f(s)) V'
  template <class F>
  Matrix map(F f) const {
    const int64_t rows = s.size(), cols = v.size() / rows;
    Matrix scaled = v;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) scaled[i * cols + j] *= f(s[i]);
    }
    return times(u, scaled, rows, rows, cols);
  }
};

// Log-uniform from `smallest` times the Schatten-4 norm to the largest that gives this norm.
inline Spectrum log_uniform(int64_t rows, int64_t cols, double smallest) {
  Spectrum spectrum{matrices::gaussian(rows * rows), Matrix(rows), matrices::gaussian(rows * cols)};
  orthonormalise(spectrum.u, rows, rows);
  orthonormalise(spectrum.v, rows, cols);
  double low = smallest, fourth = 0;
  for (int pass = 0; pass < 60; ++pass) {
    fourth = 0;
    for (int64_t i = 0; i < rows; ++i) {
      spectrum.s[i] = rows == 1 ? 1 : std::pow(low, 1 - double(i) / double(rows - 1));
      fourth += std::pow(spectrum.s[i], 4);
    }
    low = smallest * std::pow(fourth, 0.25);
  }
  for (double& s : spectrum.s) s /= std::pow(fourth, 0.25);
  return spectrum;
}

// Weights and powers of every matrix of the batch: those of chains[i % size].
inline Result run_chain(const Kernel& kernel, const Shape& shape, Dtype dtype, const Matrix& values,
                        const std::vector<Chain>& chains, int64_t offset = 0) {
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
    args.gram = shape.cols > shape.rows;
    if (!CHECK(kernel.serves(args, kernel.facts), "%ldx%ld is not served", long(shape.rows),
               long(shape.cols))) {
      return;
    }
    Buffer<unsigned char> workspace(kernel.workspace(args, kernel.facts), "workspace");
    const cudaError_t error = kernel.run(args, workspace.data());
    CHECK(error == cudaSuccess, "error %d", static_cast<int>(error));
  });
}

// How far a kernel may be from the truth.
using Allowed =
    std::function<double(const Shape&, Dtype, const Matrix& x, const Chain&, const Matrix& truth)>;

inline void check_chain(const Kernel& kernel, const Shape& shape, Dtype dtype,
                        const std::vector<Chain>& chains, const Allowed& allowed,
                        int64_t offset = 0) {
  const Matrix values = rounded(batch_of(shape, size_for(dtype, shape.rows)), dtype);
  const Result result = run_chain(kernel, shape, dtype, values, chains, offset);
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Matrix x = part(values, i, shape.size());
    const Matrix direction = part(result.direction, i, shape.size());
    const Chain& chain = chains[i % chains.size()];
    const Matrix truth = direction_of(x, shape.rows, shape.cols, chain);
    const double error = matrices::distance(direction, truth), size = matrices::norm(truth);
    const double bound = allowed(shape, dtype, x, chain, truth);
    CHECK(error <= bound, "%s %ldx%ld depth %d power %g, matrix %ld: error %.2e of %.2e",
          name_of(dtype), long(shape.rows), long(shape.cols), chain.depth(), chain.power, long(i),
          error / size, bound / size);
    check_inner("chain", shape, x, i, result);
  }
}

// A matrix gets the same bits alone and among others.
inline void check_batch(const Kernel& kernel, const Shape& shape, Dtype dtype, const Chain& chain) {
  const Matrix values = rounded(batch_of(shape, size_for(dtype, shape.rows)), dtype);
  const Result all = run_chain(kernel, shape, dtype, values, {chain});
  for (int64_t i = 0; i < shape.batch; ++i) {
    const Result one = run_chain(kernel, {1, shape.rows, shape.cols}, dtype,
                                 part(values, i, shape.size()), {chain});
    CHECK(matrices::same_bits(one.direction, part(all.direction, i, shape.size())) &&
              one.inner[0] == all.inner[i] && one.square[0] == all.square[i],
          "%ldx%ld: the batch changes bits of matrix %ld", long(shape.rows), long(shape.cols),
          long(i));
  }
}

// Zero gives zero, NaN and inf give NaN, no weights give zero, and neighbours see none of it.
inline void check_values(const Kernel& kernel, const Shape& one, Dtype dtype) {
  const Shape shape{5, one.rows, one.cols};
  const int64_t size = shape.size();
  Matrix values;
  for (int64_t i = 0; i < shape.batch; ++i) {
    Matrix x = matrices::gaussian(size);
    matrices::normalise(x);
    values.insert(values.end(), x.begin(), x.end());
  }
  std::fill(values.begin(), values.begin() + size, 0.0);
  values[size + size / 2] = std::nan("");
  values[3 * size - 1] = -std::numeric_limits<double>::infinity();
  values = rounded(values, dtype);
  Chain none = chain_of(3, 0.5);
  none.weights = {0, 0, 0, 0};
  const Chain chain = chain_of(3, 0.5);
  const Result result = run_chain(kernel, shape, dtype, values, {chain, chain, chain, none, chain});
  CHECK(is_constant(result, shape, 0, 0), "zero gives other than zero");
  CHECK(is_constant(result, shape, 1, std::nan("")), "NaN gives numbers");
  CHECK(is_constant(result, shape, 2, std::nan("")), "inf gives numbers");
  CHECK(is_constant(result, shape, 3, 0), "no weights, yet a direction");
  const Matrix last = part(values, 4, size);
  const Matrix truth = direction_of(last, shape.rows, shape.cols, chain);
  CHECK(matrices::distance(part(result.direction, 4, size), truth) < 0.05 * matrices::norm(truth),
        "the neighbour of a NaN is touched");
}

// A weight of zero at the end, at the beginning and in between.
inline std::vector<Chain> sparse_chains() {
  std::vector<Chain> chains(4, chain_of(4, 0.5));
  chains[0].weights = {0, 0, 0, 0.125, 1};
  chains[1].weights = {0, 1.5, 0, 0, 0};
  chains[2].weights = {1, 0, 0, 0, 0};
  chains[3].weights = {0, 0.5, 0, 1, 0};
  return chains;
}

}  // namespace on_chip_chains

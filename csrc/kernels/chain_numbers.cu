// The numbers that a chain and the squarings take from norms, one thread a matrix, in double.
#include "chain.h"
#include "device.h"

namespace schattor::cuda {
namespace {

constexpr int kThreads = 128;

// 0 where the norm is, NaN where it is not finite, else 1: what every number is multiplied by.
DEV double regular(double square) {
  if (square == 0) return 0;
  return square < INFINITY ? 1 : NAN;
}

__global__ void chain_numbers(const __grid_constant__ ChainNumbers args) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= args.batch) return;
  const double square = args.squares[index], factor = regular(square);
  // tau^2 = |A|_F, and of an irregular matrix any number that spoils nothing.
  const double stored = factor == 1 ? sqrt(square) : 1;
  const double tau = sqrt(stored / args.gram_scale);
  const double gram_unit = factor / stored, unit = factor / tau;
  double* numbers = args.numbers + index * chain_numbers_count(args.depth);
  numbers[kUnit] = unit;
  numbers[kUnitA] = args.a * unit;
  numbers[kLinear] = args.b * gram_unit;
  numbers[kQuadratic] = args.c * gram_unit * gram_unit;
  numbers[kGramUnit] = gram_unit;
  numbers[kGramUnitA] = args.a * gram_unit;
  const double restored = factor * pow(tau, args.powers[index]);
  const double* weights = args.weights + index * (args.depth + 1);
  numbers[kFirstWeight] = weights[0] * restored / tau;
  for (int k = 1; k <= args.depth; ++k) {
    numbers[kFirstWeight + k] = weights[k] * restored;
  }
}

__global__ void squarings_numbers(const __grid_constant__ SquaringsNumbers args) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= args.batch) return;
  const double square = args.squares[index], factor = regular(square);
  const double stored = factor == 1 ? square : 1;
  double* logarithms = args.logarithms + index * kMostPowers;
  double* numbers = args.numbers + index * kSquaringsNumbers;
  const double enlarged = log(args.gram_scale);
  if (args.index == 0) logarithms[0] = -enlarged;
  const double logarithm = logarithms[args.index] + log(stored) / 2;  // of the norm of the power
  if (args.index + 1 < args.count) {
    logarithms[args.index + 1] = 2 * logarithm - enlarged;
    numbers[kSquare] = factor * args.gram_scale / stored;
    return;
  }
  // s_1 <= |A^n|_F^(1/2n), n = 2^(count - 1) the highest.
  const double bound = ldexp(logarithm, -args.count);
  numbers[kRestore] = factor * exp((args.powers[index] - 1) * bound);
  for (int j = 0; j < args.count; ++j) {
    const double size = exp(logarithms[j] - ldexp(bound, j + 1));
    numbers[kTerms + j] = factor * args.coefficients[j] * size;
  }
}

unsigned blocks_for(int64_t batch) {
  return static_cast<unsigned>((batch + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t prepare_chain(const ChainNumbers& args, cudaStream_t stream) {
  return dev::launch(chain_numbers, dim3(blocks_for(args.batch)), dim3(kThreads), 0, stream, args);
}

cudaError_t prepare_squarings(const SquaringsNumbers& args, cudaStream_t stream) {
  return dev::launch(squarings_numbers, dim3(blocks_for(args.batch)), dim3(kThreads), 0, stream,
                     args);
}

}  // namespace schattor::cuda

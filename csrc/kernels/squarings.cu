// squarings_direction over products: A, A^2, A^4, ... by squaring, each divided by its norm before,
// so that none over- or underflows; the logarithms of what was divided out stay on the device.
//
// Launches: 3 for every power of A (its product with squares and its numbers), 1 for the sum, 1 for
// the last product, 2 for the inner products, and 1 more where rows must be padded.
#include "chain.h"

namespace schattor::cuda {
namespace {

class Squarings {
 public:
  Squarings(const SquaringsArgs& args, Sequence& sequence, Arena& arena)
      : args_(args), sequence_(sequence), wide_(args, arena) {
    for (int j = 0; j < powers(); ++j) powers_[j] = take_square(arena);
    s_ = take_square(arena);
    squares_ = arena.take<double>(args.batch);
    logarithms_ = arena.take<double>(args.batch * kMostPowers);
    numbers_ = arena.take<double>(args.batch * kSquaringsNumbers);
  }

  void run() {
    wide_.begin(sequence_);
    for (int j = 0; j < powers(); ++j) {
      Product product = j == 0 ? gram() : square(j);
      product.transposed_b = product.symmetric = true;
      product.squares = squares_;
      sequence_.multiply({product});
      sequence_.run(prepare_squarings, numbers_after(j));
    }
    sequence_.run(combine, sum());
    Product product = product_of(args_.dtype, args_.batch, args_.rows, args_.rows, args_.cols, s_,
                                 wide_.input(), wide_.mixture());
    product.alpha = at(kRestore);
    sequence_.multiply({product});
    wide_.end(sequence_, constant(0));
  }

 private:
  int powers() const { return args_.count - 1; }

  Product gram() const {
    Product product = product_of(args_.dtype, args_.batch, args_.rows, args_.cols, args_.rows,
                                 wide_.input(), wide_.input(), powers_[0]);
    product.alpha = constant(gram_scale(args_.dtype));
    return product;
  }

  // powers_[j] = (powers_[j - 1] / norm)^2
  Product square(int j) const {
    Product product = product_of(args_.dtype, args_.batch, args_.rows, args_.rows, args_.rows,
                                 powers_[j - 1], powers_[j - 1], powers_[j]);
    product.alpha = at(kSquare);
    return product;
  }

  SquaringsNumbers numbers_after(int j) const {
    SquaringsNumbers numbers{};
    numbers.batch = args_.batch, numbers.index = j, numbers.count = powers();
    numbers.gram_scale = gram_scale(args_.dtype);
    std::copy(args_.coefficients + 1, args_.coefficients + args_.count, numbers.coefficients);
    numbers.squares = squares_, numbers.powers = args_.powers;
    numbers.logarithms = logarithms_, numbers.numbers = numbers_;
    return numbers;
  }

  // S = c_0 I + sum_j c_(j+1) A^(2^j) / bound^(2^(j+1))
  Combination sum() const {
    Combination sum{};
    sum.dtype = args_.dtype, sum.batch = args_.batch, sum.rows = args_.rows;
    sum.count = powers();
    for (int j = 0; j < powers(); ++j) {
      sum.terms[j] = powers_[j];
      sum.factors[j] = at(kTerms + j);
    }
    sum.identity = args_.coefficients[0];
    sum.result = s_;
    return sum;
  }

  Coefficient at(int number) const { return {numbers_ + number, kSquaringsNumbers, 0}; }
  Operand take_square(Arena& arena) const {
    return arena.take_matrices(args_.dtype, args_.batch, args_.rows, args_.rows);
  }

  const SquaringsArgs& args_;
  Sequence& sequence_;
  WideMemory<SquaringsArgs> wide_;
  Operand powers_[kMostPowers] = {};
  Operand s_;
  double *squares_, *logarithms_;
  double* numbers_;
};

}  // namespace

size_t squarings_workspace(const SquaringsArgs& given) {
  if (is_empty(given)) return 0;
  SquaringsArgs args = given;
  if (args.wide == nullptr) args.wide = nowhere();
  if (args.direction.data == nullptr) args.direction.data = nowhere();
  Arena arena(nowhere());
  Sequence sequence(ChainKernel::kTiles, true, nullptr);
  Squarings(args, sequence, arena).run();
  return arena.bytes() + sequence.product_bytes();
}

cudaError_t squarings_direction(const SquaringsArgs& args, void* workspace, cudaStream_t stream) {
  if (is_empty(args)) return finish_empty(args.direction, args.batch, stream);
  Arena arena(workspace);
  Sequence sequence(ChainKernel::kTiles, false, stream);
  Squarings squarings(args, sequence, arena);
  sequence.use(arena.end());
  squarings.run();
  return sequence.error();
}

}  // namespace schattor::cuda

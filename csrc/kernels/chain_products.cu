// chain_direction over products, in both forms. tau, the Schatten-4 norm, is known on the device
// after the first Gram matrix: the first step divides by it, through numbers that prepare_chain
// writes. The term w_0 X_0 of the mixture is added in the last pass, which reads the input anyway.
//
// Launches: direct form, 3 for each step. Gram side, 1 for the first Gram matrix, 3 for each step
// (a segment of one step: 2), 2 for each restart and 1 at the end. In both, 1 for the squares of
// the first Gram matrix, 1 for the numbers, 2 for the inner products, and 1 where rows must be
// padded. So 28 at depth 8, and 34 on the Gram side with restarts after 2 and 5.
#include <utility>

#include "chain.h"

namespace schattor::cuda {
namespace {

// What the two forms share. Square operands are (rows, rows), wide ones (rows, cols).
class ProductChain {
 public:
  ProductChain(const ChainArgs& args, Sequence& sequence, Arena& arena)
      : args_(args), sequence_(sequence), wide_(args, arena) {
    squares_ = arena.take<double>(args.batch);
    numbers_ = arena.take<double>(args.batch * chain_numbers_count(args.depth));
  }

 protected:
  // The first Gram matrix, and the numbers that depend on it.
  void begin(const Operand& gram) {
    wide_.begin(sequence_);
    Product product = gram_of(wide_.input(), gram);
    product.alpha = constant(gram_scale(args_.dtype));
    product.squares = squares_;
    sequence_.multiply({product});
    const double* step = args_.steps;
    sequence_.run(prepare_chain, ChainNumbers{args_.batch, args_.depth, step[0], step[1], step[2],
                                              gram_scale(args_.dtype), squares_, args_.weights,
                                              args_.powers, numbers_});
  }
  void end() { wide_.end(sequence_, weight(0)); }

  // A number that the first step of all takes from the device; later ones are constants.
  Coefficient first(bool is_first, ChainNumber number, double later) const {
    return is_first ? at(number) : constant(later);
  }
  Coefficient weight(int k) const { return at(kFirstWeight + k); }
  double a(int k) const { return args_.steps[3 * k]; }

  Product gram_of(const Operand& x, const Operand& gram) const {
    Product product =
        product_of(args_.dtype, args_.batch, args_.rows, args_.cols, args_.rows, x, x, gram);
    product.transposed_b = product.symmetric = true;
    return product;
  }
  // result = left right of square matrices that commute and are symmetric.
  Product square(const Operand& left, const Operand& right, const Operand& result) const {
    Product product = product_of(args_.dtype, args_.batch, args_.rows, args_.rows, args_.rows, left,
                                 right, result);
    product.transposed_b = product.symmetric = true;
    return product;
  }
  // result = b A + c A^2 of step k.
  Product polynomial(int k, const Operand& gram, const Operand& result) const {
    Product product = square(gram, gram, result);
    product.alpha = first(k == 0, kQuadratic, args_.steps[3 * k + 2]);
    product.d = gram;
    product.beta = first(k == 0, kLinear, args_.steps[3 * k + 1]);
    return product;
  }
  // result = left x.
  Product apply(const Operand& left, const Operand& x, const Operand& result) const {
    return product_of(args_.dtype, args_.batch, args_.rows, args_.rows, args_.cols, left, x,
                      result);
  }
  Operand take_square(Arena& arena) const {
    return arena.take_matrices(args_.dtype, args_.batch, args_.rows, args_.rows);
  }
  Operand take_wide(Arena& arena) const {
    return arena.take_matrices(args_.dtype, args_.batch, args_.rows, args_.cols);
  }

  const ChainArgs& args_;
  Sequence& sequence_;
  WideMemory<ChainArgs> wide_;

 private:
  Coefficient at(int number) const {
    return {numbers_ + number, chain_numbers_count(args_.depth), 0};
  }

  double* squares_;
  double* numbers_;
};

// A = X X', P = b A + c A^2, X <- a X + P X.
class DirectChain : ProductChain {
 public:
  DirectChain(const ChainArgs& args, Sequence& sequence, Arena& arena)
      : ProductChain(args, sequence, arena),
        gram_(take_square(arena)),
        polynomial_(take_square(arena)) {
    // The last iterate is not stored, only added to the mixture.
    for (int i = 0; i < std::min(args.depth - 1, 2); ++i) iterates_[i] = take_wide(arena);
  }

  void run() {
    begin(gram_);
    Operand x = wide_.input();
    for (int k = 0; k < args_.depth; ++k) {
      if (k > 0) sequence_.multiply({gram_of(x, gram_)});
      sequence_.multiply({polynomial(k, gram_, polynomial_)});
      const Operand next = k + 1 < args_.depth ? iterates_[k % 2] : Operand{};
      sequence_.multiply({update(k, x, next)});
      x = next;
    }
    end();
  }

 private:
  Product update(int k, const Operand& x, const Operand& next) const {
    Product product = apply(polynomial_, x, next);
    product.alpha = first(k == 0, kUnit, 1);
    product.d = x;
    product.beta = first(k == 0, kUnitA, a(k));
    product.s = wide_.mixture();
    product.gamma = constant(k == 0 ? 0 : 1);
    product.weight = weight(k + 1);
    return product;
  }

  Operand gram_, polynomial_;
  Operand iterates_[2] = {};
};

// R = X X', B = b R + c R^2, Q <- a Q + Q B, R <- a T + T B of T = a R + R B, and S += w Q. Where a
// segment ends, the direction gains S X, and X <- Q X, R <- X X'. The B of Q and of R is one stored
// matrix: what its rounding does to Q is seen in R, and mended by later steps. S is kept in half
// precision where X is, since it must be so for S X: each addition rounds it, which is measured to
// matter less than the rounding of Q.
class GramChain : ProductChain {
 public:
  GramChain(const ChainArgs& args, Sequence& sequence, Arena& arena)
      : ProductChain(args, sequence, arena) {
    for (Operand* matrix : {&r_, &b_, &t_, &q_, &spare_, &s_}) *matrix = take_square(arena);
    for (int i = 0; i < std::min(args.restart_count, 2); ++i) iterates_[i] = take_wide(arena);
  }

  void run() {
    begin(r_);
    Operand x = wide_.input();
    int segment = 0, begins = 0;  // where the segment begins
    for (int k = 0; k < args_.depth; ++k) {
      const bool restarts = segment < args_.restart_count && args_.restarts[segment] == k + 1;
      sequence_.multiply({polynomial(k, r_, b_)});
      advance(k, k == begins, restarts || k + 1 == args_.depth);
      if (!restarts) continue;
      const Operand next = iterates_[segment % 2];
      sequence_.multiply({mix(segment, x), advance_x(segment, x, next)});
      sequence_.multiply({gram_of(next, r_)});
      x = next;
      begins = k + 1;
      ++segment;
    }
    sequence_.multiply({mix(segment, x)});
    end();
  }

 private:
  // Q and S after step k, and R unless the segment ends with it.
  void advance(int k, bool begins, bool ends) {
    Product t = times_b(k, r_, t_);
    t.alpha = first(k == 0, kGramUnit, 1);
    t.beta = first(k == 0, kGramUnitA, a(k));
    if (begins) {
      begin_segment(k);
      if (!ends) sequence_.multiply({t});
    } else {
      Product q = times_b(k, q_, spare_);
      q.s = s_;
      q.weight = weight(k + 1);
      if (ends) {
        sequence_.multiply({q});
      } else {
        sequence_.multiply({q, t});
      }
      std::swap(q_, spare_);
    }
    if (!ends) sequence_.multiply({times_b(k, t_, r_)});
  }

  // Q = a I + B, S = weight Q.
  void begin_segment(int k) {
    Combination q{};
    q.dtype = args_.dtype, q.batch = args_.batch, q.rows = args_.rows;
    q.count = 1, q.terms[0] = b_, q.factors[0] = constant(1);
    q.identity = a(k);
    q.result = q_, q.scaled = s_, q.scale = weight(k + 1);
    sequence_.run(combine, q);
  }

  // result = a left + left B
  Product times_b(int k, const Operand& left, const Operand& result) const {
    Product product = square(left, b_, result);
    product.d = left;
    product.beta = constant(a(k));
    return product;
  }

  Product mix(int segment, const Operand& x) const {
    Product product = apply(s_, x, wide_.mixture());
    product.alpha = first(segment == 0, kUnit, 1);
    if (segment > 0) product.d = wide_.mixture();
    return product;
  }

  Product advance_x(int segment, const Operand& x, const Operand& next) const {
    Product product = apply(q_, x, next);
    product.alpha = first(segment == 0, kUnit, 1);
    return product;
  }

  Operand r_, b_, t_, q_, spare_, s_;
  Operand iterates_[2] = {};
};

template <typename Chain>
cudaError_t run_chain(ChainKernel engine, const ChainArgs& args, void* workspace,
                      cudaStream_t stream) {
  Arena arena(workspace);
  Sequence sequence(engine, false, stream);
  Chain chain(args, sequence, arena);
  sequence.use(arena.end());
  chain.run();
  return sequence.error();
}

struct Demand {
  bool served;
  size_t bytes;
};

template <typename Chain>
Demand demand_of(ChainKernel engine, const ChainArgs& args) {
  Arena arena(nowhere());
  Sequence sequence(engine, true, nullptr);
  Chain chain(args, sequence, arena);
  chain.run();
  return {sequence.served(), arena.bytes() + sequence.product_bytes()};
}

// Of arguments whose pointers may still be missing.
Demand demand(ChainKernel engine, ChainArgs args) {
  if (is_empty(args)) return {true, 0};
  if (args.wide == nullptr) args.wide = nowhere();
  if (args.direction.data == nullptr) args.direction.data = nowhere();
  return args.gram ? demand_of<GramChain>(engine, args) : demand_of<DirectChain>(engine, args);
}

}  // namespace

bool products_serve(ChainKernel engine, const ChainArgs& args) {
  return demand(engine, args).served;
}

size_t products_workspace(ChainKernel engine, const ChainArgs& args) {
  return demand(engine, args).bytes;
}

cudaError_t products_direction(ChainKernel engine, const ChainArgs& args, void* workspace,
                               cudaStream_t stream) {
  return args.gram ? run_chain<GramChain>(engine, args, workspace, stream)
                   : run_chain<DirectChain>(engine, args, workspace, stream);
}

}  // namespace schattor::cuda

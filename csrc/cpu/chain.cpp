// chain_direction in the direct form: three products a step on the whole matrix.
#include "chain.h"

#include <utility>

#include "chain_amx.h"
#include "levels.h"

namespace schattor::cpu {
namespace {

// One matrix, as Y = X' (cols, rows): A = Y'Y, B = b A + c A^2, Y <- a Y + Y B.
template <typename T>
class DirectChain {
 public:
  DirectChain(const ChainArgs& args, Team team, Arena& arena)
      : args_(args),
        team_(team),
        layout_(strip_layout<T>(args.rows)),
        input_(layout_, args.cols, args.dtype, team, arena),
        output_(layout_, args.cols, args.dtype, team, arena),
        y_(arena.take<T>(layout_.size(args.cols))),
        next_(arena.take<T>(layout_.size(args.cols))),
        sum_(arena.take<Sum<T>>(layout_.size(args.cols))),
        gram_(arena.take<T>(layout_.size(args.rows))),
        polynomial_(arena.take<T>(layout_.size(args.rows))),
        partial_sums_(arena.take<double>(layout_.strips)) {}

  static bool divides(const ChainArgs& args) { return worth_dividing(args.rows, args.cols); }

  void prepare() {
    for (T* matrix : {y_, next_}) clear_padding(layout_, args_.cols, matrix);
    clear_padding(layout_, args_.cols, sum_);
    for (T* matrix : {gram_, polynomial_}) clear_padding(layout_, args_.rows, matrix);
  }

  void solve(int64_t index) {
    const char* input = input_of(args_, index);
    input_.load(input, y_);
    const double size = hold<T>(layout_, args_.cols, y_, team_, partial_sums_);
    multiply(gram_product(1), team_);
    const double square = frobenius(layout_, args_.rows, gram_, team_, partial_sums_);
    const double norm = std::sqrt(square);
    const Mixture mixture(args_, index, norm / size);
    if (!is_regular<T>(args_, index, norm)) return;
    if (mixture.depth() < 0) return put_constant<T>(args_, index, 0);
    char* const direction = direction_of(args_, index);
    if (mixture.depth() == 0) {
      scale(layout_, args_.cols, mixture[0] / norm, y_, next_, team_);
      return put_overlap(args_, index, input_.store(next_, input, direction));
    }
    run(mixture, 1 / norm, bring_to(Held<T>::kA, square, layout_, args_.rows, gram_, team_));
    put_overlap(args_, index, output_.store(sum_, input, direction));
  }

 private:
  // What is held times scale is X, and what is held of A is a_size times the square of what is held
  // of X.
  void run(const Mixture& mixture, double scale, double a_size) {
    using Size = Held<T>;
    double square = scale * scale / a_size;
    bool begins = true;
    for (int64_t k = 0; k < mixture.depth(); ++k) {
      if (k > 0) multiply(gram_product(Size::kA / (Size::kX * Size::kX)), team_);
      const bool last = k + 1 == mixture.depth();
      Step step = step_of(args_, k).scaled(scale * Size::kX, square);
      step.shift(center_of(layout_, gram_));
      multiply(polynomial<T>(layout_, gram_, step.b, step.c, polynomial_), team_);
      step.a += center_of(layout_, polynomial_) / Size::kB;
      Product<T> update{layout_, args_.cols, args_.rows, y_, polynomial_, false, false, next_};
      update.scale = static_cast<Scalar<T>>(1 / Size::kB);
      update.addend = y_;
      update.addend_scale = static_cast<Scalar<T>>(step.a);
      update.addend_weight = static_cast<Scalar<T>>(mixture[k] * scale);
      update.result_weight = last ? static_cast<Scalar<T>>(mixture[k + 1] / Size::kX) : 0;
      update.sum = mixture[k] != 0 || last ? sum_ : nullptr;
      update.sum_begins = begins;
      update.exact = k == 0 && first_is_exact();
      begins = begins && update.sum == nullptr;
      multiply(update, team_);
      std::swap(y_, next_);
      scale = 1 / Size::kX;
      square = 1 / Size::kA;
    }
  }

  // In float16 the rounding of the first update grows most: in small matrices, and by a deep chain,
  // to more than twice what storing X costs (measured, up to 96 rows).
  bool first_is_exact() const { return args_.rows <= 128 && args_.depth >= 7; }

  Product<T> gram_product(double scale) const {
    Product<T> product{layout_, args_.rows, args_.cols, y_, y_, true, true, gram_};
    product.scale = static_cast<Scalar<T>>(scale);
    return product;
  }

  const ChainArgs& args_;
  const Team team_;
  const StripLayout layout_;
  const Transposer<T> input_;
  const Transposer<Sum<T>> output_;
  T *y_, *next_;           // (cols, rows)
  Sum<T>* sum_;            // (cols, rows)
  T *gram_, *polynomial_;  // (rows, rows)
  double* partial_sums_;
};

template <typename Chain>
using ChainBatch = Batch<Chain, ChainArgs>;

bool on_tiles(const ChainArgs& args) { return level() == Level::kAmx && amx_chain_applies(args); }

template <typename Use>
auto with_batch(const ChainArgs& args, const Parallel& parallel, Use use) {
  if (args.dtype == Dtype::kFloat64) return use(ChainBatch<DirectChain<double>>(args, parallel));
  if (args.dtype == Dtype::kFloat16 && has_float16()) {
    return use(ChainBatch<DirectChain<Float16>>(args, parallel));
  }
  if (args.dtype == Dtype::kBFloat16 && has_bfloat16()) {
    return use(ChainBatch<DirectChain<BFloat16>>(args, parallel));
  }
  return use(ChainBatch<DirectChain<float>>(args, parallel));
}

}  // namespace

void chain_direction(const ChainArgs& args, const Parallel& parallel) {
  if (is_empty(args)) return put_empty(args);
  if (on_tiles(args)) return chain_direction_amx(args, parallel);
  if (args.gram) return gram_chain(args, parallel);
  with_batch(args, parallel, [](auto batch) { batch.solve(); });
}

int64_t chain_workspace_bytes(const ChainArgs& args, int threads) {
  if (is_empty(args)) return 0;
  if (on_tiles(args)) return amx_workspace_bytes(args, threads);
  Parallel parallel;
  parallel.threads = threads;
  if (args.gram) return gram_chain_bytes(args, parallel);
  return with_batch(args, parallel, [](const auto& batch) { return batch.bytes(); });
}

}  // namespace schattor::cpu

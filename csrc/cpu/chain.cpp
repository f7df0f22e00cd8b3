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
        transposer_(layout_, args.cols, args.dtype, team, arena),
        y_(arena.take<T>(layout_.size(args.cols))),
        next_(arena.take<T>(layout_.size(args.cols))),
        sum_(arena.take<T>(layout_.size(args.cols))),
        gram_(arena.take<T>(layout_.size(args.rows))),
        polynomial_(arena.take<T>(layout_.size(args.rows))),
        partial_sums_(arena.take<double>(layout_.strips)) {}

  static bool divides(const ChainArgs& args) { return worth_dividing(args.rows, args.cols); }

  void prepare() {
    for (T* matrix : {y_, next_, sum_}) clear_padding(layout_, args_.cols, matrix);
    for (T* matrix : {gram_, polynomial_}) clear_padding(layout_, args_.rows, matrix);
  }

  void solve(int64_t index) {
    const char* input = input_of(args_, index);
    transposer_.load(input, y_);
    multiply(gram_product(), team_);
    const double norm = std::sqrt(frobenius(layout_, gram_, team_, partial_sums_));
    const Mixture mixture(args_, index, norm);
    if (!is_regular<T>(args_, index, norm)) return;
    if (mixture.depth() < 0) return put_constant<T>(args_, index, 0);
    if (mixture.depth() == 0) {
      scale_input(mixture[0] / norm);
    } else {
      run(mixture, 1 / norm);
    }
    put_overlap(args_, index, transposer_.store(sum_, input, direction_of(args_, index)));
  }

 private:
  void run(const Mixture& mixture, double scale) {
    bool begins = true;
    for (int64_t k = 0; k < mixture.depth(); ++k) {
      if (k > 0) multiply(gram_product(), team_);
      const bool last = k + 1 == mixture.depth();
      const Step step = step_of(args_, k).scaled(k == 0 ? scale : 1);
      multiply(polynomial<T>(layout_, gram_, step.b, step.c, polynomial_), team_);
      Product<T> update{layout_, args_.cols, args_.rows, y_, polynomial_, false, false, next_};
      update.addend = y_;
      update.addend_scale = static_cast<T>(step.a);
      update.addend_weight = static_cast<T>(mixture[k] * (k == 0 ? scale : 1));
      update.result_weight = last ? static_cast<T>(mixture[k + 1]) : 0;
      update.sum = mixture[k] != 0 || last ? sum_ : nullptr;
      update.sum_begins = begins;
      begins = begins && update.sum == nullptr;
      multiply(update, team_);
      std::swap(y_, next_);
    }
  }

  void scale_input(double scale) {
    const RowLoops<T>& rows = kernels().rows.in<T>();
    rows.scale({1, static_cast<T>(scale)}, y_, layout_.size(args_.cols), sum_);
  }

  Product<T> gram_product() const {
    return {layout_, args_.rows, args_.cols, y_, y_, true, true, gram_};
  }

  const ChainArgs& args_;
  const Team team_;
  const StripLayout layout_;
  const Transposer<T> transposer_;
  T *y_, *next_, *sum_;    // (cols, rows)
  T *gram_, *polynomial_;  // (rows, rows)
  double* partial_sums_;
};

template <typename Chain>
using ChainBatch = Batch<Chain, ChainArgs>;

bool on_tiles(const ChainArgs& args) { return level() == Level::kAmx && amx_chain_applies(args); }

}  // namespace

void chain_direction(const ChainArgs& args, const Parallel& parallel) {
  if (is_empty(args)) return put_empty(args);
  if (on_tiles(args)) return chain_direction_amx(args, parallel);
  if (args.gram) return gram_chain(args, parallel);
  if (args.dtype == Dtype::kFloat64) return ChainBatch<DirectChain<double>>(args, parallel).solve();
  ChainBatch<DirectChain<float>>(args, parallel).solve();
}

int64_t chain_workspace_bytes(const ChainArgs& args, int threads) {
  if (is_empty(args)) return 0;
  if (on_tiles(args)) return amx_workspace_bytes(args, threads);
  Parallel parallel;
  parallel.threads = threads;
  if (args.gram) return gram_chain_bytes(args, parallel);
  if (args.dtype == Dtype::kFloat64) return ChainBatch<DirectChain<double>>(args, parallel).bytes();
  return ChainBatch<DirectChain<float>>(args, parallel).bytes();
}

}  // namespace schattor::cpu

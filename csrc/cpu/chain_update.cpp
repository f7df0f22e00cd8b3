// A whole step of each matrix while it is in one core's cache: the pieces of it are the kernels of
// their own names, called for one matrix.
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels.h"
#include "tiles.h"

namespace schattor::cpu {
namespace {

// Tall matrices may stay as they lie, each the transpose of what the kernels call it: to gather and
// scatter, entry by entry, it is a matrix of other sides, and the chain is told.
View turned(View view, bool tall) {
  if (tall) std::swap(view.row_stride, view.col_stride);
  return view;
}

// The views of one matrix.
struct Lists {
  Lists(const ChainUpdateArgs& args, int64_t i, bool tall)
      : param(turned(args.scatter.params[i], tall)), grad(turned(args.gather.grads[i], tall)) {
    if (args.gather.momenta != nullptr) moment = turned(args.gather.momenta[i], tall);
  }
  View param, grad, moment{};
};

bool all_tall(const ChainUpdateArgs& args) {
  const auto lies_tall = [&](const View* views) {
    return views == nullptr || std::all_of(views, views + args.chain.batch, [&](const View& view) {
             return lies_transposed(view, args.chain.rows);
           });
  };
  return takes_tall(args.chain) && lies_tall(args.scatter.params) && lies_tall(args.gather.grads) &&
         lies_tall(args.gather.momenta);
}

class Update {
 public:
  Update(const ChainUpdateArgs& args, int64_t worker, bool tall)
      : args_(args),
        tall_(tall),
        wide_(scratch(args, 2 * worker)),
        direction_(scratch(args, 2 * worker + 1)) {}

  void run(int64_t i) const {
    gather(i);
    direct(i);
    measure(i);
    scatter(i);
  }

 private:
  static char* scratch(const ChainUpdateArgs& args, int64_t index) {
    const int64_t bytes = args.chain.rows * args.chain.cols * size_of(args.chain.dtype);
    return static_cast<char*>(args.scratch) + index * bytes;
  }

  // The arguments of one matrix, as far as gathering and scattering share them.
  template <typename Args>
  Args single(Args one, const Lists& lists) const {
    one.batch = 1;
    if (tall_) std::swap(one.rows, one.cols);
    one.grads = &lists.grad;
    if (one.momenta != nullptr) one.momenta = &lists.moment;
    return one;
  }

  void gather(int64_t i) const {
    const Lists lists(args_, i, tall_);
    GatherArgs one = single(args_.gather, lists);
    one.wide = wide_;
    one.norms += i, one.finite += i;
    gather_momentum(one, alone_);
  }

  void direct(int64_t i) const {
    ChainArgs one = args_.chain;
    one.batch = 1;
    one.tall = tall_;
    one.wide = wide_;
    one.weights += i * (one.depth + 1), one.powers += i;
    one.direction = {direction_, one.direction.inner + i, one.direction.square + i};
    chain_direction(one, alone_);
  }

  void measure(int64_t i) const {
    const double inner = args_.chain.direction.inner[i], square = args_.chain.direction.square[i];
    const double root = std::pow(std::max(inner, 0.0), 1 / (1 + args_.chain.powers[i]));
    const double by_norm = inner > 0 ? root / inner : 0;
    const double by_entries = square > 0 ? 1 / std::sqrt(square) : 0;
    args_.dual[i] = args_.gather.norms[i] / args_.corrections[i] * root;
    const double factor = args_.regularized ? args_.factors[i] * args_.dual[i] : args_.factors[i];
    args_.scale[i] =
        args_.lr * (factor * args_.lengths[i] * (args_.frobenius ? by_entries : by_norm));
  }

  void scatter(int64_t i) const {
    const Lists lists(args_, i, tall_);
    ScatterArgs one = single(args_.scatter, lists);
    one.params = &lists.param;
    one.direction = direction_;
    one.scale = args_.scale + i;
    one.finite += i;
    scatter_update(one, alone_);
  }

  const ChainUpdateArgs& args_;
  const bool tall_;
  const Parallel alone_;
  char *const wide_, *const direction_;
};

}  // namespace

void chain_update(const ChainUpdateArgs& args, const Parallel& parallel) {
  const bool tall = all_tall(args);
  parallel.run(args.workers, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      const Update update(args, worker, tall);
      const int64_t first = args.chain.batch * worker / args.workers;
      const int64_t last = args.chain.batch * (worker + 1) / args.workers;
      for (int64_t i = first; i < last; ++i) update.run(i);
    }
  });
}

}  // namespace schattor::cpu

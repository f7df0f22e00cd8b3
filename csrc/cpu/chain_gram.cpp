// chain_direction on the Gram side: R = X X', and per step, with B = b R + c R^2, Q <- a Q + Q B
// and R <- a T + T B of T = a R + R B. All of them are polynomials of one R: symmetric, and
// commuting.
#include <utility>

#include "chain.h"
#include "gram_side.h"

namespace schattor::cpu {
namespace {

template <typename Side>
class GramChain {
 public:
  using T = typename Side::Element;

  GramChain(const ChainArgs& args, Team team, Arena& arena)
      : args_(args),
        team_(team),
        side_(args.rows, args.cols, args.dtype, args.restart_count > 0, team, arena),
        layout_(side_.layout()) {
    for (T** matrix : {&r_, &b_, &q_, &spare_, &s_}) {
      *matrix = arena.take<T>(layout_.size(args.rows));
    }
    partial_sums_ = arena.take<double>(layout_.strips);
  }

  static bool divides(const ChainArgs& args) { return Side::divides(args.rows, args.cols); }

  void prepare() {
    side_.prepare();
    for (T* matrix : {r_, b_, q_, spare_, s_}) clear_padding(layout_, args_.rows, matrix);
  }

  void solve(int64_t index) {
    side_.begin(input_of(args_, index), direction_of(args_, index));
    side_.gram(r_);
    const double norm = std::sqrt(frobenius(layout_, args_.rows, r_, team_, partial_sums_));
    const Mixture mixture(args_, index, norm);
    if (!is_regular<T>(args_, index, norm)) return;
    if (mixture.depth() < 0) return put_constant<T>(args_, index, 0);
    // The iterates are Q X scale, until X itself is replaced by one of them.
    scale_ = 1 / norm;
    s_begins_ = true;
    if (mixture[0] != 0) {
      set_identity(layout_, mixture[0] * scale_, s_);
      s_begins_ = false;
    }
    run(mixture);
    put_overlap(args_, index, side_.finish(whole_sum()));
  }

 private:
  void run(const Mixture& mixture) {
    int64_t restart = 0;
    bool first = true;  // of the steps since X was read
    double r_scale = scale_ * scale_;
    for (int64_t k = 0; k < mixture.depth(); ++k) {
      while (restart < args_.restart_count && args_.restarts[restart] <= k) ++restart;
      const bool ends = restart < args_.restart_count && args_.restarts[restart] == k + 1;
      const Step step = step_of(args_, k);
      multiply(polynomial<T>(layout_, r_, step.b * r_scale, step.c * r_scale * r_scale, b_), team_);
      advance_q(step.a, first, mixture[k + 1] * scale_);
      first = false;
      if (k + 1 == mixture.depth()) break;
      if (ends) {
        read_again();
        first = true;
      } else {
        advance_r(step.a, r_scale);
      }
      r_scale = 1;
    }
  }

  // Q <- a Q + Q B, where Q = I at first, and S += weight Q.
  void advance_q(double a, bool first, double weight) {
    if (first) {
      combine(layout_, 1, b_, 0, b_, q_, team_);
      add_identity(layout_, a, q_);
      if (weight == 0) return;
      combine(layout_, weight, q_, s_begins_ ? 0 : 1, s_begins_ ? q_ : s_, s_, team_);
    } else {
      Product<T> product = times_b(q_, a, 1, spare_);
      if (weight != 0) {
        product.sum = s_;
        product.result_weight = static_cast<T>(weight);
        product.sum_begins = s_begins_;
      }
      multiply(product, team_);
      std::swap(q_, spare_);
    }
    s_begins_ = s_begins_ && weight == 0;
  }

  void advance_r(double a, double scale) {
    multiply(times_b(r_, a, 1, spare_), team_);
    multiply(times_b(spare_, a, scale, r_), team_);
  }

  void read_again() {
    if constexpr (Side::kAdvances) {
      side_.advance(s_begins_ ? nullptr : whole_sum(), q_, scale_);
      side_.gram(r_);
      scale_ = 1;
      s_begins_ = true;
    }
  }

  // result = scale (a left + left B)
  Product<T> times_b(const T* left, double a, double scale, T* result) const {
    const int64_t rows = args_.rows;
    Product<T> product{layout_, rows, rows, left, b_, false, true, result};
    product.scale = static_cast<T>(scale);
    product.addend = left;
    product.addend_scale = static_cast<T>(a * scale);
    return product;
  }

  // S, of which only one triangle was summed up.
  const T* whole_sum() {
    mirror(layout_, s_, team_);
    return s_;
  }

  const ChainArgs& args_;
  const Team team_;
  Side side_;
  const StripLayout layout_;
  T *r_, *b_, *q_, *spare_, *s_;  // (rows, rows)
  double* partial_sums_;
  double scale_ = 1;
  bool s_begins_ = true;  // nothing is in S yet
};

template <typename Side>
using GramBatch = Batch<GramChain<Side>, ChainArgs>;

template <typename T, typename Use>
auto with_side(const ChainArgs& args, const Parallel& parallel, Use use) {
  if (args.tall) return use(GramBatch<TallSide<T>>(args, parallel));
  if (ThinSide<T>::suits(args.rows, args.cols) && args.restart_count == 0) {
    return use(GramBatch<ThinSide<T>>(args, parallel));
  }
  return use(GramBatch<StripSide<T>>(args, parallel));
}

template <typename Use>
auto with_batch(const ChainArgs& args, const Parallel& parallel, Use use) {
  if (args.dtype == Dtype::kFloat64) return with_side<double>(args, parallel, use);
  return with_side<float>(args, parallel, use);
}

}  // namespace

void gram_chain(const ChainArgs& args, const Parallel& parallel) {
  with_batch(args, parallel, [](auto batch) { batch.solve(); });
}

bool takes_tall(const ChainArgs& args) {
  if (!args.gram) return false;
  const auto suits =
      args.dtype == Dtype::kFloat64 ? AsItLies<double>::suits : AsItLies<float>::suits;
  return suits(args.rows, args.cols, args.dtype);
}

int64_t gram_chain_bytes(const ChainArgs& args, const Parallel& parallel) {
  return with_batch(args, parallel, [](const auto& batch) { return batch.bytes(); });
}

}  // namespace schattor::cpu

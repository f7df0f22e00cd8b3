// squarings_direction: A, A^2, A^4, ... by squaring, each kept at about its own size in float while
// double keeps the logarithm of what was divided out, so that no power over- or underflows.
#include <cmath>

#include "chain.h"
#include "gram_side.h"

namespace schattor::cpu {
namespace {

constexpr int64_t kMostPowers = 5;  // of A: one less than coefficients

template <typename Side>
class Squarings {
 public:
  using T = typename Side::Element;

  Squarings(const SquaringsArgs& args, Team team, Arena& arena)
      : args_(args),
        team_(team),
        side_(args.rows, args.cols, args.dtype, false, team, arena),
        layout_(side_.layout()) {
    for (int64_t j = 0; j < powers(); ++j) powers_[j] = arena.take<T>(layout_.size(args.rows));
    s_ = arena.take<T>(layout_.size(args.rows));
    partial_sums_ = arena.take<double>(layout_.strips);
  }

  static bool divides(const SquaringsArgs& args) { return Side::divides(args.rows, args.cols); }

  void prepare() {
    side_.prepare();
    for (int64_t j = 0; j < powers(); ++j) clear_padding(layout_, args_.rows, powers_[j]);
    clear_padding(layout_, args_.rows, s_);
  }

  void solve(int64_t index) {
    side_.begin(input_of(args_, index), direction_of(args_, index));
    side_.gram(powers_[0]);
    double norm = frobenius(layout_, args_.rows, powers_[0], team_, partial_sums_);
    if (!is_regular<T>(args_, index, norm)) return;
    logarithms_[0] = 0;
    for (int64_t j = 1; j < powers(); ++j) norm = square(j, norm);
    // s_1 <= |A^n|_F^(1/2n), n = 2^(powers - 1) the highest.
    const int64_t last = powers() - 1;
    const double bound = (logarithms_[last] + std::log(norm)) / std::ldexp(1, powers());
    add_up(bound, std::exp((args_.powers[index] - 1) * bound));
    put_overlap(args_, index, side_.finish(s_));
  }

 private:
  int64_t powers() const { return args_.count - 1; }

  // powers_[j] = (powers_[j - 1] / norm)^2, and its norm.
  double square(int64_t j, double norm) {
    const int64_t rows = args_.rows;
    const T* root = powers_[j - 1];
    Product<T> product{layout_, rows, rows, root, root, false, true, powers_[j]};
    product.scale = static_cast<T>(1 / (norm * norm));
    multiply(product, team_);
    logarithms_[j] = 2 * (logarithms_[j - 1] + std::log(norm));
    return frobenius(layout_, args_.rows, powers_[j], team_, partial_sums_);
  }

  // S = factor (c_0 I + sum_j c_(j+1) A^(2^j) / bound^(2^(j+1))), the bound by its logarithm.
  void add_up(double bound, double factor) {
    set_identity(layout_, factor * args_.coefficients[0], s_);
    for (int64_t j = 0; j < powers(); ++j) {
      const double size = std::exp(logarithms_[j] - bound * std::ldexp(1, j + 1));
      combine(layout_, 1, s_, factor * args_.coefficients[j + 1] * size, powers_[j], s_, team_);
    }
  }

  const SquaringsArgs& args_;
  const Team team_;
  Side side_;
  const StripLayout layout_;
  T* powers_[kMostPowers];          // A^(2^j) by exp of
  double logarithms_[kMostPowers];  // these
  T* s_;
  double* partial_sums_;
};

template <typename T>
void solve(const SquaringsArgs& args, const Parallel& parallel) {
  if (ThinSide<T>::suits(args.rows, args.cols)) {
    Batch<Squarings<ThinSide<T>>, SquaringsArgs>(args, parallel).solve();
  } else {
    Batch<Squarings<StripSide<T>>, SquaringsArgs>(args, parallel).solve();
  }
}

}  // namespace

void squarings_direction(const SquaringsArgs& args, const Parallel& parallel) {
  if (is_empty(args)) return put_empty(args);
  if (args.dtype == Dtype::kFloat64) {
    solve<double>(args, parallel);
  } else {
    solve<float>(args, parallel);
  }
}

}  // namespace schattor::cpu
